"""The page of a report says what report.md says, needs nothing from elsewhere, and takes any name."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from agents.evaluation.curves import axis_of, chart_of
from agents.evaluation.data import LearningCurve, _curve_lines
from agents.evaluation.decision import Interval
from agents.evaluation.html_report import learning_line
from agents.evaluation.markdown import sections, table_head, table_line, to_html
from agents.routers import Cheapest
from leeroo_env import ExpertTable
from tests.agents.evaluation.test_report import clairvoyant, report_of
from tests.synthetic import synthetic_table

HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a|b", "{{ 7 * 7 }}**`"]


class Read(HTMLParser):
    """Collects the tags with their attributes, the rows of tables, and the text."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.rows and self.rows[-1] and self.lasttag in ("td", "th", "strong", "code", "bdi"):
            self.rows[-1][-1] += data.strip()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, table = tmp_path_factory.mktemp("run"), synthetic_table()
    report_of(table, clairvoyant(table), path)
    return path


def test_it_has_every_number_of_the_report(run: Path):
    markdown, page = (run / "report.md").read_text(), Read((run / "report.html").read_text())
    parts = sections(markdown.split("\n"))
    cells = [row for part in parts for table in part.tables for row in table]
    plain = [[re.sub(r"\*\*|`", "", cell) for cell in row] for row in cells]
    assert len(plain) > 40 and all(row in page.rows for row in plain)
    for part in parts:
        assert part.title in page.text
    words = [re.sub(r"\*\*|`|^- ", "", line) for line in markdown.split("\n") if line[:1] not in ("", "|", "#", "!")]
    assert all(line in page.text for line in words)


def test_its_pictures_have_the_numbers_of_the_report(run: Path):
    html, markdown = (run / "report.html").read_text(), (run / "report.md").read_text()
    parts = {part.title: part.tables[0] for part in sections(markdown.split("\n")) if part.tables}
    page = Read(html)
    points = [attrs["aria-label"] for tag, attrs in page.tags if tag == "input" and attrs.get("type") == "radio"]
    head, *rows = parts["What each budget buys"]
    at = head.index("agent")
    assert points == [f"{row[0].strip('*')} per 1,000 queries: {row[at]}" for row in rows]
    assert html.count("checked>") >= 2 and sum("checked" in attrs for _, attrs in page.tags if attrs.get("name")) == 1
    _, *experts = parts["Which experts are asked"]
    bars = [
        attrs["aria-label"] or "" for _, attrs in page.tags if attrs.get("role") == "img" and attrs.get("aria-label")
    ]
    for g, row in enumerate(rows):
        bar = next(
            label for label in bars if label.startswith(f"Budget {row[0].strip('*')}: ") and "regret" not in label
        )
        assert all(f"{cells[0]}: {cells[g + 1]}" in bar for cells in experts if cells[g + 1] != "0 %")
    for name, *_, words in parts["What the agent pays for each expert's score"][1:]:
        assert name in page.text and page.text.count(words) % 2 == 0, "in the picture and in the text"
    regrets = {row[0]: row[1:] for row in parts["Regret: what is lost, and where"][1:]}
    for g in range(6):
        label = f"allocation regret: {regrets['allocation regret'][g]}, prediction regret: "
        assert any(label + regrets["prediction regret"][g] in bar for bar in bars)
    for domain, *shares in zip(*parts["Which experts are asked, by domain"], strict=True):
        if domain != "expert":
            assert any(bar.startswith(f"Domain {domain}: ") and max(shares, key=len) in bar for bar in bars)


def test_it_loads_nothing(run: Path):
    html = (run / "report.html").read_text()
    assert not re.search(r"https?:|//|url\(|@import|<(iframe|object|embed|base)\b|\bfetch\b", html)
    page = Read(html)
    assert {value for _, attrs in page.tags for name, value in attrs.items() if name in ("src", "href")} == {"data:,"}
    policy = next(attrs["content"] or "" for tag, attrs in page.tags if tag == "meta" and "http-equiv" in attrs)
    assert policy.startswith("default-src 'none'")


def test_names_are_text(tmp_path: Path):
    rng, n = np.random.default_rng(0), 240
    scores, costs_usd = rng.random((2, n, len(HOSTILE)))
    embeddings, domains = np.ones((n, 2), np.float32), [HOSTILE[i % 2] for i in range(n)]
    table = ExpertTable.from_arrays("</title><script>", HOSTILE, embeddings, scores, costs_usd, domains=domains)
    report_of(table, Cheapest(table), tmp_path, horizon=8)
    page = Read((tmp_path / "report.html").read_text())
    assert [tag for tag, _ in page.tags].count("script") == 1 and "img" not in {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert HOSTILE[0] in page.text and HOSTILE[1] in page.text and "{{ 7 * 7 }}" in page.text


@pytest.mark.parametrize("kind", ["one expert", "free", "many"])
def test_any_table_makes_a_page(kind: str, tmp_path: Path):
    k = {"one expert": 1, "free": 3, "many": 40}[kind]
    drawn = np.random.default_rng(0).random((2, 120, k))
    costs_usd = 0 * drawn[1] if kind == "free" else drawn[1] + 0.1
    names, split = [f"expert-{i}" for i in range(k)], [("train", "val", "test")[i % 3] for i in range(120)]
    table = ExpertTable.from_arrays("any", names, np.ones((120, 2), np.float32), drawn[0], costs_usd, split=split)
    report_of(table, Cheapest(table), tmp_path, horizon=8)
    html = (tmp_path / "report.html").read_text()
    assert "nan%" not in html and "inf" not in re.findall(r"style=\"[^\"]*\"", html)
    assert ("32 others" in html) == (kind == "many") and 1 <= html.count('class="mark-name') <= 6
    assert html.index("Warning: few queries.") < html.index('id="curve"'), "told before the pictures"
    widths = [float(width) for width in re.findall(r"width: ([\d.]+)%", html)]
    assert widths and max(widths) <= 100.01


def test_the_learning_curve_of_a_report_is_drawn():
    curve = LearningCurve((1000, 2000, 4000), (0.5, 0.6, 0.65), Interval(0.05, 0.04, 0.06))
    first, last = sections(["## Would more training queries pay?", "", *_curve_lines(curve), "", "## Another"])
    learned = learning_line(first)
    assert learned is not None and learned.column == "score on val"
    assert [title for _, _, title in learned.points] == ["1,000: 0.5000", "2,000: 0.6000", "4,000: 0.6500"]
    heights = [y for _, y in learned.line.points]
    assert heights == sorted(heights, reverse=True), "y from the top"
    assert learning_line(last) is None


def test_axes_have_round_marks_and_room():
    money = axis_of([0.001, 0.04], True)
    assert money.is_log and money.ticks() == pytest.approx([0.001, 0.002, 0.005, 0.01, 0.02])
    assert 0 < money.at(0.001) < 10 and 90 < money.at(0.04) < 100 and money.at(0.0) == 0
    assert not axis_of([0.0, 1.0], True).is_log and axis_of([2.0, 2.0], True).at(2.0) == pytest.approx(50)
    assert axis_of([0.0, 0.0], False).low == 0
    np.testing.assert_allclose(axis_of([0.12, 0.81], False).ticks(), [0.2, 0.4, 0.6, 0.8])
    line = chart_of([1.0, 2.0], [0.2, 0.8]).line("x", 0, [2.0, 1.0], [0.8, 0.2], [0.1, 0.1])
    (x1, y1), (x2, y2) = line.points
    assert x1 < x2 and y1 > y2 and len(line.band) == 4


def test_markdown_becomes_html_and_text_stays_text():
    html = to_html(["**a** `<b>` & c", "", "- one", "- two", "", *table_head(["x", "n"]), table_line(["a|b", "$1.5"])])
    assert "<strong>a</strong> <code>&lt;b&gt;</code> &amp; c" in html and "<ul><li>one</li><li>two</li></ul>" in html
    assert '<th scope="row">a|b</th><td class="n">$1.5</td>' in html
