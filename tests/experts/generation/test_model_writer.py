"""A language model that writes questions, with a real server: prompts, replies of any kind, costs."""

import json

import numpy as np
import pytest

from experts.backends.openai import OpenAIExpert
from experts.data.queries import text_id
from experts.generation.model_writer import ModelWriter, parse_questions, writing_expert
from experts.spending import SpendCap
from experts.types import Query
from leeroo_env.errors import InputError
from tests.conftest import KEY
from tests.experts.backends.test_openai import make_spec

SEEDS = [Query(f"s{i}", f"What is the capital of country {i}?", "places", f"City {i}") for i in range(6)]
SEEDS += [Query(f"n{i}", f"Which number follows {i}?", "numbers", str(i + 1), "train") for i in range(6)]
GOOD = '[{"question": " Who wrote Faust? ", "answer": "Goethe"}, {"question": "How many legs has a fly?", "answer": 6}]'


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def writer(server, reply, **options) -> ModelWriter:
    server.reply = reply if callable(reply) else lambda prompt: reply
    spec = make_spec(prompt="Answer briefly: {text}", system="One word.", max_tokens=4, max_retries=0)
    return ModelWriter(writing_expert(spec, SpendCap()), SEEDS, **options)


def test_a_model_writes_from_seeds_of_the_domain(server):
    """Protects: what is shown, what comes back and what it cost; the expert's own prompt must not get in the way."""
    written = writer(server, GOOD, per_call=2, shots=3).write(2, "places", rng())
    assert [(q.text, q.domain, q.reference, q.split) for q in written.queries] == [
        ("Who wrote Faust?", "places", None, None),
        ("How many legs has a fly?", "places", None, None),
    ]
    assert [q.query_id for q in written.queries] == [text_id(q.text) for q in written.queries]
    body = server.bodies[0]
    (message,) = body["messages"]
    assert message["content"].startswith('Write 2 new questions on the subject "places"')
    assert message["content"].count("capital of country") == 3 and "follows" not in message["content"]
    assert (body["max_tokens"], body["temperature"]) == (1024, 1.0)
    usd = len(message["content"].split()) * 1e-3 + len(GOOD.split()) * 2e-3
    assert written.cost_usd == pytest.approx(usd) and not written.dropped


REPLIES = {
    f"```json\n{GOOD}\n```": (2, {}),
    f"Here they are:\n```\n{GOOD}\n```\nEnjoy!": (2, {}),
    '[{"question": "With ``` in it?\\n```\\nx = 1\\n```"}]': (1, {}),
    "[]": (0, {"empty list": 1}),
    "I cannot do that.": (0, {"no JSON list": 1}),
    "": (0, {"call failed": 1}),  # an empty reply
    GOOD[:-5]: (0, {"no JSON list": 1}),
    GOOD[1:-1]: (0, {"no JSON list": 1}),
    '{"question": "Alone?"}': (0, {"no JSON list": 1}),
    "[" * 100_000: (0, {"no JSON list": 1}),
    '[{"question": "Half \\ud800?"}]': (0, {"no JSON list": 1}),
    '["Who?", {"question": "  "}, {"answer": "x"}, {"question": 3}, null]': (0, {"not the form": 5}),
    '[{"question": "A?", "answer": [1]}, {"question": "B?", "answer": true}]': (0, {"not the form": 2}),
    '[{"question": "C?", "hint": ""}, {"question": "D?", "answer": NaN}, {"question": "E?"}]': (1, {"not the form": 2}),
    json.dumps([{"question": "x" * 5000}]): (0, {"too long": 1}),
    '[{"question": "Who am I?"}, {"question": "who  am I ?"}, {"question": "Which number follows 3"}]': (
        1,
        {"repeated": 2},
    ),
    json.dumps([{"question": f"Who is number {i}?"} for i in range(9)]): (5, {"more than asked": 4}),
}


@pytest.mark.parametrize("reply", REPLIES, ids=range(len(REPLIES)))
def test_what_is_malformed_is_counted_and_never_raised(server, reply):
    """Protects: a model writes anything; one bad question must not cost the good ones, nor any of them the run."""
    n, dropped = REPLIES[reply]
    written = writer(server, reply).write(5, "numbers", rng())
    assert (len(written.queries), dict(written.dropped)) == (n, dropped)
    assert (written.cost_usd > 0) == ("call failed" not in dropped)  # the store keeps what failed calls were billed


def test_failed_calls_are_counted_and_the_others_kept(server):
    """Protects: a server that refuses some calls still gives the questions of the others, and no key is shown."""
    server.behaviour = lambda prompt, time: "echo key" if "capital" in prompt else "ok"
    written = writer(server, lambda prompt: json.dumps([{"question": prompt[-9:] + str(len(prompt))}]), per_call=1)
    written = written.write(12, None, rng(3))
    failed = sum("capital" in prompt for prompt in server.requests)
    assert written.dropped["call failed"] > 0 and failed > 0
    assert {query.domain for query in written.queries} == {"numbers"} and KEY not in repr(written)


def test_the_same_seed_asks_the_same(server):
    """Protects: prompts, their sizes and their order are the generator's alone, and so are the questions kept."""
    echo = lambda prompt: json.dumps([{"question": f"{prompt[30:400]} {i}"} for i in range(3)])  # noqa: E731
    first = writer(server, echo, per_call=3).write(10, None, rng(5))
    prompts = set(server.requests)
    again = writer(server, echo, per_call=3).write(10, None, rng(5))
    assert first == again and set(server.requests) == prompts and len(first.queries) <= 10
    assert first != writer(server, echo, per_call=3).write(10, None, rng(6))
    assert sum("Write 1 new question " in prompt for prompt in prompts) == 1
    assert writer(server, echo).write(0, None, rng()).queries == []


def test_no_seed_of_val_or_test_is_shown(server):
    """Protects: questions written from a test question would carry it into training."""
    expert = OpenAIExpert(make_spec(), SpendCap())
    with pytest.raises(InputError, match="seeds: query 't': field split: 'test' must not be shown"):
        ModelWriter(expert, [*SEEDS, Query("t", "?", "places", split="test")])
    with pytest.raises(InputError, match=r"seeds \(0\)"):
        ModelWriter(expert, [])


def test_parsing_keeps_the_order():
    items, dropped = parse_questions(GOOD)
    assert [(item.question, item.answer) for item in items] == [
        ("Who wrote Faust?", "Goethe"),
        ("How many legs has a fly?", 6),
    ]
    assert not dropped
