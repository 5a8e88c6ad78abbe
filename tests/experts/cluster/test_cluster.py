"""Collecting on a Ray cluster of two nodes on this machine: the same table as from one process, and what kills cost.

The server, which counts what it answers, is the judge of kills. Only calls in flight may be made again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experts import encoder as encoder_module
from experts.cluster import data
from experts.cluster.connect import BATCHES_IN_FLIGHT, Cluster
from experts.cluster.data import read_rows
from experts.collect.command import main
from experts.collect.pipeline import Collected, collect
from experts.collect.store import parts_directory, read_parts
from experts.data.queries import load_queries
from experts.encoder import Encoder
from experts.pool import load_pool
from experts.types import Query
from leeroo_env.errors import InputError
from tests.conftest import RAY_NODE
from tests.experts.collect.test_pipeline import same_tables
from tests.experts.collecting import HashEncoder, make_queries, write_pool
from tests.experts.openai_server import OpenAIServer
from tests.experts.tiny_llama import make_tiny_llama

pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")

CONCURRENCY = 3  # of each expert of `write_pool`


def run(pool: Path, out: Path, queries: Sequence[Query], **options: Any) -> Collected:
    return collect(load_pool(pool), queries, out, HashEncoder(), **options)


def when(condition: Callable[[], bool], act: Callable[[], object]) -> threading.Thread:
    """A thread that waits for something, and then acts."""

    def work() -> None:
        while not condition():
            time.sleep(0.005)
        act()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def asker_pids() -> list[int]:
    """The processes that ask, of those that this one has started."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    family = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    found = subprocess.run(["pgrep", "-f", "ray::Asker"], capture_output=True, text=True).stdout.split()
    return [pid for pid in map(int, found) if pid in family]


def kill_askers() -> None:
    """All of them: some may be left from tests before."""
    for pid in asker_pids():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def server_usd(server: OpenAIServer) -> float:
    """What the server would bill: its prices are so that tokens of prompts cost half of those of answers."""
    return sum(n * len(prompt.split()) * 3e-3 for prompt, n in server.answered.items())


def test_both_engines_make_the_same_table(ray_cluster: Cluster, server: OpenAIServer, tmp_path: Path, monkeypatch):
    """Row for row and bit for bit, with a server, a local model, grades and embeddings in several pieces."""
    monkeypatch.setattr(encoder_module, "TEXTS_PER_SHARD", 8)
    monkeypatch.setattr(data, "GRADES_PER_PIECE", 15)
    make_tiny_llama(tmp_path / "models" / "one", seed=1)
    pool, queries = write_pool(tmp_path, ["alpha"]), make_queries(24)
    with pool.open("a") as stream:
        stream.write("  - {name: one, backend: huggingface, model: models/one, usd_per_mtok_in: 1,\n")
        stream.write("     usd_per_mtok_out: 2, max_tokens: 8, batch_size: 16}\n")
    model = str(make_tiny_llama(tmp_path / "encoder"))
    for name, engine in (("ray", ray_cluster), ("local", None)):
        encoder = Encoder(model, cache_dir=tmp_path / f"cache-{name}")
        out = tmp_path / name / "table"  # a model without training may say nothing
        collected = collect(load_pool(pool), queries, out, encoder, grade_empty=True, cluster=engine)
        assert collected.missing == 0 and collected.table is not None and len(collected.table) == 24
    assert same_tables(tmp_path / "ray" / "table", tmp_path / "local" / "table")
    assert set(server.requests.values()) == {2} and server.most_at_once <= CONCURRENCY
    again = run(pool, tmp_path / "ray" / "table", queries, grade_empty=True, cluster=ray_cluster)
    assert again.spent_usd == 0 and server.requests.total() == 48


def test_a_worker_and_a_node_are_killed(
    ray_nodes: Any, ray_cluster: Cluster, server: OpenAIServer, tmp_path: Path, capfd
):
    """Only what was in flight is asked again, the cap holds through the first kill, and all that the server billed is
    accounted for."""
    server.delay_s = 0.03
    pool, queries, out = write_pool(tmp_path), make_queries(150), tmp_path / "table"
    killer = when(lambda: server.requests.total() > 30, kill_askers)
    first = run(pool, out, queries, experts=["alpha"], max_usd=0.85, cluster=ray_cluster)  # all of them are 0.9
    killer.join()
    assert first.queues[0].capped and first.missing > 0
    assert server_usd(server) <= first.spent_usd * (1 + 1e-9) and 0.5 < first.spent_usd <= 0.85

    before, node = server.requests.total(), next(iter(ray_nodes.worker_nodes))
    killer = when(
        lambda: server.requests.total() > before + 60, lambda: ray_nodes.remove_node(node, allow_graceful=False)
    )
    second = run(pool, out, queries, cluster=ray_cluster)
    killer.join()
    ray_nodes.add_node(**RAY_NODE)
    assert second.missing == 0 and "calls are made again" in capfd.readouterr().err
    again = {prompt for prompt, n in server.requests.items() if n > 1}
    assert 0 < len(again) <= 2 * BATCHES_IN_FLIGHT * CONCURRENCY and max(server.requests.values()) <= 3
    rows = read_parts(parts_directory(out)).to_pylist()
    assert len([row for row in rows if not row["error"]]) == 300 == len({row["key"] for row in rows})
    assert {f"q{prompt.split()[-1]}" for prompt in again} <= {row["query_id"] for row in rows if row["lost_usd"]}
    billed_usd = sum(row["cost_usd"] + row["lost_usd"] for row in rows)
    assert server_usd(server) <= billed_usd * (1 + 1e-9) == pytest.approx(first.spent_usd + second.spent_usd)
    assert run(pool, tmp_path / "uninterrupted", queries).missing == 0
    assert same_tables(out, tmp_path / "uninterrupted")


def test_the_driver_is_killed_and_the_next_run_goes_on(ray_nodes: Any, server: OpenAIServer, tmp_path: Path, capsys):
    server.delay_s = 0.03
    write_pool(tmp_path, ["alpha"])
    lines = [
        f'{{"query_id": "{q.query_id}", "text": "{q.text}", "reference": "{q.reference}"}}' for q in make_queries(90)
    ]
    (tmp_path / "questions").mkdir()
    for i in range(3):  # a directory is read by Ray Data
        (tmp_path / "questions" / f"{i}.jsonl").write_text("\n".join(lines[30 * i : 30 * i + 30]) + "\n")
    paths = [
        "--pool",
        str(tmp_path / "pool.yaml"),
        "--queries",
        str(tmp_path / "questions"),
        "--out",
        str(tmp_path / "table"),
    ]
    arguments = [
        *paths,
        "--engine",
        "ray",
        "--address",
        ray_nodes.address,
        "--encoder",
        str(make_tiny_llama(tmp_path / "e")),
    ]
    driver = subprocess.Popen([sys.executable, "-m", "experts.collect", *arguments])
    when(lambda: server.requests.total() > 45, driver.kill).join()
    driver.wait()
    time.sleep(0.3)
    rows = read_parts(parts_directory(tmp_path / "table")).to_pylist()
    stored = {f"question {row['query_id'][1:]}" for row in rows}
    assert 20 < len(stored) < 90
    assert main(arguments) == 0
    assert all(server.requests[prompt] == 1 for prompt in stored) and len(server.requests) == 90
    assert server.requests.total() - 90 <= BATCHES_IN_FLIGHT * CONCURRENCY
    assert "alpha: " in capsys.readouterr().out
    assert pq.ParquetFile(tmp_path / "table" / "queries.parquet").read()["query_id"].to_pylist() == [
        f"q{i}" for i in range(90)
    ]


def test_queries_in_many_files(ray_cluster: Cluster, tmp_path: Path):
    rows = [{"query_id": str(i), "text": f"text {i}", "options": ["a", "b"], "answer": "B"} for i in range(20)]
    for i in range(4):
        pq.write_table(pa.Table.from_pylist(rows[5 * i : 5 * i + 5]), tmp_path / f"{i}.parquet")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "whole.parquet")
    whole = load_queries(tmp_path / "whole.parquet")
    (tmp_path / "whole.parquet").unlink()
    assert load_queries(tmp_path, read_many=read_rows) == whole
    assert load_queries(f"file://{tmp_path}", limit=7, read_many=read_rows) == whole[:7]
    assert load_queries(f"simplecache::file://{tmp_path}", read_many=read_rows) == whole  # by workers
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n\n{"text": \n')
    for source, message in (
        (tmp_path, "files of one kind"),
        (f"file://{tmp_path}/bad.jsonl", "row 1: is not valid JSON"),
        (f"file://{tmp_path}/absent.parquet", "absent.parquet"),
        ("nowhere://x/y.parquet", "nowhere"),
    ):
        with pytest.raises(InputError, match=message) as raised:
            load_queries(source, read_many=read_rows)
        assert "\n" not in str(raised.value)


def test_a_worker_that_cannot_start_says_why(ray_cluster: Cluster, server: OpenAIServer, tmp_path: Path, monkeypatch):
    pool = write_pool(tmp_path, ["alpha"])
    monkeypatch.setattr("experts.cluster.connect.make_experts", lambda *arguments: [])  # what this machine would find
    pool.write_text(pool.read_text().replace("TEST_KEY", "ABSENT_KEY"))
    with pytest.raises(InputError, match=r"ABSENT_KEY is not set") as raised:
        run(pool, tmp_path / "table", make_queries(5), cluster=ray_cluster)
    assert "\n" not in str(raised.value) and server.requests.total() == 0
