"""Whatever ends an attempt, it is settled once, and no client's misfortune keeps an expert from others."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agents.server import app
from agents.server.app import headers_of
from agents.server.config import ServerConfig
from agents.server.gateway import Gateway
from agents.server.job import Hints, Job
from agents.server.journal import Journal
from agents.server.money import KeyInfo, Ledger, LedgerRow, Refused, StoreUnavailable
from agents.server.wire import ApiError, ChatCompletionRequest, parse, read_json
from agents.serving.asking import as_failure
from agents.serving.breaker import CircuitBreaker
from experts.live import UpstreamError
from leeroo_env import ExpertTable
from tests.agents.server.running import gateway_of, serving, write_pool
from tests.experts.live.upstream import WORDS, Upstream, chunk, completion, send, streamed, upstream

USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
DOWN = as_failure(UpstreamError("server", "500: oops", status=500), 0.0)


@pytest.fixture(scope="module")
def expert() -> Iterator[Upstream]:
    with upstream() as one:
        yield one


class Desk:
    """A gateway without HTTP, and its ledger; the breaker's clock stands still."""

    def __init__(self, gateway: Gateway, ledger: Ledger):
        self.gateway, self.ledger, self.now = gateway, ledger, 0.0
        gateway.breaker = CircuitBreaker(lambda: self.now)

    async def key(self, name: str = "own", usd: float | None = 5.0) -> KeyInfo:
        secret = await asyncio.to_thread(self.ledger.add_key, name, usd, "total")
        key = await self.ledger.authenticate(secret)
        assert key is not None
        return key

    async def job(self, key: KeyInfo, model: str = "leeroo", **fields: Any) -> Job:
        body = {"model": model, "messages": [{"role": "user", "content": "How far is it?"}], "max_tokens": 9, **fields}
        return await self.gateway.begin("chatcmpl-1", key, body, parse(ChatCompletionRequest, body), Hints())

    async def rows(self) -> list[LedgerRow]:
        """What was settled, newest first; nothing is reserved any more."""
        deadline = time.monotonic() + 10
        while any(account.reserved_micro for account in await asyncio.to_thread(self.ledger.accounts)):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        return await asyncio.to_thread(self.ledger.recent, 100)


Story = Callable[[Desk], Coroutine[Any, Any, None]]


@pytest.fixture
def tell(
    run_dir: Path, several_run_dir: Path, dear_tiny: Path, expert: Upstream, tmp_path: Path
) -> Callable[..., None]:
    """Runs a story with a desk; `several`: whose policy asks up to three experts."""
    names = list(ExpertTable.load(dear_tiny).experts)
    pool = write_pool(tmp_path / "pool.yaml", names, expert.url.removesuffix("/v1"))
    expert.behave = lambda sock, body: send(sock, completion() | {"usage": USAGE})

    @contextlib.asynccontextmanager
    async def desk(several: bool) -> AsyncIterator[Desk]:
        ledger = Ledger.open(f"sqlite:///{tmp_path}/leeroo.db")
        journal = Journal(ledger)
        await journal.begin()
        directory = several_run_dir if several else run_dir
        config = ServerConfig(run_dir=directory, pool=pool, database="", deadline_s=10.0)
        gateway = gateway_of(config, ledger, journal, tmp_path)
        yield Desk(gateway, ledger)
        await gateway.close(5)
        await journal.close()
        ledger.close()

    def run(story: Story, several: bool = False) -> None:
        async def whole() -> None:
            async with desk(several) as one:
                await story(one)

        asyncio.run(whole())

    return run


def test_a_decision_alone_does_not_use_up_the_trial_of_an_expert(tell: Any):
    async def story(desk: Desk) -> None:
        key = await desk.key()
        for name in desk.gateway.by_name:
            desk.gateway.breaker.record(name, [DOWN], name)
        desk.now = 100.0
        for _ in range(3):
            await desk.gateway.route(await desk.job(key))
        assert not any(desk.gateway.is_open(name) for name in desk.gateway.by_name)

    tell(story)


def test_requests_that_an_expert_refuses_keep_it_from_their_own_key_only(tell: Any, expert: Upstream):
    async def story(desk: Desk) -> None:
        bad, good = await desk.key("bad"), await desk.key("good")
        expert.behave = lambda sock, body: send(sock, {"error": {"message": "no"}}, 400)
        for _ in range(4):
            with pytest.raises(ApiError):
                await desk.gateway.complete(await desk.job(bad, "large"))
        names = desk.gateway._breaker_names
        large = desk.gateway.by_name["large"]
        assert desk.gateway.breaker.is_open(*names(bad, large))
        assert not desk.gateway.breaker.is_open(*names(good, large)) and not desk.gateway.is_open("large")
        assert {row.charge.outcome for row in await desk.rows()} == {"failed"}

    tell(story)


def test_a_server_that_is_down_is_down_for_all(tell: Any, expert: Upstream):
    async def story(desk: Desk) -> None:
        key, other = await desk.key(), await desk.key("other")
        expert.behave = lambda sock, body: send(sock, b"oops", 500)
        with pytest.raises(ApiError):
            await desk.gateway.complete(await desk.job(key, "large"))
        large = desk.gateway.by_name["large"]
        assert desk.gateway.breaker.is_open(*desk.gateway._breaker_names(other, large))

    tell(story)


def test_what_cannot_be_sent_is_the_fault_of_the_request():
    breaker = CircuitBreaker()
    breaker.record("1 large", [as_failure(UpstreamError("bad request", "out of range"), 0.0)], "large")
    assert not breaker.is_open("2 large", "large")
    with pytest.raises(ApiError, match="not valid JSON"):
        read_json(b'{"tools": [1e400]}')


@pytest.mark.parametrize("error", [Refused("key own", 0, 9), StoreUnavailable("away")])
def test_a_trial_that_cannot_be_paid_is_another_requests(tell: Any, monkeypatch: Any, error: Exception):
    async def story(desk: Desk) -> None:
        key = await desk.key()
        for name in desk.gateway.by_name:
            desk.gateway.breaker.record(name, [DOWN], name)
        desk.now = 100.0

        async def reserve(*_: Any) -> str:
            raise error

        desk.gateway.deadline_s = 1.0  # so that it does not wait for money

        monkeypatch.setattr(desk.ledger, "reserve", reserve)
        with pytest.raises((ApiError, StoreUnavailable)):
            await desk.gateway.complete(await desk.job(key))
        assert not any(desk.gateway.is_open(name) for name in desk.gateway.by_name)

    tell(story)


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_is_cancelled_is_settled(tell: Any, expert: Upstream, stream: bool):
    """At every moment: before, while and after the expert begins to answer."""

    def slow(sock: socket.socket, body: dict[str, Any]) -> None:
        time.sleep(0.1)
        if stream:
            streamed(*WORDS, chunk(usage=USAGE))(sock, body)
        else:
            send(sock, completion() | {"usage": USAGE})

    async def story(desk: Desk) -> None:
        key = await desk.key()
        expert.behave = slow
        delays_s = [0.0, 0.01, 0.03, 0.06, 0.09, 0.1, 0.11, 0.13]
        for delay_s in delays_s:
            job = await desk.job(key, "large", stream=stream)
            asked = asyncio.ensure_future(desk.gateway.open_stream(job) if stream else desk.gateway.complete(job))
            await asyncio.sleep(delay_s)
            asked.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                opened: Any = await asked
                if stream:
                    await desk.gateway.settle_once(opened)
        rows = await desk.rows()
        assert sum(row.charge.micro_usd for row in rows) == 4 * sum(body["model"] == "large" for body in expert.bodies)
        assert all(row.charge.outcome in ("answered", "cancelled") for row in rows)

    expert.bodies.clear()
    tell(story)


@pytest.mark.parametrize("stream", [False, True])
def test_a_fault_of_ours_is_settled_at_the_worst_case(tell: Any, monkeypatch: Any, stream: bool):
    async def story(desk: Desk) -> None:
        key = await desk.key()

        def broken(*_: Any) -> Any:
            raise RuntimeError("a bug")

        large = desk.gateway.by_name["large"]
        monkeypatch.setattr(large, "stream" if stream else "complete", broken)
        job = await desk.job(key, "large", stream=stream)
        with pytest.raises(ApiError) as refused:
            await (desk.gateway.open_stream(job) if stream else desk.gateway.complete(job))
        assert refused.value.status == 502 and "a bug" not in refused.value.message
        (row,) = await desk.rows()
        assert (row.charge.micro_usd, row.charge.lost_micro_usd) == (0, row.worst_micro)

    tell(story)


def test_a_key_that_is_revoked_meanwhile_asks_nobody_else(tell: Any, expert: Upstream):
    async def story(desk: Desk) -> None:
        key = await desk.key()

        def behave(sock: socket.socket, body: dict[str, Any]) -> None:
            desk.ledger.revoke("own")
            send(sock, b"oops", 500)

        expert.behave = behave
        with pytest.raises(ApiError) as refused:
            await desk.gateway.complete(await desk.job(key))
        assert refused.value.status == 401 and len(await desk.rows()) == 1

    tell(story)


def test_at_the_deadline_the_answers_so_far_are_delivered(tell: Any, expert: Upstream):
    def slow(sock: socket.socket, body: dict[str, Any]) -> None:
        time.sleep(0.3)
        send(sock, completion() | {"usage": USAGE})

    async def story(desk: Desk) -> None:
        key = await desk.key()
        expert.behave = slow
        desk.gateway.deadline_s = 1.2
        job = await desk.job(key)
        assert job.max_calls == 3
        await desk.gateway.complete(job)
        assert len(await desk.rows()) == 1

    tell(story, several=True)


def test_the_name_of_an_expert_cannot_add_headers():
    name = "a\r\nset-cookie: b\0\u2028c"
    job: Any = SimpleNamespace(id="1", expert=name, completions={}, cost_micro=1, left_micro=2, policy=name)
    assert headers_of(job)["leeroo-expert"] == headers_of(job)["leeroo-policy"] == "a set-cookie: b c"


def test_a_conversation_of_one_key_is_not_one_of_another(tell: Any):
    """Nor is a round of tools: who answers another key's conversation decides nothing."""

    async def story(desk: Desk) -> None:
        own, other = await desk.key("mine"), await desk.key("theirs")
        first = await desk.job(own)
        answer = (await desk.gateway.complete(first))["choices"][0]["message"]["content"]
        turn: list[Any] = [{"role": "user", "content": "How far is it?"}, {"role": "assistant", "content": answer}]
        following = [*turn, {"role": "user", "content": "go on"}]
        assert (await desk.job(own, messages=following)).current == desk.gateway.numbers[first.expert]
        assert (await desk.job(other, messages=following)).current is None

    tell(story)


def test_expired_reservations_are_looked_for_again_whatever_happens(monkeypatch: Any):
    monkeypatch.setattr(app, "RECOVER_EVERY_S", 0.01)
    errors: list[Exception] = [RuntimeError("a bug"), StoreUnavailable("away")]

    class Faulty:
        calls = 0

        def recover(self) -> None:
            self.calls += 1
            if errors:
                raise errors.pop()

    async def story() -> None:
        ledger: Any = Faulty()
        task = asyncio.create_task(app._recover(ledger))
        await asyncio.sleep(0.3)
        assert ledger.calls > 2 and not task.done()
        task.cancel()

    asyncio.run(story())


@pytest.mark.parametrize("stream", [False, True])
def test_for_a_client_that_went_away_no_further_expert_is_asked(
    run_dir: Path, dear_tiny: Path, expert: Upstream, tmp_path: Path, stream: bool
):
    def fails_late(sock: socket.socket, body: dict[str, Any]) -> None:
        time.sleep(0.4)
        send(sock, b"oops", 500)

    expert.behave = fails_late
    expert.bodies.clear()
    pool = write_pool(tmp_path / "pool.yaml", list(ExpertTable.load(dear_tiny).experts), expert.url[:-3])
    with serving(run_dir, pool, f"sqlite:///{tmp_path}/leeroo.db", tmp_path) as running:
        body = json.dumps(
            {"model": "leeroo", "messages": [{"role": "user", "content": "x"}], "stream": stream}
        ).encode()
        host, port = running.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as sock:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {running.key('gone')}\r\n"
            sock.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            while not expert.bodies:
                time.sleep(0.01)
        time.sleep(1.2)
        assert len(expert.bodies) == 1
