"""Runs the collector for tests, in this process or in one that will be killed."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from experts.collect.pipeline import Collected, collect
from experts.collect.store import open_store
from experts.pool import load_pool
from experts.types import Query


class HashEncoder:
    """Embeds a text as eight bytes of its hash."""

    info = {"model": "hash", "dim": 8}

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        rows = [list(hashlib.sha256(text.encode()).digest()[:8]) for text in texts]
        return np.array(rows, dtype=np.float32) / 256


def make_queries(n: int) -> list[Query]:
    """Queries of which `alpha`, which answers with the letters reversed, gets every third right."""
    texts = [f"question {i}" for i in range(n)]
    references = [text[::-1] if i % 3 == 0 else "something else" for i, text in enumerate(texts)]
    return [Query(f"q{i}", texts[i], "words", references[i]) for i in range(n)]


def write_pool(directory: Path, names: Sequence[str] = ("alpha", "beta"), extra: str = "") -> Path:
    """A pool.yaml of remote experts that differ in their prompts."""
    text = "experts:\n"
    for name in names:
        prompt = '"{text}"' if name == "alpha" else f'"{name}: {{text}}"'
        text += (
            f"  - {{name: {name}, backend: openai, model: m-{name}, usd_per_mtok_in: 1000, usd_per_mtok_out: 2000,\n"
        )
        text += f"     max_tokens: 5, concurrency: 3, max_retries: 0, prompt: {prompt},\n"
        text += f"     base_url_env: TEST_URL, api_key_env: TEST_KEY{extra}}}\n"
    path = directory / "pool.yaml"
    path.write_text(text)
    return path


def run(pool: Path, out: Path, queries: Sequence[Query], **options) -> Collected:
    """One run of the collector."""
    return collect(load_pool(pool), queries, out, HashEncoder(), **options)


def run_in_process(pool: Path, out: Path, queries: Sequence[Query], url: str, key: str) -> None:
    """The same as the target of a process."""
    os.environ |= {"TEST_URL": url, "TEST_KEY": key}
    run(pool, out, queries)


def hold_store(directory: Path, pipe: Connection) -> None:
    """Keeps a store open until a message arrives; the target of a process."""
    with open_store(directory):
        pipe.send("open")
        pipe.recv()


def processes() -> multiprocessing.context.ForkServerContext:
    """A context whose processes start with everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "pandas", "openai.resources.chat", "experts.collect.pipeline"])
    return context
