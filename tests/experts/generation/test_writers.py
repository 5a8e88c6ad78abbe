"""Programs that write questions with known answers."""

import math
import re
import sys

import numpy as np
import pytest

from experts.data.queries import text_id
from experts.generation.writers import GymWriter, TaskWriter, Writer
from experts.tiny.tasks import FAMILIES, is_held_out
from leeroo_env.errors import InputError
from tests.experts.tiny.test_tiny import solve


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("family", FAMILIES)
def test_tasks_are_right_and_none_was_trained_on(family):
    """Protects: a wrong reference, or a text that the tiny models were trained on, would teach the wrong thing."""
    written = TaskWriter().write(40, family, rng())
    assert len(written.queries) == len({query.text for query in written.queries}) == 40
    for query in written.queries:
        assert solve(query.text) == query.reference, query
        assert is_held_out(query.text)
        assert (query.query_id, query.domain, query.split) == (text_id(query.text), family, None)
    assert (written.cost_usd, written.dropped) == (0.0, {})


def test_tasks_are_a_function_of_the_generator():
    """Protects: the same seed has to give the same run."""
    writes: Writer = TaskWriter()
    assert writes.write(50, None, rng(1)) == writes.write(50, None, rng(1))
    assert writes.write(50, None, rng(1)) != writes.write(50, None, rng(2))
    assert {query.domain for query in writes.write(100, None, rng(1)).queries} == set(FAMILIES)


def test_a_family_without_texts_left_is_counted_and_bad_names_are_refused():
    """Protects: asking too much of the easiest weekdays must neither fail nor loop; a typo must not pass silently."""
    written = TaskWriter(difficulties=(1,), domains=("weekday",)).write(110, "weekday", rng())
    assert 0 < len(written.queries) < 110 and written.dropped["used up"] == 110 - len(written.queries)
    with pytest.raises(InputError, match="domain: 'adds' is not one of add, subtract"):
        TaskWriter().write(1, "adds", rng())
    with pytest.raises(InputError, match="difficulties: 9 is not one of 1, 2"):
        TaskWriter(difficulties=(9,))


def test_the_gym_says_what_to_install(monkeypatch):
    """Protects: without the optional package there is an instruction instead of a traceback."""
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    with pytest.raises(InputError, match=r"reasoning-gym: pip install -e '\.\[reasoning\]'"):
        GymWriter()


def test_the_gym_writes_right_tasks_of_all_levels():
    """Protects: references that arithmetic confirms, easy and hard ones, and the same ones for the same seed."""
    pytest.importorskip("reasoning_gym")
    gym = GymWriter()
    written = gym.write(120, None, rng())
    assert written == gym.write(120, None, rng()) != gym.write(120, None, rng(1))
    assert {query.domain for query in written.queries} == set(gym.domains)
    assert not any("\n" in query.reference or query.split for query in written.queries)
    for domain, solution in {"gcd": math.gcd, "lcm": math.lcm}.items():
        for query in gym.write(20, domain, rng()).queries:
            numbers = re.findall(r"\d+", query.text)
            assert query.reference == str(solution(*map(int, numbers))) and query.domain == domain
    lengths = {len(query.reference) for query in gym.write(40, "lcm", rng()).queries}
    assert max(lengths) > 2 * min(lengths)
    with pytest.raises(InputError, match="tasks: 'acre' is not one of"):
        GymWriter(["acre"])
