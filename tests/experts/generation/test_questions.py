"""Writers with a real server, the novelty filter with the tiny table's own questions, references by agreement."""

import json
import math
import re
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import leeroo_env.builtin
from experts.backends.openai import OpenAIExpert
from experts.data.queries import text_id
from experts.encoder import Encoder
from experts.generation.consensus import consensus_references
from experts.generation.novelty import Limits, NoveltyFilter, normal_question
from experts.generation.writers import GymWriter, ModelWriter, TaskWriter, Writer, parse_questions, writing_expert
from experts.spending import SpendCap
from experts.tiny.tasks import FAMILIES, is_held_out
from experts.types import Answer, Query
from leeroo_env.errors import InputError
from leeroo_env.table import ExpertTable
from tests.conftest import KEY
from tests.experts.test_openai_api import make_spec
from tests.experts.test_tiny import solve

SEEDS = [Query(f"s{i}", f"What is the capital of country {i}?", "places", f"City {i}") for i in range(6)]
SEEDS += [Query(f"n{i}", f"Which number follows {i}?", "numbers", str(i + 1), "train") for i in range(6)]
GOOD = '[{"question": " Who wrote Faust? ", "answer": "Goethe"}, {"question": "How many legs has a fly?", "answer": 6}]'


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def writer(server, reply, **options) -> ModelWriter:
    server.reply = reply if callable(reply) else lambda prompt: reply
    spec = make_spec(prompt="Answer briefly: {text}", system="One word.", max_tokens=4, max_retries=0)
    return ModelWriter(writing_expert(spec, SpendCap()), SEEDS, **options)


# ---------------------------------------------------------------------------------------------------------------------
# Programs


@pytest.mark.parametrize("family", FAMILIES)
def test_tasks_are_right_and_none_was_trained_on(family):
    """Protects: a wrong reference, or a text that the tiny models know by heart, would teach the wrong thing."""
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
    with pytest.raises(InputError, match="domain: 'adds' is none of add, subtract"):
        TaskWriter().write(1, "adds", rng())
    with pytest.raises(InputError, match="difficulties: 9 is none of 1, 2"):
        TaskWriter(difficulties=(9,))


def test_the_gym_says_what_to_install(monkeypatch):
    """Protects: who lacks the optional package reads what to do instead of a traceback."""
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
    with pytest.raises(InputError, match="tasks: 'acre' is none of"):
        GymWriter(["acre"])


# ---------------------------------------------------------------------------------------------------------------------
# Language models


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
    "": (0, {"no JSON list": 1}),
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
    assert written.cost_usd > 0


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


# ---------------------------------------------------------------------------------------------------------------------
# The novelty filter


class LetterEncoder:
    """Counts of letters and digits, so that texts with the same ones coincide; not of length 1."""

    def encode(self, texts):
        rows = [[0.1 + text.lower().count(c) for c in "abcdefghijklmnopqrstuvwxyz0123456789"] for text in texts]
        return np.array(rows, np.float32).reshape(len(texts), 36)


def asked(*texts: str) -> list[Query]:
    return [Query(text_id(text), text) for text in texts]


def test_each_reason_is_counted():
    """Protects: what is dropped and why, against val and test, against what was seen, and within a batch."""
    novelty = NoveltyFilter(LetterEncoder(), ["What is 12 + 47?"], ["Who wrote Faust?"], Limits(seen=0.99))
    texts = {
        "what is 12+47": "reserved",
        "What is 47 + 12 ?": "close to reserved",
        "WHO wrote  Faust": "seen",
        "Wrote who Faust?": "close to seen",
        "Which zebra jumps quickly?": "",
        "Jumps which zebra quickly?": "close to seen",
        "Name a big river in Peru.": "",
    }
    filtered = novelty.filter(asked(*texts))
    assert [query.text for query in filtered.queries] == [text for text, reason in texts.items() if not reason]
    assert filtered.dropped == {"reserved": 1, "close to reserved": 1, "seen": 1, "close to seen": 2}
    assert filtered.embeddings.shape == (2, 36) and filtered.embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(filtered.embeddings, axis=1), 1, atol=1e-6)
    assert novelty.filter(filtered.queries).dropped == {"seen": 2}
    assert novelty.filter([]).embeddings.shape == (0, 36)


def test_twins_of_a_template_pass_unless_val_or_test_has_one():
    """Protects: a template's questions differ in their numbers, and a plain threshold would let one of them through."""
    novelty = NoveltyFilter(LetterEncoder(), ["Sort the digits 8652 for Ann."], limits=Limits(seen=0.5))
    kept = novelty.filter(asked("Which is more, 1 or 2?", "Which is more, 1 or 3?", "Which is more, 2 or 1?")).queries
    assert [query.text for query in kept] == ["Which is more, 1 or 2?", "Which is more, 1 or 3?"]
    assert novelty.filter(asked("Please put 8652 in order for Ann.")).dropped == {"close to reserved": 1}


def test_normal_form():
    """Protects: operators, factorials and spaces between numbers make other questions; case and end marks do not."""
    assert normal_question("What is 12 + 47?") == normal_question(" what is 12+47")
    different = ["What is 12 - 47?", "What is 12 + 4 7?", "What is 1247?", "What is 12 + 47!?"]
    assert len({normal_question(text) for text in [*different, "What is 12 + 47?"]}) == 5


def test_embeddings_that_are_none_are_refused():
    """Protects: not-a-number is close to nothing, so everything would pass."""
    broken = LetterEncoder()
    broken.encode = lambda texts: np.full((len(texts), 3), np.nan, np.float32)
    with pytest.raises(InputError, match="encoder: 1 texts gave"):
        NoveltyFilter(broken, ["a"])


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield Encoder(cache_dir=tmp_path_factory.mktemp("cache"))
    except InputError as error:
        pytest.skip(str(error))
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def splits():
    """The tiny table's questions: texts by split."""
    path = leeroo_env.builtin.BUILTIN["tiny"]
    texts = pq.read_table(path / "queries.parquet")["text"].to_pylist()
    table = ExpertTable.load(path)
    return {split: [texts[i] for i in table.rows(split).tolist()] for split in ("train", "val", "test")}


def marks_of(text: str) -> list[str]:
    """The numbers and the weekday in a question."""
    words = text.translate(str.maketrans("?.:", "   ")).split()
    return sorted(word for word in words if word.isdigit() or word.endswith("day"))


@pytest.mark.parametrize("seed", [0, 1])
def test_nothing_near_to_val_or_test_passes(encoder, splits, seed):
    """Protects: the examination. Checked pair by pair, by other code, with val and test questions thrown in."""
    reserved = splits["val"][:300] + splits["test"][:300]
    written = TaskWriter().write(150, None, rng(seed)).queries
    new = written + asked(*reserved[seed::20], *(text.upper().replace(" ", "  ") for text in reserved[seed::30]))
    new = [new[i] for i in rng(seed).permutation(len(new))]
    novelty = NoveltyFilter(encoder, reserved, splits["train"][:100])
    filtered = novelty.filter(new)
    assert filtered.dropped["reserved"] >= 30 + 20 and len(filtered.queries) >= 100
    known = encoder.encode(reserved)
    for query, vector in zip(filtered.queries, encoder.encode([q.text for q in filtered.queries]), strict=True):
        similar = known @ vector
        assert similar.max() < 0.95 + 1e-5, query
        for j in np.flatnonzero(similar >= 0.7 + 1e-5):
            assert not marks_of(query.text) or marks_of(query.text) != marks_of(reserved[j]), (query, reserved[j])


def test_the_cut_into_calls_does_not_matter(encoder, splits, monkeypatch):
    """Protects: rounds and blocks of any size have to give the same queries."""
    monkeypatch.setattr("experts.generation.novelty.FILTER_BLOCK", 16)
    new = TaskWriter().write(60, None, rng()).queries * 2
    whole = NoveltyFilter(encoder, splits["val"][:100]).filter(new)
    novelty = NoveltyFilter(encoder, splits["val"][:100])
    parts = [novelty.filter(new[start : start + 7]) for start in range(0, len(new), 7)]
    assert [query for part in parts for query in part.queries] == whole.queries
    assert sum((part.dropped for part in parts[1:]), parts[0].dropped) == whole.dropped


# ---------------------------------------------------------------------------------------------------------------------
# References


def said(*texts: str | None) -> list[Answer]:
    """Answers, None for a failed call."""
    return [Answer(text or "", 1, 1, 0.0, 0.1, error=None if text is not None else "refused") for text in texts]


QUESTIONS = [Query(f"q{i}", f"Question {i}?", "d", "old") for i in range(5)]
ANSWERS = {
    "a": said("The answer is 4.", "1", "1", "7", None),
    "b": said("4.0", "1", "2", "who knows", None),
    "c": said("so 5", "2", "3", None, "8"),
    "d": said(None, "2", "1", "no idea", None),
}


def test_the_majority_of_normal_forms_is_the_reference():
    """Protects: which questions get a reference and which are left out, with the reason and the share."""
    consensus = consensus_references(QUESTIONS, ANSWERS, "number")
    assert [(q.query_id, q.reference, q.domain) for q in consensus.queries] == [("q0", "4", "d")]
    assert (consensus.rows.tolist(), consensus.shares.tolist()) == ([0], [pytest.approx(2 / 3)])
    assert consensus.dropped == {"tie": 1, "low agreement": 1, "no answers": 2}
    lax = consensus_references(QUESTIONS, ANSWERS, "number", least_share=0.5)
    assert (lax.rows.tolist(), lax.shares.tolist()) == ([0, 2], [pytest.approx(2 / 3), 0.5])
    assert QUESTIONS[0].reference == "old"


def test_weights_break_ties_and_zero_silences():
    """Protects: strong experts outvote weak ones, none of them alone; one of weight 0 neither votes nor counts."""
    heavy = consensus_references(QUESTIONS, ANSWERS, "number", weights={"c": 4})
    assert [q.reference for q in heavy.queries] == ["2"] and heavy.shares.tolist() == [pytest.approx(5 / 7)]
    assert heavy.dropped == {"low agreement": 2, "no answers": 2}
    silent = consensus_references(QUESTIONS, ANSWERS, "number", weights={"b": 0, "c": 0})
    assert (silent.rows.tolist(), silent.dropped) == ([2], {"no answers": 3, "tie": 1})


def test_weights_of_each_query():
    """Protects: who is good at one kind of question must not outvote those who are good at another."""
    weights = {name: [0.5, 0.5, heavy, 0.5, 0.5] for name, heavy in zip("abcd", (0.1, 0.9, 0.1, 0.1), strict=True)}
    consensus = consensus_references(QUESTIONS, ANSWERS, "number", weights=weights, least_share=0.5)
    assert [(q.query_id, q.reference) for q in consensus.queries] == [("q0", "4")]
    assert consensus.dropped == {"tie": 1, "low agreement": 1, "no answers": 2}


def test_a_teacher_decides_alone():
    """Protects: its answer stands against the majority, with the share that shows it; without one there is none."""
    taught = consensus_references(QUESTIONS, ANSWERS, "number", teacher="c", weights={"c": 1})
    assert [q.reference for q in taught.queries] == ["5", "2", "3", "8"]
    assert taught.shares.tolist() == [pytest.approx(1 / 3), 0.5, 0.25, 1.0] and taught.dropped == {"no answers": 1}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"grader": "judge"}, "grader: 'judge' is none of"),
        ({"teacher": "z"}, "teacher: no answers of an expert 'z'; there are a, b, c, d"),
        ({"weights": {"z": 1.0}}, "weights: no answers of an expert 'z'"),
        ({"weights": {"a": -1.0}}, "weights: -1.0 of expert 'a'"),
        ({"weights": {"a": [1.0, 2.0]}}, "weights: .* of expert 'a' is not a number >= 0, nor one a query"),
        ({"least_share": 1.5}, "least_share: 1.5"),
        ({"answers": {"a": said("1")}}, "answers: expert 'a' has 1 for 5 queries"),
    ],
)
def test_bad_votes_are_named(change, message):
    """Protects: a wrong name or length would silently move the references of all queries."""
    with pytest.raises(InputError, match=message):
        consensus_references(**({"queries": QUESTIONS, "answers": ANSWERS, "grader": "number"} | change))
