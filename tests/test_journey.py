"""The journey of a new user: four servers of their own, from pool.yaml to an orchestrator that answers."""

from __future__ import annotations

import json
import re
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents import Orchestrator
from agents.cli import main
from agents.serving.reply import Reply
from experts.collect.store import read_parts
from experts.pool import load_pool, make_experts
from experts.spending import SpendCap
from leeroo_env import ExpertTable
from tests.conftest import KEY
from tests.experts.openai_server import OpenAIServer
from tests.experts.tiny_llama import make_tiny_llama

N = 200
PRICES = {"small": 1.0, "flaky": 4.0, "large": 20.0, "down": 2.0}  # dollars per million tokens, in and out
POOL = """experts:
  - name: small
    backend: openai
    model: small-1b
    base_url: {small}             # a server on this machine needs no key
    api_key_env: null
    usd_per_mtok_in: 1
    usd_per_mtok_out: 1
    max_tokens: 16
  - name: flaky
    backend: openai
    model: flaky-8b
    base_url_env: FLAKY_URL       # the variable that holds http://.../v1
    api_key_env: FLAKY_KEY
    usd_per_mtok_in: 4
    usd_per_mtok_out: 4
    max_tokens: 16
    max_retries: 2
  - name: large
    backend: openai
    model: large-70b
    base_url: {large}
    api_key_env: FLAKY_KEY
    usd_per_mtok_in: 20
    usd_per_mtok_out: 20
    max_tokens: 16
  - name: down
    backend: openai
    model: down-8b
    base_url: {down}
    api_key_env: null
    usd_per_mtok_in: 2
    usd_per_mtok_out: 2
    max_tokens: 16
    max_retries: 1
"""


def sum_of(prompt: str) -> int:
    return sum(map(int, re.findall(r"\d+", prompt)))


def flaky(prompt: str, time: int) -> int | str:
    """Too many requests and server errors, most of which a retry mends; two questions fail in the first call."""
    kind = sum_of(prompt) % 10
    if prompt in (question(3), question(4)):
        return "ok" if time > 3 else 500
    return {0: 429, 1: 500, 2: 503}.get(kind, "ok") if time == 1 else "ok"


def question(i: int) -> str:
    """Sums of two digits are easy; those of three are too hard for `small`."""
    j = i // 2
    return (
        f"What is {10 + j % 90} plus {11 + j // 90 + 7 * j % 80}?"
        if i % 2
        else f"What is {100 + 7 * i} plus {999 - i}?"
    )


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, OpenAIServer]]:
    """Three servers with OpenAI's API; nobody listens at the address of the fourth."""
    with OpenAIServer() as small, OpenAIServer(flaky) as middle, OpenAIServer() as large:
        small.reply = lambda prompt: f"The answer is {sum_of(prompt) if len(prompt) < 21 else 7}."
        middle.reply = lambda prompt: f"It is {sum_of(prompt)}." if sum_of(prompt) % 5 else "Hard to say."
        large.reply = lambda prompt: f"<think>Add both.</think>\n**{sum_of(prompt)}**"
        monkeypatch.setenv("FLAKY_URL", middle.url)
        monkeypatch.setenv("FLAKY_KEY", KEY)
        yield {"small": small, "flaky": middle, "large": large}


def write_files(directory: Path, servers: dict[str, OpenAIServer]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        down = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    (directory / "pool.yaml").write_text(POOL.format(small=servers["small"].url, large=servers["large"].url, down=down))
    rows = [{"query_id": f"q{i}", "text": question(i), "reference": str(sum_of(question(i)))} for i in range(N)]
    (directory / "questions.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def billed_usd(servers: dict[str, OpenAIServer]) -> float:
    """What the servers bill for the answers that they have given."""
    return sum(server.answered_tokens * PRICES[name] / 1e6 for name, server in servers.items())


def test_from_four_servers_to_an_orchestrator_that_answers(servers, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path, servers)
    encoder = str(make_tiny_llama(tmp_path / "encoder"))
    collect = ["collect", "--pool", "pool.yaml", "--queries", "questions.jsonl", "--out", "tables/mine"]
    collect += ["--grader", "number", "--encoder", encoder]
    parts = tmp_path / "tables" / "mine.parts"

    assert main([*collect, "--dry-run", "--max-usd", "1"]) == 1  # a few calls: all but `down` can be asked
    told = capsys.readouterr().out
    assert "down: last error: APIConnectionError" in told and "large: 195 to ask (5 stored), about $" in told
    estimates = dict(re.findall(r"^(\w+): .* about \$(\S+) \(95 %", told, re.MULTILINE))

    assert main([*collect, "--max-usd", "1"]) == 1
    told = capsys.readouterr().out
    assert "down: given up after 8 failed calls" in told and "small: 195/195 done" in told
    assert (
        "--experts small,flaky,large makes the table without down" in told and not (tmp_path / "tables/mine").exists()
    )
    assert "flaky: 193/195 done, 2 failed" in told and "large: 195/195 done" in told

    collect += ["--experts", "small,flaky,large"]
    assert main([*collect, "--max-usd", "1"]) == 0  # goes on: asks the two that failed, and nothing else
    assert "flaky: 2/2 done" in capsys.readouterr().out
    assert main([*collect, "--dry-run"]) == 0
    assert "all: about $0" in capsys.readouterr().out
    for server in servers.values():
        assert server.answered == {question(i): 1 for i in range(N)}  # nothing is asked twice
    rows = read_parts(parts).to_pylist()
    paid_usd, lost_usd = (sum(row[name] for row in rows) for name in ("cost_usd", "lost_usd"))
    assert paid_usd == pytest.approx(billed_usd(servers))
    failures = sum(sum_of(question(i)) % 10 == 1 for i in range(N)) + 6
    assert 0 < lost_usd < failures * 400 * PRICES["flaky"] / 1e6  # each 500 may have been billed, 16 tokens long
    for name in servers:
        cost = sum(row["cost_usd"] + row["lost_usd"] for row in rows if row["expert"] == name)
        assert float(estimates[name]) / 3 < cost < 3 * float(estimates[name])
    table = ExpertTable.load(tmp_path / "tables" / "mine")
    assert table.experts == ("small", "flaky", "large") and len(table) == N
    assert table.scores.mean(dim=0).tolist() == pytest.approx([0.5, 0.8, 1.0], abs=0.06)

    options = ["--timesteps", "2000", "--n-envs", "16", "--horizon", "8", "--max-calls", "1"]
    assert main(["train", "--table", "tables/mine", "--run-dir", "runs/mine", *options]) == 0
    told = capsys.readouterr().out
    report = (tmp_path / "runs/mine/report.md").read_text()
    assert "deploy: " in told and "what to deploy" in report.splitlines()[0]

    answers_are_billed_as_told(Orchestrator.load("runs/mine"), servers, usd_per_query=0.001)
    deployed = re.search(r"`leeroo (train [^`]*--agent[^`]*)`", report)  # a router may do better than the agent
    command = shlex.split(deployed[1]) if deployed else ["train", "--table", "tables/mine", "--agent", "paced kNN"]
    assert main([*command, "--run-dir", "runs/deployed"]) == 0
    decision = json.loads((tmp_path / "runs/mine/evaluation.json").read_text())["decision"]
    budget_usd = decision["budget_usd_per_1000_queries"] / 1000
    answers_are_billed_as_told(Orchestrator.load("runs/deployed"), servers, usd_per_query=budget_usd)
    assert KEY not in "".join(path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file())


def answers_are_billed_as_told(
    orchestrator: Orchestrator, servers: dict[str, OpenAIServer], usd_per_query: float
) -> None:
    """New questions are answered within the budget, for what the servers bill; also without the server used most."""
    pool = load_pool(Path("pool.yaml"))
    spend_cap, horizon = SpendCap(max_usd=0.1), 1000
    experts = {expert.name: expert for expert in make_experts(pool, orchestrator.experts, spend_cap)}
    texts = [f"What is {i + 300} plus {2 * i + 400}?" if i % 2 else f"What is {i + 10} plus 55?" for i in range(20)]

    def replies() -> list[Reply]:
        return orchestrator.answer(texts, experts, horizon * usd_per_query, horizon, compare="number")

    before_usd = billed_usd(servers)
    first = replies()
    right = [str(sum_of(text)) in (reply.text or "") for text, reply in zip(texts, first, strict=True)]
    calls = [call for reply in first for call in reply.calls]
    assert sum(right) >= 10 and sum(call.cost_usd for call in calls) == pytest.approx(billed_usd(servers) - before_usd)
    assert sum(call.cost_usd for call in calls) <= spend_cap.spent_usd <= horizon * usd_per_query
    chosen = max(servers, key=lambda name: sum(reply.expert == name for reply in first))
    answering = servers[chosen].behaviour
    servers[chosen].behaviour = lambda prompt, time: 401  # its key was withdrawn
    assert all(reply.text and reply.expert != chosen for reply in replies())
    servers[chosen].behaviour = answering
