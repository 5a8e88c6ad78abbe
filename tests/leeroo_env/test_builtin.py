"""The table that ships is what the pool that ships really answered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experts.grading import GRADERS
from experts.pool import load_pool, make_experts
from experts.spending import SpendCap
from experts.tiny.tasks import is_held_out
from experts.types import Query
from leeroo_env import ExpertTable, InputError
from leeroo_env.builtin import BUILTIN, resolve

POOL = Path(__file__).parents[2] / "experts" / "tiny" / "pool.yaml"


def test_it_is_found_by_name_and_is_small():
    table = resolve("tiny", ["large", "nano"])
    assert table.experts == ("large", "nano") and len(table) == 6000
    assert sum(path.stat().st_size for path in BUILTIN["tiny"].iterdir()) < 15e6
    with pytest.raises(InputError, match="the built-in tables are tiny"):
        resolve("huge")


def test_no_question_was_trained_on():
    table = ExpertTable.load(BUILTIN["tiny"])
    assert all(is_held_out(text) for text in table.queries["text"].to_pylist())


def test_no_expert_is_best_everywhere_and_together_they_beat_the_best():
    table = ExpertTable.load(BUILTIN["tiny"])
    mean = table.scores.mean(dim=0)
    assert table.experts[int(mean.argmax())] == table.experts[int(table.costs_usd.mean(dim=0).argmax())] == "large"
    assert float(table.scores.max(dim=1).values.mean()) > float(mean.max()) + 0.08
    domain = np.array(table.queries["domain"].to_pylist())
    best = {d: table.experts[int(table.scores[domain == d].mean(dim=0).argmax())] for d in set(domain)}
    assert best["weekday"] == "calendar" and best["multiply"] == "arithmetic" and best["add"] == "large"


@pytest.mark.parametrize("expert", ["nano", "calendar", "small", "arithmetic", "large"])
def test_asked_again_the_pool_says_the_same(expert: str):
    """40 questions asked live: outputs, grades, tokens and costs. Another CPU may round a few answers otherwise."""
    table = ExpertTable.load(BUILTIN["tiny"])
    queries = [
        Query(**{name: row[name] for name in ("query_id", "text", "domain", "reference")})
        for row in table.queries.slice(100, 40).to_pylist()
    ]
    stored = {row["query_id"]: row for row in table.answers.to_pylist() if row["expert"] == expert}
    (live,) = make_experts(load_pool(POOL), [expert], SpendCap())
    same = 0
    for query, answer in zip(queries, live.answer(queries), strict=True):
        kept = stored[query.query_id]
        score = GRADERS["exact"](answer.text, query).score
        row = (answer.text, answer.prompt_tokens, answer.completion_tokens, score)
        same += row == (kept["output"], kept["prompt_tokens"], kept["completion_tokens"], kept["score"])
        assert answer.cost_usd == pytest.approx(kept["cost_usd"]) or answer.text != kept["output"]
    assert same >= 38
