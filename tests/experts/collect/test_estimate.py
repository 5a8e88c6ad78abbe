"""The estimate of a collection's cost."""

from dataclasses import replace

import numpy as np

from experts.collect.estimate import _error_usd, estimate, probe
from experts.pool import load_pool
from tests.experts.collecting import make_queries, run, write_pool


def test_an_estimate_asks_and_writes_nothing(server, tmp_path):
    pool, out, queries = write_pool(tmp_path), tmp_path / "table", make_queries(10)
    before = set(tmp_path.rglob("*"))
    whole = estimate(load_pool(pool), queries, out)
    assert server.requests.total() == 0 and set(tmp_path.rglob("*")) == before
    assert [one.to_ask for one in whole] == [10, 10] and all(0 < one.usd < one.worst_usd for one in whole)
    paid = run(pool, out, queries[:6]).spent_usd
    rest = estimate(load_pool(pool), queries, out)
    assert [(one.stored, one.to_ask) for one in rest] == [(6, 4), (6, 4)]
    assert paid <= sum(a.worst_usd - b.worst_usd for a, b in zip(whole, rest, strict=True))


def test_a_probe_asks_a_few_and_no_more_than_are_missing(server, tmp_path):
    pool, out, queries = load_pool(write_pool(tmp_path)), tmp_path / "table", make_queries(10)
    queries += [replace(query, query_id=f"again-{query.query_id}") for query in queries]  # equal prompts are asked once
    for calls, asked in ((3, 3), (3, 1), (5, 1), (8, 3), (20, 2), (20, 0)):
        queues = probe(pool, queries, out, calls=calls)
        assert [(queue.total, queue.done) for queue in queues] == [(asked, asked)] * 2
    assert set(server.requests.values()) == {1} and server.requests.total() == 20


def test_the_interval_covers_what_is_billed(tmp_path):
    """In about 95 of 100 samples; Student's t, which is wide for three answers."""
    rng, inside = np.random.default_rng(0), []
    for _ in range(400):
        bills = rng.uniform(1, 3, size=103)
        error = _error_usd(bills[:3], 100)
        assert error is not None
        inside.append(abs(100 * bills[:3].mean() - bills[3:].sum()) <= error)
    assert 0.9 < np.mean(inside) < 0.99
    assert _error_usd(bills[:1], 5) is None and _error_usd(bills[:1], 0) == 0.0
