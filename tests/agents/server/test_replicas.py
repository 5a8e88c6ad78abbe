"""Replicas behind a load balancer share a PostgreSQL database: a key has its money once, a conversation one expert."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from leeroo_env import ExpertTable
from tests.agents.server.postgres import Postgres
from tests.agents.server.running import Running, serving_process


@pytest.fixture(scope="module")
def replicas(
    run_dir: Path, pool: Path, experts_url: str, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Running]]:
    """Two programs that know nothing of each other but the database."""
    store, directory = postgres.new_store(), tmp_path_factory.mktemp("replicas")
    arguments: tuple[Any, ...] = (run_dir, pool, store, directory, experts_url)
    with serving_process(*arguments) as first, serving_process(*arguments) as second:
        yield [first, second]


def question(text: str, **kwargs: Any) -> dict[str, Any]:
    return {"model": "leeroo", "messages": [{"role": "user", "content": text}], **kwargs}


def test_one_key_at_two_replicas_is_never_overdrawn(replicas: list[Running], dear_tiny: Path):
    secret = replicas[0].key("shared", 1.0)
    texts = ExpertTable.load(dear_tiny).queries["text"].to_pylist()[:240]
    before = sum(replicas[0].billed().values())

    async def ask(texts: list[str]) -> list[int]:
        """Status of the answer to each text, all asked at once, at either replica in turn."""
        limits = httpx2.Limits(max_connections=None)
        headers = {"authorization": f"Bearer {secret}"}
        async with httpx2.AsyncClient(headers=headers, timeout=120, limits=limits) as client:
            calls = [
                client.post(f"{replicas[i % 2].url}/v1/chat/completions", json=question(text, max_tokens=40_000))
                for i, text in enumerate(texts)
            ]
            return [response.status_code for response in await asyncio.gather(*calls)]

    assert asyncio.run(ask(texts[:2])) == [200, 200], "both sell"
    statuses = asyncio.run(ask(texts[2:]))
    assert set(statuses) == {200, 429}
    refused = texts[2:][statuses.index(429)]
    assert asyncio.run(ask([refused, refused])) == [429, 429], "both know that the money is gone"
    billed = sum(replicas[0].billed().values()) - before
    assert replicas[1].spent("shared") == billed <= 1_000_000
    assert billed > 900_000


def test_what_one_replica_learned_the_other_knows(replicas: list[Running]):
    """Who answers a conversation, and decisions, which are rated where the client happens to arrive."""
    first, second = replicas
    secret = first.key("everywhere", 5.0)
    reply = first.client(secret).chat.completions.create(**question("What is 12 + 30?"))
    asked = [{"role": "user", "content": "What is 12 + 30?"}]
    answer = {"role": "assistant", "content": reply.choices[0].message.content}
    headers = {"authorization": f"Bearer {secret}"}
    body = {"model": "leeroo", "messages": [*asked, answer, {"role": "user", "content": "And 12 + 31?"}]}
    with httpx2.Client(base_url=second.url, headers=headers, timeout=60) as client:
        told = poll(lambda: client.post("/v1/route", json=body).json(), lambda told: "conversation" in told["why"])
        assert told["expert"] == reply.model or "worth leaving" in told["why"]
        rated = client.post("/v1/feedback", json={"decision": reply.id, "score": 1})
        assert rated.status_code == 200, rated.text


def poll(get: Any, is_right: Any) -> Any:
    """What `get` gives once that is right: conversations and decisions are written a moment after the answer."""
    deadline = time.monotonic() + 10
    while not is_right(got := get()):
        assert time.monotonic() < deadline, got
        time.sleep(0.1)
    return got
