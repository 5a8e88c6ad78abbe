"""Self-play on a Ray cluster: a model's questions are written, and answered, as by one process, under one purse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from agents.selfplay.loop import run
from tests.agents.selfplay.test_loop import USD, Encoder, made, reply
from tests.experts.openai_server import OpenAIServer


def test_both_engines_play_the_same_round(ray_nodes: Any, server: OpenAIServer, tmp_path: Path):
    server.reply = reply
    rounds = {}
    for engine, address in (("local", None), ("ray", ray_nodes.address)):
        config = made(tmp_path / engine, rounds=1, engine=engine, address=address)
        rounds[engine] = run(config, Encoder())
    assert rounds["ray"] == rounds["local"] and rounds["ray"][1].written.kept > 30
    assert 0 < rounds["ray"][1].spent_usd <= USD
    names = ["queries.jsonl", "voters.json", "asks.json", "table/queries.parquet", "table/embeddings.npy"]
    here, there = (tmp_path / engine / "run" / "rounds" / "001" for engine in ("ray", "local"))
    assert all((here / name).read_bytes() == (there / name).read_bytes() for name in names)
    answers = [pq.ParquetFile(path / "table" / "answers.parquet").read() for path in (here, there)]
    assert answers[0].drop_columns(["latency_s"]) == answers[1].drop_columns(["latency_s"])
    assert set(server.requests.values()) == {2} and server.most_at_once <= 4 * 3
