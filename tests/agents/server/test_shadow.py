"""A second policy decides beside the first, or for a share of conversations, and the page compares the two."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
import sqlalchemy as sa

from agents.server import command
from agents.server.config import ServerConfig
from agents.server.job import Hints
from agents.server.journal import Decision, Journal, by_policy, decisions, recent
from agents.server.money import KeyInfo, Ledger
from agents.server.service import load, place
from agents.server.shadow import Choice, Pair, Shadow, comparisons, pairs, pairs_of
from agents.server.versions import Versions
from agents.server.wire import ChatCompletionRequest
from leeroo_env import ExpertTable
from tests.agents.server.running import ADMIN, Running, get_json, serving, write_pool
from tests.agents.serving.orchestrators import orchestrator_of

OLD_DECISIONS = """CREATE TABLE decisions (id VARCHAR(64) NOT NULL PRIMARY KEY, key_id INTEGER NOT NULL,
 at FLOAT NOT NULL, expert VARCHAR(200) NOT NULL,
 calls INTEGER NOT NULL, micro_usd BIGINT NOT NULL, dearest_micro_usd BIGINT NOT NULL,
 latency_s FLOAT NOT NULL, why TEXT NOT NULL, estimates TEXT NOT NULL, status INTEGER NOT NULL, feedback FLOAT)"""
OLD_ROW = "INSERT INTO decisions VALUES ('old', 1, {at}, 'large', 1, 5, 9, 0.1, 'because', '{{}}', 200, 0.5)"


@pytest.fixture(scope="module")
def questions(dear_tiny: Path) -> list[str]:
    table = ExpertTable.load(dear_tiny)
    texts = table.queries["text"].to_pylist()
    return [str(texts[row]) for row in table.rows("test")[:40]]


@pytest.fixture(scope="module")
def cheap_run_dir(dear_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that does not know the best expert."""
    table = ExpertTable.load(dear_tiny)
    path = tmp_path_factory.mktemp("runs") / "cheap"
    orchestrator_of(table.select([name for name in table.experts if name != "large"]), horizon=64).save(path)
    return path


def ask(running: Running, secret: str, *turns: str, **fields: Any) -> httpx2.Response:
    """An answer to a conversation, whose answers so far were all "yes"."""
    messages = [{"role": "user", "content": turns[0]}]
    for turn in turns[1:]:
        messages += [{"role": "assistant", "content": "yes"}, {"role": "user", "content": turn}]
    body = {"model": "leeroo", "messages": messages, **fields}
    headers = {"authorization": f"Bearer {secret}"}
    answer = httpx2.post(f"{running.url}/v1/chat/completions", json=body, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer


def admin(running: Running, path: str) -> str:
    return httpx2.get(running.url + path, headers={"authorization": f"Bearer {ADMIN}"}, timeout=60).text


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", html.partition("<main")[2]))


def stored(database: str, n: int) -> dict[str, Pair]:
    """What two policies decided, by decision, when there is so much of it."""
    ledger = Ledger.open(database)
    try:
        deadline = time.monotonic() + 20
        while True:
            found = ledger.run(lambda one: pairs_of(one, one.scalars(sa.select(pairs.c.id)).all()), False)
            if len(found) >= n or time.monotonic() > deadline:
                return found
            time.sleep(0.1)
    finally:
        ledger.close()


def test_a_shadow_decides_and_nothing_is_asked_for_it(
    run_dir: Path, cheap_run_dir: Path, pool: Path, experts_url: str, questions: list[str], tmp_path: Path
):
    database = f"sqlite:///{tmp_path}/leeroo.db"
    with serving(run_dir, pool, database, tmp_path, experts_url, shadow=cheap_run_dir) as running:
        secret, calls = running.key("steady"), get_json(f"{experts_url}/bills")["calls"]
        answers = [ask(running, secret, text, stream=i == 3) for i, text in enumerate(questions[:12])]
        by_name = ask(running, secret, questions[0], model="nano")
        assert "leeroo-policy" not in by_name.headers
        experts = {one.headers["leeroo-decision"]: one.headers["leeroo-expert"] for one in answers}
        assert {one.headers["leeroo-policy"] for one in answers} == {run_dir.name}
        told = stored(database, 12)
        assert {name: pair.first.expert for name, pair in told.items()} == experts
        assert get_json(f"{experts_url}/bills")["calls"] == calls + 13
        first, second = ([getattr(pair, which) for pair in told.values()] for which in ("first", "second"))
        assert {one.policy for one in second} == {"cheap"} and "large" not in {one.expert for one in second}
        assert sum(one.score for one in first) > sum(one.score for one in second) > 0
        agreed = sum(one.expert == two.expert for one, two in zip(first, second, strict=True))
        page, numbers = text_of(admin(running, "/")), admin(running, "/metrics")
        score, usd = (sum(getattr(one, name) for one in second) / 12 for name in ("score", "usd"))
        assert f"cheap {score:.3f} ${1000 * usd:,.2f} " in page
        assert f"the same expert first in {100 * agreed / 12:.0f}% of 12 requests" in page
        assert f"cheap would ask {second[0].expert} first" in page
        assert f'leeroo_both_decided_total{{first="{run_dir.name}",second="cheap"}} 12.0' in numbers
        assert f'leeroo_both_agreed_total{{first="{run_dir.name}",second="cheap"}} {float(agreed)}' in numbers


def test_a_share_of_conversations_is_answered_by_the_second_policy(
    run_dir: Path, cheap_run_dir: Path, pool: Path, experts_url: str, questions: list[str], tmp_path: Path
):
    database = f"sqlite:///{tmp_path}/leeroo.db"
    with serving(run_dir, pool, database, tmp_path, experts_url, shadow=cheap_run_dir, split=0.4) as running:
        secret = running.key("steady")
        policies = []
        for text in questions[:20]:
            first, second = ask(running, secret, text), ask(running, secret, text, "why?")
            policy = first.headers["leeroo-policy"]
            assert second.headers["leeroo-policy"] == policy
            assert policy == run_dir.name or first.headers["leeroo-expert"] != "large"
            body = {"decision": first.json()["id"], "score": 1 if policy == "cheap" else 0.5}
            headers = {"authorization": f"Bearer {secret}"}
            assert httpx2.post(f"{running.url}/v1/feedback", json=body, headers=headers).status_code == 200
            policies.append(policy)
        ledger = Ledger.open(database)
        (key,) = ledger.keys()
        ledger.close()
        shares = [place(key.key_id, [{"role": "user", "content": text}]) for text in questions[:20]]
        assert policies == ["cheap" if share < 0.4 else run_dir.name for share in shares]
        n = policies.count("cheap")
        assert 0 < n < 20
        assert {pair.first.policy for pair in stored(database, 40).values()} == {run_dir.name}
        page = text_of(admin(running, "/"))
        assert re.search(rf"cheap {2 * n} \S+ \d+ ms 1\.00 (± 0\.00 )?{n} ", page), page
        assert re.search(rf"{run_dir.name} {40 - 2 * n} \S+ \d+ ms 0\.50 ± 0\.00 {20 - n} ", page), page
        assert f'leeroo_policy_requests_total{{policy="cheap"}} {float(2 * n)}' in admin(running, "/metrics")


def test_conversations_are_spread_evenly_and_keep_their_place():
    for turns in (["a", "b"], [[{"type": "text", "text": "a"}], "b"]):
        messages = [{"role": "user", "content": turn} for turn in turns]
        system = {"role": "system", "content": "be brief"}
        assert place(1, messages[:1]) == place(1, messages) == place(1, [system, *messages]) != place(2, messages)
    places = [place(key, [{"role": "user", "content": f"{i}"}]) for key in range(10) for i in range(500)]
    assert sum(one < 0.1 for one in places) == pytest.approx(500, abs=70)
    assert place(1, [{"role": "system", "content": "x"}]) != place(1, [{"role": "system", "content": "y"}])


def test_a_shadow_that_fails_is_told_once_and_harms_nothing(
    run_dir: Path, cheap_run_dir: Path, pool: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    async def story() -> None:
        ledger = Ledger.open(f"sqlite:///{tmp_path}/leeroo.db")
        journal, shadow, versions = Journal(ledger), Shadow(ledger), Versions(tmp_path / "versions")
        await journal.begin()
        await shadow.begin()
        config = ServerConfig(run_dir=run_dir, pool=pool, database="", shadow=cheap_run_dir)
        service = load(config, versions, versions.begin(config), ledger, journal)
        assert service.second is not None
        service.second.planner.decider = None  # type: ignore[assignment]
        ledger.add_key("a")
        key: KeyInfo = ledger.keys()[0]
        fields: dict[str, Any] = {"model": "leeroo", "messages": [{"role": "user", "content": "What is 12 + 30?"}]}
        for number in range(3):
            request = ChatCompletionRequest(**fields)
            job = await service.first.begin(f"job-{number}", key, fields, request, Hints())
            assert (await service.first.complete(job))["choices"]
            shadow.decide(service, job)
        await service.close(5)
        await shadow.close()
        await journal.close()
        assert ledger.run(lambda connection: comparisons(connection, 0), False) == []
        ledger.close()

    asyncio.run(story())
    assert [record.message for record in caplog.records] == ["the policy beside could not decide"]


def test_a_store_of_before_is_used_on(ledger: Ledger):
    def make(connection: sa.Connection) -> None:
        connection.execute(sa.text(OLD_DECISIONS))
        connection.execute(sa.text(OLD_ROW.format(at=time.time() - 60)))

    ledger.run(make)

    async def go() -> None:
        for number in range(2):  # the second time, nothing is missing
            journal = Journal(ledger)
            await journal.begin()
            await asyncio.sleep(0)
            journal.add(Decision(f"new {number}", 1, time.time(), "large", 1, 5, 9, 0.1, "", {}, 200, "p" * 300))
            await journal.close()

    asyncio.run(go())
    found = ledger.run(lambda connection: recent(connection, 9), False)
    assert [(one.decision.id, one.decision.policy, one.feedback) for one in found] == [
        ("new 1", "p" * 200, None), ("new 0", "p" * 200, None), ("old", "", 0.5),
    ]  # fmt: skip
    (told,) = ledger.run(lambda connection: by_policy(connection, 0), False)
    assert (told.policy, told.requests, told.micro_usd, told.rated) == ("p" * 200, 2, 10, 0)
    assert "policy" in decisions.c


def test_sums_of_two_policies_are_by_pair(ledger: Ledger):
    async def go() -> None:
        journal, shadow = Journal(ledger), Shadow(ledger)
        await journal.begin()
        await shadow.begin()
        now = time.time()
        for i in range(4):
            other = Choice("b", "large" if i else "small", None if i == 3 else 0.5, 0.25)
            shadow._new.append(Pair(f"{i}", now, Choice("a", "large", 0.75, 0.5), other))
        shadow._new.append(Pair("before", now - 99, Choice("a", "large", None, 0.5), Choice("c", "large", None, 0.5)))
        await shadow.close()
        await journal.close()

    asyncio.run(go())
    one, old = ledger.run(lambda connection: comparisons(connection, 0), False)
    assert (one.policies, one.requests, one.agreed) == (("a", "b"), 4, 3)
    assert one.score == (pytest.approx(0.75), pytest.approx(0.5)) and one.usd == (0.5, 0.25)
    assert old.policies == ("a", "c") and old.score == (None, None)
    assert len(ledger.run(lambda connection: comparisons(connection, time.time() - 50), False)) == 1


@pytest.mark.parametrize(
    "options, words",
    [
        (["--split", "10%"], "--split 10%: goes with --shadow"),
        (["--shadow", "CHEAP", "--split", "0%"], "--split 0%: must be a share"),
        (["--shadow", "CHEAP", "--split", "100%"], "--split 100%: must be a share"),
        (["--shadow", "CHEAP", "--split", "150%"], "--split 150%: must be a share"),
        (["--shadow", "CHEAP", "--split", "10"], "--split 10: must be a share"),
        (["--shadow", "CHEAP", "--split", "-5%"], "--split -5%: must be a share"),
        (["--shadow", "nowhere"], "nowhere: holds no policy/"),
        (["--shadow", "RUN"], "is the run whose policy answers"),
        (["--shadow", "CHEAP"], "has no expert 'small', one of those of "),
    ],
)
def test_bad_options_are_one_line(
    options: list[str],
    words: str,
    run_dir: Path,
    cheap_run_dir: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
):
    database = ["--database", f"sqlite:///{tmp_path}/leeroo.db", "--port", "0"]
    missing = words.startswith("has no expert")
    run, second = (cheap_run_dir, run_dir) if missing else (run_dir, cheap_run_dir)
    places = {"CHEAP": str(second), "RUN": str(run)}
    names = ["nano", "calendar", "arithmetic"] if missing else ["nano", "calendar", "small", "arithmetic", "large"]
    pool = write_pool(tmp_path / "pool.yaml", names, "http://127.0.0.1:9")
    arguments = [str(run), "--pool", str(pool), *database, *(places.get(one, one) for one in options)]
    assert command.main(arguments) == 2
    error = capfd.readouterr().err
    assert words in error and error.count("\n") == 1, error
