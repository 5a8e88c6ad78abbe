"""Self-play against a server on loopback: the loop, agreement, kills, limits, drift, missing answers, bad input."""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from agents import Orchestrator
from agents.estimators.base import Estimates
from agents.estimators.ensemble import fit_predictor, predict_all
from agents.estimators.impute import fill_missing
from agents.selfplay.acquisition import draw_pairs
from agents.selfplay.config import Config
from agents.selfplay.context import seed_queries
from agents.selfplay.drift import detect_drift
from agents.selfplay.loop import main, run
from agents.selfplay.voting import rank_voters
from experts.collect.store import open_store, read_parts
from experts.pool import keys_for, load_pool
from experts.types import Answer, Query
from leeroo_env import ExpertTable, InputError
from leeroo_env.files import read_json, read_tensors
from tests.experts.collecting import processes
from tests.experts.openai_server import OpenAIServer
from tests.experts.tiny_llama import make_tiny_llama

USD = 0.8


class Encoder:
    """Embeds a text as its domain and noise."""

    info = {"model": "fake", "dim": 32}

    def encode(self, texts) -> np.ndarray:
        rows = [np.random.default_rng(_hash(text)).normal(size=32) for text in texts]
        sides = [[6.0 * ("east" in text), *[0.0] * 31] for text in texts]
        return np.array(rows, np.float32).reshape(-1, 32) + np.array(sides, np.float32).reshape(-1, 32)


def _hash(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)


def text_of(domain: str, seed: str) -> str:
    """A question of one-letter words: this server counts a token a word, and the spend cap at most one a byte."""
    return f"{domain} {' '.join(hashlib.sha256(seed.encode()).hexdigest()[:30])}"


def reply(prompt: str) -> str:
    """`fair` and `good` say a text backwards, `poor` and `west` those of one side; asked to write, all do."""
    if prompt.startswith("Write"):
        domain = re.findall(r'subject "(\w+)"', prompt)[0]
        n = int(re.findall(r"Write (\d+)", prompt)[0])
        texts = [text_of(domain, prompt + str(i)) for i in range(n)]
        return json.dumps([{"question": text} for text in texts])
    name, text = prompt.split(": ", 1)
    return "no idea" if (name, text[:4]) in (("poor", "west"), ("west", "east")) else text[::-1]


@pytest.fixture
def server(server: OpenAIServer) -> OpenAIServer:
    server.reply = reply
    return server


def made(directory: Path, **options) -> Config:
    """The configuration of a small run; its pool and seed queries are written."""
    pool = "experts:\n"
    for name, price, retries in (("poor", 10, 1), ("fair", 50, 0), ("good", 100, 0), ("west", 20, 0)):
        pool += f"  - {{name: {name}, backend: openai, model: m, usd_per_mtok_in: {price}, usd_per_mtok_out: {price},\n"
        pool += f'     max_tokens: 40, concurrency: 3, max_retries: {retries}, prompt: "{name}: {{text}}",\n'
        pool += "     base_url_env: TEST_URL, api_key_env: TEST_KEY}\n"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "pool.yaml").write_text(pool)
    lines = []
    for i in range(100):
        text = text_of(("east", "west")[i % 2], f"seed {i}")
        split = "train" if i < 50 else "val" if i < 76 else "test"
        row = {"query_id": f"s{i}", "text": text, "domain": text[:4], "reference": text[::-1], "split": split}
        lines.append(json.dumps(row))
    (directory / "seeds.jsonl").write_text("\n".join(lines))
    settings = {"start": 40, "rounds": 2, "usd_per_round": USD, "queries_per_round": 60, "timesteps": 0, "horizon": 8}
    paths = {
        "pool": directory / "pool.yaml",
        "seed_queries": str(directory / "seeds.jsonl"),
        "run_dir": directory / "run",
    }
    return Config(**{**settings, **paths, "writer": "poor", **options})


def play_in_process(config: Config, url: str) -> None:
    os.environ |= {"TEST_URL": url, "TEST_KEY": "k"}
    run(config, Encoder())


def prompts_of(run_dir: Path) -> set[str]:
    """Prompts whose answers are stored."""
    texts = {}
    for path in run_dir.glob("rounds/*/queries.jsonl"):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            texts[row["query_id"]] = row["text"]
    rows = read_parts(run_dir / "store").to_pylist()
    return {f"{row['expert']}: {texts[row['query_id']]}" for row in rows if row["query_id"] in texts}


def test_two_rounds(server, tmp_path):
    config = made(tmp_path, timesteps=1)
    rounds = run(config, Encoder())
    for one in rounds[1:]:
        assert 0 < one.spent_usd <= USD and one.answered > 40
        assert one.written.kept > 30 and one.writing_usd > 0
        assert not one.changed
    stored = read_parts(config.run_dir / "store")
    assert max(server.requests.values()) == 1
    paid = sum(one.spent_usd + one.measured_usd for one in rounds)
    paid += read_json(config.run_dir / "test.json")["measured_usd"]
    assert paid == pytest.approx(sum(stored["cost_usd"].to_pylist()))
    assert rounds[-1].answers["poor"] >= rounds[-1].answers["good"] > 50
    for number in range(3):
        directory = config.run_dir / "rounds" / f"{number:03d}"
        agent = Orchestrator.load(directory)
        assert agent.experts == ["poor", "fair", "good", "west"]
        queries = pq.read_table(directory / "table" / "queries.parquet").to_pylist()
        trained = read_tensors(directory / "policy" / "predictor.safetensors")["rows"].tolist()
        assert {queries[i]["split"] for i in trained} == {"train"}
        assert {query["query_id"] for query in queries if query["split"] == "val"} == {f"s{i}" for i in range(50, 76)}
    report = (config.run_dir / "report.md").read_text()
    assert "| west |" in report and "Held-out score by round" in report
    assert list(config.run_dir.glob("events.*")) and (config.run_dir / "learning.png").exists()


def test_questions_of_users_are_not_asked_again_where_they_were_paid(server, tmp_path):
    asked = [Query(f"u{i}", text_of("east", f"user {i}"), "east") for i in range(40)]
    config = made(tmp_path, rounds=1, writer=str(tmp_path / "live.jsonl"), teacher="good")
    rows = [{"query_id": query.query_id, "text": query.text, "domain": "east"} for query in asked]
    (tmp_path / "live.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (spec,) = load_pool(config.pool).select(["good"])
    with open_store(tmp_path / "live.parts") as store:
        paid = [Answer(query.text[::-1], 32, 31, 63 * 100 / 1e6, 0.1) for query in asked]
        store.append("good", [(keys_for(spec)(q), q, answer) for q, answer in zip(asked, paid, strict=True)])
    (_, played) = run(config, Encoder())
    assert played.written.kept > 20 and max(server.requests.values()) == 1
    assert not any(f"good: {query.text}" in server.requests for query in asked)
    voted = read_json(config.run_dir / "rounds" / "001" / "references.json")["references"]
    assert set(voted) <= {query.query_id for query in asked}
    assert {one["reference"] for one in voted.values()} <= {query.text[::-1] for query in asked} and len(voted) > 20
    run(config, Encoder())  # takes nothing in twice
    assert max(server.requests.values()) == 1


def killed(config: Config, server: OpenAIServer, after: int) -> None:
    """Plays in another process, which is killed when the server has had so many requests."""
    process = processes().Process(target=play_in_process, args=(config, server.url))
    process.start()
    deadline = time.monotonic() + 60
    while server.requests.total() < after and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.join()


def test_killed_anywhere_it_goes_on(server, tmp_path):
    whole = made(tmp_path / "whole", rounds=1)
    expected = run(whole, Encoder())
    total = server.requests.total()
    server.requests.clear()
    server.delay_s = 0.02
    config = made(tmp_path / "killed", rounds=1)
    killed(config, server, 30)  # asking the start
    first = prompts_of(config.run_dir)
    once = server.requests.copy()
    killed(config, server, total - 96 - 100)  # voting; 96 answers on test are asked at the end
    voting = prompts_of(config.run_dir)
    directory = config.run_dir / "rounds" / "001"
    assert (directory / "voters.json").exists() and not (directory / "references.json").exists()
    killed(config, server, total - 96 - 5)  # asking what round 1 chose
    second = prompts_of(config.run_dir)
    assert (directory / "asks.json").exists() and not (directory / "round.json").exists()
    before, server.delay_s = server.requests.copy(), 0.0
    assert run(config, Encoder()) == expected
    assert all(before[prompt] == once[prompt] for prompt in first)  # what was stored is not asked again
    assert all(server.requests[prompt] == before[prompt] for prompt in second)
    twice = {prompt for prompt, times in server.requests.items() if times > 1}
    assert first < voting < second
    assert len(twice) <= 3 * 4 * 2 * 3  # those under way: thrice, of four experts, two batches of three
    for name in ("policy.safetensors", "predictor.safetensors"):
        ours, theirs = (read_tensors(c.run_dir / "rounds/001/policy" / name) for c in (config, whole))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def billed_usd(config: Config, prefix: str) -> float:
    """What the store says that calls for a purpose were billed, answered or not."""
    rows = read_parts(config.run_dir / "store").to_pylist()
    return sum(row["cost_usd"] + row["lost_usd"] for row in rows if row["label"].startswith(prefix))


def test_what_failed_calls_were_billed_counts_after_a_kill_and_in_the_next_run(server, tmp_path):
    """A 500 may have been billed: the dollars of a round pay for it once, in whichever run it happened."""
    config = made(tmp_path, rounds=1)
    run(made(tmp_path, rounds=0), Encoder())
    server.behaviour = lambda prompt, times: 500 if _hash(prompt) % 6 == 0 else "ok"
    server.delay_s = 0.02
    killed(config, server, server.requests.total() + 40)
    server.delay_s = 0.0
    before = billed_usd(config, "round 1: ")
    stored = read_parts(config.run_dir / "store")
    one = run(config, Encoder())[1]
    assert sum(row["lost_usd"] for row in stored.to_pylist()) > 0 and 0 < before < one.spent_usd
    assert one.spent_usd + one.measured_usd == pytest.approx(billed_usd(config, "round 1: ")) and one.spent_usd <= USD
    tested = read_json(config.run_dir / "test.json")["measured_usd"]
    assert tested == pytest.approx(billed_usd(config, "test"))


@pytest.mark.parametrize("most_bytes", [0, 4_000, 60_000])  # fails a part, a table, a policy
def test_a_full_disk_is_one_line(server, tmp_path, capsys, most_bytes):
    """A limit on the size of files fails a write in the same way."""
    config = made(tmp_path, rounds=0)
    options = {"pool": config.pool, "seed-queries": config.seed_queries, "run-dir": config.run_dir, "rounds": 0}
    options |= {"timesteps": 0, "horizon": 8, "encoder": make_tiny_llama(tmp_path / "encoder")}
    capsys.readouterr()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, before[1]))
    try:
        assert main([part for name, value in options.items() for part in (f"--{name}", str(value))]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "File too large" in line


def test_everyone_is_asked_for_the_same_money(server, tmp_path):
    rounds = run(made(tmp_path, ask="all", rounds=1), Encoder())
    assert 0 < rounds[1].spent_usd <= USD
    gained = {name: rounds[1].answers[name] - rounds[0].answers[name] for name in ("poor", "good")}
    assert gained["poor"] == gained["good"] > 10


def test_an_expert_that_changes_is_noticed(server, tmp_path):
    config = made(tmp_path)
    before = run(made(tmp_path, rounds=1), Encoder())
    old = Orchestrator.load(config.run_dir / "rounds/001")
    server.reply = lambda prompt: "no idea at all" if prompt.startswith("good") else reply(prompt)
    rounds = run(config, Encoder())
    assert rounds[2].changed == ["good"] and not before[1].changed
    assert rounds[2].drift["good"].score < -0.5 and rounds[2].drift["good"].cost < -0.3
    assert rounds[2].measured_usd > 0  # what it does on val is measured anew
    new = Orchestrator.load(config.run_dir / "rounds/002")
    texts = [text_of("west", str(i)) for i in range(40)]
    told = [
        agent.predictor.predict(torch.from_numpy(Encoder().encode(texts)), texts).score[:, 2] for agent in (old, new)
    ]
    assert told[0].mean() > 0.8 and told[1].mean() < 0.3
    assert "| 2 | good |" in (config.run_dir / "report.md").read_text()


def test_estimates_from_partial_answers():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(900, 8)).astype(np.float32)
    chance = 1 / (1 + np.exp(-2 * x[:, :3]))
    costs = np.array([1.0, 2.0, 4.0]) * (1 + 0.1 * rng.random((900, 3)))
    split = ["train"] * 600 + ["val"] * 300
    table = ExpertTable.from_arrays("x", ["a", "b", "c"], x, (rng.random((900, 3)) < chance) * 1.0, costs, split=split)
    seen = torch.from_numpy(rng.random((900, 3)) < 0.6) | (table.split == 1)[:, None]
    hidden = table.__class__(**{**vars(table), "scores": torch.where(seen, table.scores, 0.0)})
    errors = []
    for known in (table, fill_missing(hidden, seen)):
        told = predict_all(fit_predictor(known), table).score[600:].numpy()
        errors.append(float(np.sqrt(np.square(told - chance[600:]).mean())))
    assert errors[1] < 1.25 * errors[0] and errors[1] < 0.6 * chance.std()
    with pytest.raises(InputError, match="expert b: has answered 0"):
        fill_missing(table, seen & torch.tensor([True, False, True]))


def test_pairs_are_drawn_by_worth():
    worth = torch.tensor([[1.0, 3.0], [0.0, 6.0]])
    free = torch.tensor([[True, True], [True, True]])
    first = [tuple(draw_pairs(worth, free, np.random.default_rng(s))[0]) for s in range(1000)]
    assert first.count((1, 1)) == pytest.approx(600, abs=60) and first.count((0, 1)) == pytest.approx(300, abs=60)
    assert len(draw_pairs(worth, free & torch.tensor([True, False]), np.random.default_rng(0))) == 1


def test_chance_is_no_drift():
    rng = np.random.default_rng(0)
    changed = []
    for _ in range(200):
        chance, cost = rng.random(60), np.exp(rng.normal(size=60))
        came = (rng.random(60) < chance) * 1.0, cost * np.exp(0.2 * rng.normal(size=60))
        changed.append(detect_drift((chance, cost), came, 5).changed)
    assert sum(changed) == 0
    assert detect_drift((chance, cost), (came[0], 2 * cost), 5).changed
    assert detect_drift((chance, cost), (0 * chance, cost), 5).changed


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--usd-per-round", "0"], "dollars must be above 0"),
        (["--grader", "luck"], "grader: 'luck'"),
        (["--seed-queries", "none.jsonl"], "none.jsonl: no such file"),
        (["--pool", "none.yaml"], "none.yaml: cannot be read"),
        (["--writer", "nobody"], "no expert named 'nobody'"),
        (["--writer", "none.jsonl"], "none.jsonl: no such file"),
        (["--writer", "tasks,"], "no expert named ''"),
        (["--teacher", "nobody"], "no expert named 'nobody'"),
        (["--least-agreement", "2"], "least_agreement 2.0"),
        (["--writer-pool", "none.yaml"], "none.yaml: cannot be read"),
    ],
)
def test_bad_input_is_one_line(arguments, message, tmp_path, capsys):
    assert main([*arguments, "--run-dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_other_settings_are_refused(server, tmp_path):
    run(made(tmp_path, rounds=0), Encoder())
    with pytest.raises(InputError, match="began with usd_per_round"):
        run(made(tmp_path, rounds=0, usd_per_round=9.0), Encoder())


def wild(prompt: str) -> str:
    """As `reply`, but what is written is malformed, known, or near to test as often as not, and on hard questions all
    experts differ; on those that say `fool`, all but one agree on an error."""
    if prompt.startswith("Write"):
        domain = re.findall(r'subject "(\w+)"', prompt)[0]
        texts = [text_of(domain, prompt + str(i)) for i in range(3)]
        texts[0] += " hard" if _hash(prompt) % 8 else " fool"
        west = domain == "west"
        near, known = text_of(domain, f"seed {90 + west}").upper(), text_of(domain, f"seed {0 + west}")
        items = [{"question": text} for text in (*texts, near, known)]
        return ["no list", json.dumps([*items[:-1], {"q": "?"}]), json.dumps(items)][_hash(prompt) % 3]
    name, text = prompt.split(": ", 1)
    if text.endswith("hard"):
        return f"I am {name}"
    if text.endswith("fool"):
        return "fooled" if name != "good" else text[::-1]
    return reply(prompt)


def queries_of(directory: Path) -> dict[str, dict]:
    rows = pq.read_table(directory / "table" / "queries.parquet").to_pylist()
    return {row["query_id"]: row for row in rows if row["query_id"][0] != "s"}


def test_experts_agree_on_references(server, tmp_path):
    server.reply = wild
    config = made(tmp_path, rounds=1)
    one = run(config, Encoder())[1]
    directory = config.run_dir / "rounds" / "001"
    written = [json.loads(line) for line in (directory / "queries.jsonl").read_text().splitlines()]
    known = {text_of(("east", "west")[i % 2], f"seed {i}") for i in range(100)}
    assert not any(row["text"].lower() in known or row["reference"] for row in written)
    dropped = one.written.dropped
    assert min(dropped[reason] for reason in ("no JSON list", "not the form", "reserved")) > 0
    assert dropped.get("tie", 0) + dropped["low agreement"] > 0
    assert one.written.kept + sum(dropped.get(r, 0) for r in NOT_SETTLED) == len(written)
    settled = read_json(directory / "references.json")
    used = queries_of(directory)
    assert set(used) == set(settled["references"]) and len(used) == one.agreement.settled > 10
    for query_id, row in used.items():
        assert (
            not row["text"].endswith("hard") and row["agreement"] == settled["references"][query_id]["agreement"] >= 0.6
        )
        assert row["reference"] == ("fooled" if row["text"].endswith("fool") else row["text"][::-1].lower())
    answers = pq.read_table(directory / "table" / "answers.parquet").to_pylist()
    for row in answers:
        if row["query_id"] in used:
            assert row["score"] == (row["output"].lower() == used[row["query_id"]]["reference"])
    voters = {query_id: [n for i, n in settled["votes"] if i == query_id] for query_id in used}
    assert min(map(len, voters.values())) >= 3
    assert 0 < one.votes_usd < one.spent_usd <= USD and max(server.requests.values()) == 1
    report = (config.run_dir / "report.md").read_text()
    assert "dropped: low agreement" in report and "mean agreement" in report
    assert "TEST_KEY" not in report and not any(b"Bearer" in p.read_bytes() for p in config.run_dir.rglob("*.json"))


NOT_SETTLED = ("tie", "low agreement", "no answers", "too few answers", "not asked", "unlikely to be settled")


def test_a_teacher_decides(server, tmp_path):
    server.reply = wild
    config = made(tmp_path, rounds=1, teacher="good")
    one = run(config, Encoder())[1]
    used = queries_of(config.run_dir / "rounds" / "001")
    assert one.written.kept == len(used) > 10 and "tie" not in one.written.dropped
    for row in used.values():
        assert row["reference"] == ("i am good" if row["text"].endswith("hard") else row["text"][::-1].lower())
    alone = [row["agreement"] for row in used.values() if row["text"].endswith(("hard", "fool"))]
    assert alone and max(alone) < 0.6


def test_an_expert_that_is_down_is_replaced_and_asked_again_later(server, tmp_path):
    run(made(tmp_path, rounds=0), Encoder())
    server.behaviour = lambda prompt, times: 503 if prompt.startswith("fair: ") else "ok"  # which bills nothing
    one = run(made(tmp_path, rounds=1), Encoder())[1]
    votes = read_json(tmp_path / "run" / "rounds" / "001" / "references.json")["votes"]
    assert one.agreement.settled > 5 and {name for _, name in votes} == {"poor", "good", "west"}
    assert one.spent_usd <= USD
    server.behaviour = lambda prompt, times: "ok"
    assert run(made(tmp_path, rounds=2), Encoder())[2].answers["fair"] > one.answers["fair"]


def test_programs_and_models_write(server, tmp_path, monkeypatch):
    other = tmp_path / "writers.yaml"
    config = made(tmp_path, rounds=1, writer="scribe,tasks", writer_pool=str(other), queries_per_round=30)
    lines = config.pool.read_text().splitlines()
    other.write_text("\n".join(lines[:4]).replace("poor", "scribe").replace("TEST_URL", "WRITER_URL"))
    monkeypatch.setenv("WRITER_URL", server.url)
    assert run(config, Encoder())[1].agreement.settled > 5
    rows = queries_of(config.run_dir / "rounds" / "001").values()
    assert {row["agreement"] is None for row in rows} == {True, False}
    assert {row["domain"] for row in rows if row["agreement"]} == {"east", "west"}


def test_a_pool_of_one_and_no_domains(server, tmp_path):
    config = made(tmp_path, rounds=1, writer="tasks", ask="aimed")
    config.pool.write_text("\n".join(config.pool.read_text().splitlines()[:4]))
    seeds = Path(config.seed_queries)
    seeds.write_text(re.sub(r'"domain": "\w+", ', "", seeds.read_text()))
    one = run(config, Encoder())[1]
    assert one.answered == one.answers["poor"] > 0 and one.changed == ["poor"]  # knows none of the tasks


def test_voters_are_chosen_by_score_and_cost():
    score = torch.tensor([[0.9, 0.9, 0.9, 0.1], [0.1, 0.9, 0.9, 0.9], [0.1, 0.1, 0.1, 0.1]])
    ranks, chance = rank_voters(Estimates(score, torch.tensor([[1.0, 1.5, 2.0, 1.0]]).expand(3, 4)))
    assert ranks.tolist()[:2] == [[0, 1, 2, 3], [3, 1, 2, 0]]
    assert chance.tolist() == pytest.approx([0.972, 0.972, 0.028], abs=1e-3)
    ranks, _ = rank_voters(Estimates(score, torch.ones(3, 4)), teacher=2)
    assert ranks[:, 0].tolist() == [2, 2, 2]
    costs = torch.tensor([[1.0, 1.5, 2.0, 1.0]]).expand(3, 4)
    ranks, chance = rank_voters(Estimates(score, costs), models=["a", "a", "b", "c"])
    assert all({0, 1} - {*row[:3]} for row in ranks.tolist()), "two variants of one model are not asked together"
    assert rank_voters(Estimates(score, costs), models=["a", "a", "a", "b"])[1].tolist() == [0.0, 0.0, 0.0]


def test_a_writer_that_is_down_costs_the_new_questions_alone(server, tmp_path):
    config = made(tmp_path, rounds=1)
    server.behaviour = lambda prompt, times: 400 if prompt.startswith("Write") else "ok"
    one = run(config, Encoder())[1]
    assert one.written.kept == 0 and one.written.dropped["call failed"] > 0 and one.spent_usd == 0


def test_an_expert_that_is_down_at_first_is_asked_again(server, tmp_path):
    config = made(tmp_path, rounds=0)
    server.behaviour = lambda prompt, times: 400 if prompt.startswith("fair: ") else "ok"
    with pytest.raises(InputError, match="no val query has every expert's answer"):
        run(config, Encoder())
    asked = server.requests.copy()
    server.behaviour = lambda prompt, times: "ok"
    run(config, Encoder())
    assert all(server.requests[p] == n for p, n in asked.items() if not p.startswith("fair: "))


def test_money_for_val_and_test_is_limited_and_can_be_raised(server, tmp_path):
    with pytest.raises(InputError, match="no val query has every expert's answer"):
        run(made(tmp_path, rounds=0, usd_to_begin=0.45), Encoder())
    assert sum(read_parts(tmp_path / "run" / "store")["cost_usd"].to_pylist()) <= 0.45
    with pytest.raises(InputError, match="no test query"):
        run(made(tmp_path, rounds=0, usd_to_begin=0.75), Encoder())
    assert sum(read_parts(tmp_path / "run" / "store")["cost_usd"].to_pylist()) <= 0.75
    assert "on val" in (tmp_path / "run" / "report.md").read_text()
    run(made(tmp_path, rounds=0), Encoder())
    assert max(server.requests.values()) == 1


def test_training_queries_that_are_in_test_are_left_out(server, tmp_path):
    config = made(tmp_path, start=0)
    with Path(config.seed_queries).open("a") as file:
        text = text_of("east", "seed 90").upper()
        file.write("\n" + json.dumps({"query_id": "again", "text": text, "reference": "x", "split": "train"}))
    with pytest.warns(UserWarning, match="1 training query is in val or test too"):
        held_out, start = seed_queries(config)
    assert len(start) == 50 and len(held_out) == 50
