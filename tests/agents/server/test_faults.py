"""A fault of one expert is another's chance until the first byte reached the client; the operator pays for it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from agents.server.money import Ledger
from leeroo_env import ExpertTable
from tests.agents.server.running import Running, serving, write_pool
from tests.experts.live.upstream import (
    WORDS,
    Upstream,
    begin,
    chunk,
    completion,
    event,
    part,
    reset,
    send,
    streamed,
    upstream,
)

Behaviour = Callable[[socket.socket, dict[str, Any]], None]


def good(sock: socket.socket, body: dict[str, Any]) -> None:
    if body.get("stream"):
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        streamed(*WORDS, chunk(usage=usage))(sock, body)
    else:
        send(sock, completion())


def breaks_off(sock: socket.socket, body: dict[str, Any]) -> None:
    """After the first words."""
    begin(sock)
    for value in WORDS[:2]:
        part(sock, event(value))
    time.sleep(0.1)
    reset(sock)


@pytest.fixture(scope="module")
def faulty() -> Iterator[Upstream]:
    with upstream() as server:
        yield server


@pytest.fixture(scope="module")
def sound() -> Iterator[Upstream]:
    with upstream() as server:
        server.behave = good
        yield server


@pytest.fixture(scope="module")
def two_kinds(
    run_dir: Path, dear_tiny: Path, faulty: Upstream, sound: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """A server whose dearest expert is faulty, and does not remember it: a breaker would hide later faults."""
    directory = tmp_path_factory.mktemp("faults")
    names = list(ExpertTable.load(dear_tiny).experts)
    bad = {"base_url": faulty.url, "timeout_s": 1.0, "first_token_s": 0.5, "can": ["tools"]}
    others = {name: {"base_url": sound.url} for name in names[:-1]} | {
        "small": {"base_url": sound.url, "can": ["tools"]}
    }
    pool = write_pool(directory / "pool.yaml", names, "", large=bad, max_tokens=1000, **others)
    with serving(run_dir, pool, f"sqlite:///{directory}/leeroo.db", directory, deadline_s=10.0) as running:
        yield running


@pytest.fixture
def hard(dear_tiny: Path, two_kinds: Running, sound: Upstream, faulty: Upstream) -> Iterator[str]:
    """A question for which the faulty expert is chosen; its breaker is closed."""
    faulty.behave = good
    client = two_kinds.client(two_kinds.key(f"finder-{time.monotonic()}"))
    texts = ExpertTable.load(dear_tiny).queries["text"].to_pylist()
    deadline = time.monotonic() + 30
    while True:
        for text in texts[:60]:
            reply = client.chat.completions.create(model="leeroo", messages=[{"role": "user", "content": text}])
            if reply.model == "large":
                yield text
                return
        assert time.monotonic() < deadline
        time.sleep(1)  # the breaker has to close


FAULTS: dict[str, Behaviour] = {
    "rate limit": lambda sock, body: send(sock, {"error": {"message": "slow down"}}, 429, retry_after="1"),
    "server error": lambda sock, body: send(sock, b"oops", 500),
    "html": lambda sock, body: send(sock, b"<html>busy</html>"),
    "no json": lambda sock, body: send(sock, b'{"choices": ['),
    "error in 200": lambda sock, body: send(sock, {"error": {"message": "overloaded", "code": 503}}),
    "reset": lambda sock, body: reset(sock),
    "bad request": lambda sock, body: send(sock, {"error": {"message": "too long"}}, 400),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", [*FAULTS, "hangs"])
def test_before_the_first_byte_another_expert_answers(
    two_kinds: Running, faulty: Upstream, hard: str, fault: str, stream: bool
):
    faulty.behave = faulty.hang if fault == "hangs" else FAULTS[fault]
    name = f"key-{fault}-{stream}"
    client = two_kinds.client(two_kinds.key(name))
    before = len(faulty.bodies)
    asked: Any = client.chat.completions.create(
        model="leeroo", messages=[{"role": "user", "content": hard}], stream=stream
    )
    models = {one.model for one in asked} if stream else {asked.model}
    assert len(models) == 1 and "large" not in models and len(faulty.bodies) == before + 1
    rows = rows_of(two_kinds, name)
    assert [row.charge.outcome for row in rows] == ["answered", "failed"]
    assert rows[1].charge.micro_usd == 0
    assert (rows[1].charge.lost_micro_usd > 0) == (fault not in ("rate limit", "bad request", "error in 200"))


def test_after_the_first_byte_an_error_event_ends_the_stream(two_kinds: Running, faulty: Upstream, hard: str):
    faulty.behave = breaks_off
    client = two_kinds.client(two_kinds.key("broken"))
    words = []
    with pytest.raises(openai.APIError, match="broke off"):
        for one in client.chat.completions.create(
            model="leeroo", messages=[{"role": "user", "content": hard}], stream=True
        ):
            words.append(one.choices[0].delta.content)
    assert "".join(word or "" for word in words) == "Hello"
    (row,) = rows_of(two_kinds, "broken")
    assert row.charge.outcome == "failed" and row.charge.micro_usd > 0 and row.charge.lost_micro_usd > 0


def test_an_expert_that_is_asked_by_name_has_no_substitute(two_kinds: Running, faulty: Upstream):
    faulty.behave = FAULTS["server error"]
    client = two_kinds.client(two_kinds.key("named"))
    with pytest.raises(openai.InternalServerError) as error:
        client.chat.completions.create(model="large", messages=[{"role": "user", "content": "x"}])
    assert error.value.status_code == 502


def test_a_request_that_all_refuse_is_the_clients_fault(two_kinds: Running, faulty: Upstream, sound: Upstream):
    faulty.behave = sound.behave = FAULTS["bad request"]
    try:
        tools: Any = [{"type": "function", "function": {"name": "f"}}]
        client = two_kinds.client(two_kinds.key("refused"))
        with pytest.raises(openai.BadRequestError, match="too long"):
            client.chat.completions.create(model="leeroo", messages=[{"role": "user", "content": "x"}], tools=tools)
    finally:
        sound.behave = good


def test_a_store_that_is_gone_closes_the_server(
    run_dir: Path, pool: Path, experts_url: str, tmp_path: Path, postgres: Any
):
    """503 while it is away, answers again when it is back."""
    url = postgres.new_store()
    with serving(run_dir, pool, url, tmp_path, experts_url) as running:
        secret = running.key("steady")
        ask = lambda: httpx2.post(  # noqa: E731
            f"{running.url}/v1/chat/completions",
            json={"model": "leeroo", "messages": [{"role": "user", "content": "x"}]},
            headers={"authorization": f"Bearer {secret}"},
            timeout=60,
        )
        assert ask().status_code == 200
        postgres.stop()
        try:
            refused = ask()
            assert refused.status_code == 503 and refused.json()["error"]["code"] == "ledger_unavailable"
            assert httpx2.get(f"{running.url}/ready", timeout=60).status_code == 503
        finally:
            postgres.start()
        deadline = time.monotonic() + 30
        while ask().status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.3)


def rows_of(running: Running, key: str) -> list[Any]:
    """What the ledger has of a key, newest first, as soon as all is settled."""
    ledger = Ledger.open(running.database)
    try:
        deadline = time.monotonic() + 5
        while any(account.name == key and account.reserved_micro for account in ledger.accounts()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return [row for row in ledger.recent(1000) if row.key == key]
    finally:
        ledger.close()
