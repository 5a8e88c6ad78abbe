"""kill -9 of the server and its workers under load: no cent is overdrawn, none lost, none charged twice."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from agents.server.money import Ledger
from leeroo_env import ExpertTable
from tests.agents.server.running import (
    Running,
    first_key,
    free_port,
    serving_process,
    table_experts,
    write_pool,
)

KILLS = int(os.environ.get("LEEROO_KILLS", "1"))  # of each test
MOST_TOKENS = 40_000
DELAY_S = 0.03


async def under_load(server: Running, secret: str, texts: list[str], seed: int, after_s: float) -> int:
    """Asks without pause, and kills the server after a while, the first time not before it has answered twice; returns
    the number of answers that came."""
    answered, killed, busy = 0, False, asyncio.Event()

    async def one(number: int) -> None:
        nonlocal answered
        draw = random.Random(f"{seed} {number}")
        async with httpx2.AsyncClient(headers={"authorization": f"Bearer {secret}"}, timeout=20) as client:
            while not killed:
                content = [{"role": "user", "content": draw.choice(texts)}]
                body = {
                    "model": "leeroo",
                    "messages": content,
                    "stream": draw.random() < 0.3,
                    "max_tokens": MOST_TOKENS,
                }
                with contextlib.suppress(httpx2.HTTPError):
                    response = await client.post(f"{server.url}/v1/chat/completions", json=body)
                    assert response.status_code in (200, 429, 503), response.text
                    answered += response.status_code == 200
                    if answered > 1:
                        busy.set()

    asking = [asyncio.create_task(one(number)) for number in range(12)]
    await asyncio.sleep(after_s)
    if seed == 0:
        await asyncio.wait_for(busy.wait(), 60)
    server.kill()
    killed = True
    await asyncio.gather(*asking)
    return answered


@pytest.mark.parametrize("workers", [1, 2])
def test_kills_under_load(run_dir: Path, dear_tiny: Path, tmp_path: Path, workers: int):
    database = f"sqlite:///{tmp_path}/leeroo.db"
    table = ExpertTable.load(dear_tiny)
    texts = table.queries["text"].to_pylist()
    draw = random.Random(workers)
    ledger = Ledger.open(database)
    secret = ledger.add_key("load", 1e4, "total")
    ledger.close()
    with table_experts(dear_tiny, DELAY_S) as url:
        pool = write_pool(tmp_path / "pool.yaml", list(table.experts), url, max_tokens=MOST_TOKENS)
        answered, port = 0, free_port()
        for number in range(KILLS):
            with serving_process(
                run_dir, pool, database, tmp_path, url, "--workers", str(workers), "--deadline-s", "5", port=port
            ) as server:
                answered += asyncio.run(under_load(server, secret, texts, number, draw.uniform(0.5, 3.0)))
        billed = sum(server.billed().values())
    assert answered > KILLS
    check(database, billed)


def check(database: str, billed: int) -> None:
    """What was settled and what expires add up to no less than what was billed, each attempt once."""
    ledger = Ledger.open(database)
    try:
        ledger.recover(time.time() + 3_600)
        rows: list[Any] = ledger.recent(1_000_000)
        account = next(account for account in ledger.accounts() if account.name == "load")
    finally:
        ledger.close()
    assert len({row.reservation_id for row in rows}) == len(rows)
    known = sum(row.charge.micro_usd + row.charge.lost_micro_usd for row in rows if row.charge.outcome != "expired")
    expired = sum(row.charge.micro_usd for row in rows if row.charge.outcome == "expired")
    assert known <= billed <= known + expired
    assert account.reserved_micro == 0
    assert account.spent_micro == sum(row.charge.micro_usd for row in rows)


def test_the_first_start_makes_a_key_and_says_how_to_ask(run_dir: Path, pool: Path, experts_url: str, tmp_path: Path):
    with serving_process(run_dir, pool, f"sqlite:///{tmp_path}/leeroo.db", tmp_path, experts_url) as server:
        answer = server.client(first_key(server)).chat.completions.create(
            model="leeroo", messages=[{"role": "user", "content": "What is 12 + 30?"}]
        )
        assert answer.choices[0].message.content
        assert "LEEROO_API_KEY" in server.log.read_text() and "curl" in server.log.read_text()
