"""Snippets in the documentation run; the commands, options, files, links and names in it exist."""

from __future__ import annotations

import contextlib
import functools
import io
import pkgutil
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import yaml

import agents.cli
import train
from leeroo_env import ExpertTable
from leeroo_env.builtin import resolve
from tests.agents.server.running import serving

ROOT = Path(__file__).parents[1]
PAGES = {str(path.relative_to(ROOT)): path for path in [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md"))]}
PACKAGES = ("leeroo_env", "agents", "experts")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PATH = re.compile(rf"\b(?:{'|'.join(PACKAGES)}|tests|benchmarks|examples|docs)/[\w./-]*\w")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
SERVER = "http://127.0.0.1:8000"  # in the pages
WIDE = {"COLUMNS": "120"}
OURS = ("python", "leeroo")
RUNNERS = ("source", "export", "curl", "pip", "pytest", "tensorboard")  # not ours
TARGETS = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """Fenced blocks of a language, with the line on which each begins."""
    text = page.read_text()
    return [(text[: match.start()].count("\n") + 2, match[2]) for match in FENCE.finditer(text) if match[1] == language]


def code_spans(page: Path) -> list[str]:
    """What stands between single backticks, outside of fenced blocks."""
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", page.read_text()))


def commands(page: Path) -> list[list[str]]:
    """Commands in shell blocks and code spans, as words; continued lines are one command."""
    lines = [line for _, block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()]
    lines += [span for span in code_spans(page) if span.split()[0] in (*OURS, "make", *RUNNERS) and " " in span]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@functools.cache
def help_of(*words: str) -> str:
    """What `python WORDS --help`, or `leeroo` and so on, prints, without a process of its own."""
    script = ROOT / words[0]
    arguments = ["", *words[2 if words[0] == "-m" else 1 :], "--help"]
    out = io.StringIO()
    if words[0] == "leeroo":
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit), patch.dict("os.environ", WIDE):
            agents.cli.main(arguments[1:])
        return out.getvalue()
    with (
        patch.object(sys, "argv", arguments),
        patch.object(sys, "path", [str(script.parent), *sys.path]),
        patch.dict("os.environ", WIDE),
        contextlib.redirect_stdout(out),
        pytest.raises(SystemExit) as ended,
    ):
        if words[0] == "-m":
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 0, out.getvalue()
    return out.getvalue()


def program(words: list[str]) -> list[str]:
    """The words of a command before its options and arguments: the program and a subcommand of it."""
    named = words[:2] if words[0] in ("-m", "leeroo") else words[:1]
    rest = words[len(named) :]
    return [*named, rest[0]] if rest and f"• {rest[0]} " in help_of(*named) else named


@pytest.mark.filterwarnings("ignore:.* found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("name", PAGES)
def test_commands_and_their_options_exist(name: str):
    for words in commands(PAGES[name]):
        if words[0] == "make":
            assert words[1] in TARGETS, words
            arguments = [word.removeprefix("ARGS=") for word in words[2:] if word.startswith("ARGS=")]
            words = ["python", "train.py", *shlex.split(" ".join(arguments))] if words[1] == "train" else []
        if words and words[0] == "torchrun":  # whose own options come before the program
            words = ["python", *words[words.index("train.py") :]]
        if not words or words[0] in RUNNERS:
            continue
        assert words[0] in OURS, words
        text = help_of(*program(words[1:] if words[0] == "python" else words))
        for option in OPTION.findall(" ".join(words)):
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", text), f"{' '.join(words)}: no option {option}"


@pytest.mark.parametrize("name", PAGES)
def test_links_and_paths_and_names_exist(name: str):
    page = PAGES[name]
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith("http"):
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
    for path in PATH.findall(page.read_text()):
        assert (ROOT / path).exists(), path
    for span in code_spans(page):
        if re.fullmatch(rf"(?:{'|'.join(PACKAGES)})(?:\.\w+)+", span):
            pkgutil.resolve_name(span)


def anchors(page: Path) -> set[str]:
    """As GitHub makes them from headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the snippets find: `tables/mine`, of the models that ship, a run on it, and their `pool.yaml`."""
    directory = tmp_path_factory.mktemp("docs")
    whole = resolve("tiny")
    queries = whole.queries.slice(0, 400)
    answers = whole.answers.filter(pc.is_in(whole.answers["query_id"], pa.array(queries["query_id"].to_pylist())))
    table = ExpertTable.from_arrow(whole.info, queries, answers, whole.embeddings[:400].numpy())
    table.save(directory / "tables" / "mine")
    pool = yaml.safe_load((ROOT / "experts/tiny/pool.yaml").read_text())
    for expert in pool["experts"]:
        expert["model"] = str(ROOT / "experts/tiny" / expert["model"])
    (directory / "pool.yaml").write_text(yaml.safe_dump(pool))
    options = ["--timesteps", "1000", "--n-envs", "16", "--horizon", "8", "--max-calls", "1"]
    run_dir = str(directory / "runs/mine")
    assert train.main(["--table", str(directory / "tables/mine"), "--run-dir", run_dir, *options]) == 0
    return directory


@pytest.mark.parametrize("name", [name for name, page in PAGES.items() if blocks(page, "python")])
def test_snippets_run(name: str, workspace: Path, monkeypatch: pytest.MonkeyPatch):
    """Those of a page one after another, in one namespace; where one asks the server, it runs."""
    monkeypatch.chdir(workspace)
    namespace: dict[str, Any] = {}
    snippets = blocks(PAGES[name], "python")
    with contextlib.ExitStack() as stack:
        url = SERVER
        if any(SERVER in block for _, block in snippets):
            store = f"sqlite:///{workspace}/leeroo.db"
            running = stack.enter_context(serving(workspace / "runs/mine", workspace / "pool.yaml", store, workspace))
            monkeypatch.setenv("LEEROO_API_KEY", running.key(name, usd=1.0))
            url = running.url
        for line, block in snippets:
            code = "\n" * (line - 1) + block.replace(SERVER, url)
            exec(compile(code, str(PAGES[name]), "exec"), namespace)


def test_every_pool_in_the_pages_is_valid(tmp_path: Path):
    from experts.pool import load_pool

    pools = [block for page in PAGES.values() for _, block in blocks(page, "yaml")]
    assert len(pools) >= 2
    for pool in pools:
        (tmp_path / "pool.yaml").write_text(pool)
        assert load_pool(tmp_path / "pool.yaml")


def test_the_architecture_names_every_package():
    text = PAGES["ARCHITECTURE.md"].read_text()
    packages = [path.parent for package in PACKAGES for path in (ROOT / package).glob("*/__init__.py")]
    assert len(packages) > 15
    for package in packages:
        assert f"{package.relative_to(ROOT)}`" in text, package


def test_the_readme_is_short():
    assert len(PAGES["README.md"].read_text().splitlines()) <= 150
