"""What a hostile client sends is refused quickly, and nobody else notices."""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import json
import time
from typing import Any

import httpx2
import numpy as np
import pytest

from agents.server.batching import Batcher
from agents.server.wire import MOST_VALUES, ApiError, ChatCompletionRequest, parse, read_json
from tests.agents.server.running import Running

DIM = 384
ASK: dict[str, Any] = {"model": "leeroo", "messages": [{"role": "user", "content": "How far is it?"}], "max_tokens": 9}


@pytest.fixture(scope="module")
def secret(server: Running) -> str:
    return server.key("attacker")


def post(
    server: Running, secret: str, body: Any, path: str = "/v1/chat/completions", **headers: str
) -> httpx2.Response:
    """The answer to a body, given as JSON or as bytes."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    own = {"authorization": f"Bearer {secret}", **headers}
    return httpx2.post(f"{server.url}{path}", content=content, headers=own, timeout=60)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/route"])
@pytest.mark.parametrize("value", [3e38, -3e38, 1e20, np.nan, np.inf])
def test_an_embedding_that_overflows_is_refused(server: Running, secret: str, value: float, path: str):
    embedding = base64.b64encode(np.full(DIM, value, "<f4").tobytes()).decode()
    refused = post(server, secret, ASK, path, **{"leeroo-embedding": embedding})
    assert refused.status_code == 400 and "leeroo-embedding" in refused.json()["error"]["message"]


def test_the_fault_of_one_request_is_not_the_loss_of_its_batch():
    def work(items: Any) -> list[int]:
        time.sleep(0.02)  # so that the others wait together
        return [10 // item for item in items]

    async def all_of() -> list[Any]:
        batcher: Batcher[int, int] = Batcher(work)
        found = await asyncio.gather(*(batcher.submit(n) for n in (1, 2, 0, 5)), return_exceptions=True)
        batcher.close()
        return found

    first, second, third, fourth = asyncio.run(all_of())
    assert (first, second, fourth) == (10, 5, 2) and isinstance(third, ZeroDivisionError)


MANY = {
    "parts": {**ASK, "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * MOST_VALUES}]},
    "lists": {**ASK, "metadata": {"a": [[1]] * (2 * MOST_VALUES)}},
    "fields": {**ASK, **{f"k{i}": 1 for i in range(2 * MOST_VALUES)}},
    "no end": b'{"a": "' + b'\\"' * 1_000_000,
}


@pytest.mark.parametrize("name", MANY)
def test_a_body_of_very_many_values_takes_no_time(name: str):
    body = MANY[name]
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    started = time.process_time()
    with pytest.raises(ApiError) as refused:
        read_json(data)
    assert refused.value.status == 400 and time.process_time() - started < 1


@pytest.mark.parametrize("number", [2, 50_000])
def test_of_many_unknown_fields_one_is_named(number: int):
    started = time.process_time()
    with pytest.raises(ApiError, match="k0: there is no such field"):
        parse(ChatCompletionRequest, {**ASK, **{f"k{i}": 1 for i in range(number)}})
    assert time.process_time() - started < 0.2


def test_a_long_text_with_many_commas_is_no_body_of_many_values():
    body = json.dumps({**ASK, "user": 'a,[{"' * MOST_VALUES}).encode()
    assert read_json(body)["user"] == 'a,[{"' * MOST_VALUES


def test_a_very_long_text_does_not_keep_others_waiting(server: Running, secret: str):
    """Of a text that an encoder sees the beginning of, the rest is not split into tokens."""
    long = {**ASK, "messages": [{"role": "user", "content": "word " * 1_500_000}]}
    other = server.key("waiting")
    post(server, other, ASK)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        attack = pool.submit(post, server, secret, long)
        longest = 0.0
        while not attack.done():
            started = time.monotonic()
            assert post(server, other, ASK).status_code == 200
            longest = max(longest, time.monotonic() - started)
        assert attack.result().status_code == 200
    assert longest < 5  # it was 20
