"""The estimate of a collection's cost."""

from experts.collect.estimate import estimate
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
