"""Keys never spend more than they have, and are charged what the experts bill: whatever clients and kills do."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import socket
import time
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import torch

from agents import Orchestrator
from agents.policies.answer_model import calls_from_features
from agents.routers import Context
from agents.server.money import Ledger
from leeroo_env import ExpertTable
from leeroo_env.dynamics import current_rows, make_rules, new_episodes, step
from tests.agents.server.running import Running, serving


@pytest.fixture(scope="module")
def texts(dear_tiny: Path) -> list[str]:
    return ExpertTable.load(dear_tiny).queries["text"].to_pylist()


def body_of(text: str, **kwargs: Any) -> dict[str, Any]:
    return {"model": "leeroo", "messages": [{"role": "user", "content": text}], **kwargs}


async def post_all(server: Running, secret: str, bodies: list[dict[str, Any]]) -> list[httpx2.Response]:
    limits = httpx2.Limits(max_connections=None)
    headers = {"authorization": f"Bearer {secret}"}
    async with httpx2.AsyncClient(base_url=server.url, headers=headers, timeout=120, limits=limits) as client:
        return await asyncio.gather(*(client.post("/v1/chat/completions", json=body) for body in bodies))


def test_500_requests_at_once_on_a_key_with_one_dollar(server: Running, texts: list[str]):
    """All are answered or refused for want of money; together they cost what was billed, and not more than a dollar."""
    secret = server.key("dollar", 1.0)
    before = sum(server.billed().values())
    bodies = [body_of(texts[i % len(texts)], stream=i % 5 == 0, max_tokens=40_000) for i in range(500)]
    responses = asyncio.run(post_all(server, secret, bodies))
    assert {response.status_code for response in responses} <= {200, 429}
    assert all(r.json()["error"]["code"] == "insufficient_quota" for r in responses if r.status_code == 429)
    billed = sum(server.billed().values()) - before
    assert server.spent("dollar") == billed <= 1_000_000
    assert billed > 900_000, "what calls in flight hold is waited for"


def test_teams_and_the_server_have_limits_too(server: Running, texts: list[str]):
    ledger = Ledger.open(server.database)
    ledger.set_team("crew", 0.5, "total")
    ledger.close()
    secrets = [server.key(f"crew-{i}", team="crew") for i in range(2)]
    asked = [asyncio.run(post_all(server, secret, [body_of(t) for t in texts[:40]])) for secret in secrets]
    assert server.spent("crew-0") + server.spent("crew-1") <= 500_000
    assert any(response.status_code == 429 for responses in asked for response in responses)


def test_a_client_that_goes_away_is_charged_what_is_billed(server: Running, texts: list[str]):
    secret = server.key("gone")
    before = sum(server.billed().values())
    host, port = server.url.removeprefix("http://").split(":")
    for text in texts[:20]:
        content = json.dumps(body_of(text, stream=True)).encode()
        fields = f"host: x\r\nauthorization: Bearer {secret}\r\ncontent-length: {len(content)}\r\n\r\n"
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(f"POST /v1/chat/completions HTTP/1.1\r\n{fields}".encode() + content)
            time.sleep(random.Random(text).uniform(0, 0.05))
    until(lambda: server.spent("gone") == sum(server.billed().values()) - before > 0)


@pytest.mark.parametrize("calls", ["one", "several"])
def test_an_episode_through_the_server_scores_as_in_the_evaluation(
    calls: str, pool: Path, experts_url: str, dear_tiny: Path, tmp_path: Path, request: pytest.FixtureRequest
):
    """The same score and money as by the rules of an episode, at budgets from the cheapest expert to the dearest."""
    policy = request.getfixturevalue("run_dir" if calls == "one" else "several_run_dir")
    table, orchestrator = ExpertTable.load(dear_tiny), Orchestrator.load(policy)
    with serving(policy, pool, f"sqlite:///{tmp_path}/leeroo.db", tmp_path, experts_url) as server:
        for number, share in enumerate((0.05, 0.2, 0.6)):
            total_usd = 64 * share * float(table.mean_cost_usd().max())
            rows = table.rows("test")[64 * number : 64 * (number + 1)]
            got = episode(server, f"episode-{number}", total_usd, table, rows.tolist())
            assert got == pytest.approx(expected(orchestrator, table, rows, total_usd), abs=64e-6)


def episode(server: Running, name: str, total_usd: float, table: ExpertTable, rows: list[int]) -> tuple[float, float]:
    """Score and dollars of the questions of an episode, asked one after the other with a key of its own."""
    client = server.client(server.key(name, total_usd))
    texts, ids, score = table.queries["text"].to_pylist(), table.queries["query_id"].to_pylist(), 0.0
    columns = [table.answers[column].to_pylist() for column in ("query_id", "expert", "score")]
    scores = {(query, expert): one for query, expert, one in zip(*columns, strict=True)}
    for place, row in enumerate(rows):
        x = table.embeddings[row].float().numpy().astype("<f4")  # the table's, which has them in half precision
        told = {"leeroo-embedding": base64.b64encode(x.tobytes()).decode()}
        told["leeroo-queries-left"] = str(len(rows) - place)
        try:
            reply = client.chat.completions.create(**body_of(texts[row]), extra_headers=told)
        except openai.RateLimitError:
            continue
        is_cut = reply.choices[0].finish_reason == "length"
        score += 0.0 if is_cut else scores[ids[row], reply.model]
    return score, server.spent(name) / 1e6


def expected(
    orchestrator: Orchestrator, table: ExpertTable, rows: torch.Tensor, total_usd: float
) -> tuple[float, float]:
    """The same by the rules of an episode."""
    router, n = orchestrator.router(table), len(rows)
    x, texts = table.embeddings[rows].float().numpy(), table.queries["text"].take(rows.numpy()).to_pylist()
    features = torch.zeros(len(table), 2 * len(table.experts))
    features[rows] = orchestrator.features(x, texts, [""] * n)
    reliability = features[:, : len(table.experts)].clamp(0, 1)
    rules = make_rules(table, "test", n, max_calls=router.max_calls, reliability=reliability)
    state = new_episodes(rules, rows[None], torch.tensor([total_usd], dtype=torch.float64))
    score = 0.0
    while int(state.t) < n:
        made = calls_from_features(state.call_features, router.max_calls) if router.max_calls > 1 else None
        seen = features[current_rows(state)]
        action = router.choose(Context(seen, state.left_usd, n - state.t, made))
        state, outcome = step(rules, state, action)
        score += float(outcome.score)
    return score, total_usd - float(state.left_usd)


def until(condition: Any, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
