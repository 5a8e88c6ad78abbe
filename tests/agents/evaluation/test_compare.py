"""Runs are put side by side, and their differences are those on the same queries."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import yaml

from agents.cli import main
from agents.evaluation.decision import mean_interval, savings
from agents.evaluation.evaluate import evaluate
from agents.evaluation.stored import BY_QUERY, ByQuery, read_by_query, write_by_query
from agents.routers import Cheapest, Random
from agents.training.run_dir import FURTHER, finish_run
from leeroo_env import dynamics
from leeroo_env.manifest import MANIFEST, read_manifest
from tests.agents.evaluation.test_report import clairvoyant, report_of
from tests.conftest import random_table
from tests.synthetic import synthetic_table


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs on one table: "good" and "poor", which deploys an expert alone."""
    path, table = tmp_path_factory.mktemp("runs"), synthetic_table()
    for name, router in (("good", clairvoyant(table)), ("poor", Cheapest(table))):
        (path / name).mkdir()
        report_of(table, router, path / name)
        (path / name / "config.yaml").write_text(yaml.safe_dump({"table_sha256": "abc"}))
        finish_run(path / name)
    return path


def test_what_each_deploys_and_what_that_gains(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    page = tmp_path / "page.html"
    assert main(["compare", str(runs / "poor"), str(runs / "good"), "--out", str(page)]) == 0
    head, poor, good, last = capsys.readouterr().out.splitlines()
    assert head.split("  ")[0] == "run" and "gained on poor" in head and last == f"page: {page}"
    decisions = {run: json.loads((runs / run / "evaluation.json").read_text())["decision"] for run in ("poor", "good")}
    for name, line in (("poor", poor), ("good", good)):
        first = decisions[name]["rows"][0]
        assert line.startswith(name) and f"{first['score']['mean']:.3f}" in line and decisions[name]["deploy"] in line
    gained = decisions["good"]["rows"][0]["score"]["mean"] - decisions["poor"]["rows"][0]["score"]["mean"]
    assert f"{gained:+.3f} ± " in good and "%" in good
    html = page.read_text()
    assert "good: agent" in html and html.count('type="radio"') == 20 and "http:" not in html and "https:" not in html


def test_a_difference_is_that_on_the_same_queries(tmp_path: Path):
    table = random_table(n=300)
    rules = dynamics.make_rules(table, "test", 20)
    one, two = (evaluate(router, rules, dynamics.budget_grid(rules), 50) for router in (Cheapest(table), Random(table)))
    a, b = ByQuery.of(one, 2), ByQuery.of(two, 4)
    write_by_query(tmp_path, a)
    read = read_by_query(tmp_path)
    assert read is not None and all(np.array_equal(getattr(read, name), x) for name, x in vars(a).items())
    assert a.is_paired_with(b) and a.count.sum() == 1000
    rows = a.each(a.rows)
    gained = mean_interval(b.each(b.score - a.score), rows)
    wanted = mean_interval(two.scored[4] - one.scored[2], one.rows[2])
    assert vars(gained) == pytest.approx(vars(wanted))
    saved, known = (
        savings(b.each(b.paid_usd), a.each(a.paid_usd), rows),
        savings(two.paid_usd[4], one.paid_usd[2], one.rows[2]),
    )
    assert saved is not None and known is not None and vars(saved) == pytest.approx(vars(known))


def changed(run: Path, to: Path, **settings: object) -> Path:
    """A copy of a run without a manifest, with other settings in its config and evaluation."""
    copytree(run, to)
    (to / MANIFEST).unlink()
    config = {"table_sha256": settings.pop("table_sha256", "abc")}
    (to / "config.yaml").write_text(yaml.safe_dump(config))
    evaluation = json.loads((to / "evaluation.json").read_text())
    (to / "evaluation.json").write_text(json.dumps({**evaluation, **settings}))
    return to


def test_it_says_why_there_are_no_differences(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    tables = changed(runs / "good", tmp_path / "tables", table_sha256="def", table="<b>other")
    same_name = changed(runs / "good", tmp_path / "same-name", table_sha256="def")
    seeds, earlier = (changed(runs / "good", tmp_path / name, seed=1) for name in ("seeds", "earlier"))
    (earlier / BY_QUERY).unlink()
    own = read_by_query(seeds)
    assert own is not None
    write_by_query(seeds, ByQuery(own.rows, own.count[::-1].copy() + 1, own.score, own.paid_usd))
    page = tmp_path / "page.html"
    arguments = [*map(str, (runs / "good", tables, same_name, seeds, earlier)), "--out", str(page)]
    assert main(["compare", *arguments]) == 0
    out = capsys.readouterr().out
    assert "gained on" not in out
    for name, why in (
        ("tables", "other tables (synthetic, <b>other)"),
        ("same-name", "other tables, of the same name"),
        ("seeds", "other seeds (0, 1), so that other test queries were asked"),
        ("earlier", "earlier is of an earlier version"),
    ):
        assert f"no differences between good and {name}: {why}" in out
    assert "<b>other" not in page.read_text() and "&lt;b&gt;other" in page.read_text()


def test_bad_input_is_one_line(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    good = str(runs / "good")
    for name in ("empty", "seeds", "broken"):
        (tmp_path / name).mkdir()
    (tmp_path / "seeds" / "seeds.json").write_text("{}")
    (tmp_path / "broken" / "evaluation.json").write_text("[")
    old = changed(runs / "good", tmp_path / "old", decision=None)
    damaged = changed(runs / "good", tmp_path / "damaged")
    (damaged / BY_QUERY).write_bytes(b"x")
    for arguments, message in (
        ([good], "name two runs or more"),
        ([good, str(tmp_path / "none")], "no such run"),
        ([good, str(tmp_path / "empty")], "has no evaluation.json"),
        ([good, str(tmp_path / "seeds")], "holds several seeds"),
        ([good, str(tmp_path / "broken")], "evaluation.json"),
        ([good, str(old)], "an earlier version made it"),
        ([good, str(damaged)], BY_QUERY),
        ([good, good], "named twice"),
        ([good, str(runs / "poor"), "--out", str(tmp_path)], "is a directory"),
    ):
        assert main(["compare", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_the_manifest_lists_the_page(runs: Path):
    manifest = read_manifest(runs / "good")
    assert manifest is not None and set(FURTHER) <= set(manifest.files)
    assert main(["verify", str(runs / "good")]) == 0
