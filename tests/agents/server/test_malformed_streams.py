"""Whatever an expert sends, clients read valid events of OpenAI's shape, and nothing stays reserved or under way."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionChunk

from agents.server.money import Ledger
from leeroo_env import ExpertTable
from tests.agents.server.running import Running, serving, write_pool
from tests.experts.live.test_malformed import FAST, PARTS
from tests.experts.live.upstream import Upstream, begin, end, event, part, reset, upstream

ENDS = ["done", "end", "reset", "garbage"]


@pytest.fixture(scope="module")
def strange() -> Iterator[Upstream]:
    with upstream() as one:
        yield one


@pytest.fixture(scope="module")
def running(
    run_dir: Path, dear_tiny: Path, strange: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("strange")
    pool = write_pool(directory / "pool.yaml", list(ExpertTable.load(dear_tiny).experts), strange.url[:-3])
    with serving(run_dir, pool, f"sqlite:///{directory}/leeroo.db", directory, deadline_s=5.0) as one:
        yield one


@pytest.fixture(scope="module")
def secret(running: Running) -> str:
    return running.key("reader", 5.0)


@FAST
@given(parts=st.lists(PARTS | st.binary(max_size=50), max_size=4), ending=st.sampled_from(ENDS))
def test_what_a_client_reads_is_always_valid(
    running: Running, secret: str, strange: Upstream, parts: list[Any], ending: str
):
    def behave(sock: socket.socket, body: dict[str, Any]) -> None:
        begin(sock)
        part(sock, event({"choices": [{"delta": {"content": "a"}}]}))
        for value in parts:
            part(sock, event(value))
        if ending == "done":
            part(sock, event(b"[DONE]"))
        if ending in ("done", "end"):
            end(sock)
        elif ending == "reset":
            reset(sock)
        else:
            sock.sendall(b"zzz\r\n")
            sock.shutdown(socket.SHUT_RDWR)

    strange.behave = behave
    asked = {"model": "large", "messages": [{"role": "user", "content": "x"}], "stream": True, "logprobs": True}
    headers = {"authorization": f"Bearer {secret}"}
    answer = httpx2.post(f"{running.url}/v1/chat/completions", json=asked, headers=headers, timeout=20)
    if answer.status_code != 200:
        assert answer.status_code in (400, 429, 502, 504) and answer.json()["error"]["message"]
        return
    *events, last = answer.text.removesuffix("\n\n").split("\n\n")
    assert events and all(one.startswith("data: ") and "\n" not in one for one in [*events, last])
    for one in events:
        assert ChatCompletionChunk.model_validate(json.loads(one[6:]))
    assert last == "data: [DONE]" or json.loads(last[6:])["error"]["message"]


def test_nothing_is_left_under_way(running: Running):
    ledger = Ledger.open(running.database)
    deadline = time.monotonic() + 10
    while any(account.reserved_micro for account in ledger.accounts()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    rows = ledger.recent(1_000)
    ledger.close()
    assert rows and {row.charge.outcome for row in rows} <= {"answered", "failed", "cancelled"}
