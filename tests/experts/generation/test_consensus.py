"""References by consensus: majorities, ties, weights, a teacher."""

import pytest

from experts.generation.consensus import consensus_references
from experts.types import Answer, Query
from leeroo_env.errors import InputError


def answered(*texts: str | None) -> list[Answer]:
    """Answers, None for a failed call."""
    return [Answer(text or "", 1, 1, 0.0, 0.1, error=None if text is not None else "refused") for text in texts]


QUESTIONS = [Query(f"q{i}", f"Question {i}?", "d", "old") for i in range(5)]
ANSWERS = {
    "a": answered("The answer is 4.", "1", "1", "7", None),
    "b": answered("4.0", "1", "2", "who knows", None),
    "c": answered("so 5", "2", "3", None, "8"),
    "d": answered(None, "2", "1", "no idea", None),
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
    """Protects: an expert for one kind of question must not outvote those for another."""
    weights = {name: [0.5, 0.5, heavy, 0.5, 0.5] for name, heavy in zip("abcd", (0.1, 0.9, 0.1, 0.1), strict=True)}
    consensus = consensus_references(QUESTIONS, ANSWERS, "number", weights=weights, least_share=0.5)
    assert [(q.query_id, q.reference) for q in consensus.queries] == [("q0", "4")]
    assert consensus.dropped == {"tie": 1, "low agreement": 1, "no answers": 2}


def test_a_teacher_decides_alone():
    """Protects: its answer counts against the majority, with the share that shows it; else there is no reference."""
    taught = consensus_references(QUESTIONS, ANSWERS, "number", teacher="c", weights={"c": 1})
    assert [q.reference for q in taught.queries] == ["5", "2", "3", "8"]
    assert taught.shares.tolist() == [pytest.approx(1 / 3), 0.5, 0.25, 1.0] and taught.dropped == {"no answers": 1}


def test_variants_of_one_model_that_agree_have_one_vote():
    """Protects: a model must not outvote others, nor settle a question, by agreeing with itself."""
    questions = QUESTIONS[:3]
    answers = {
        "a": answered("4", "1", "1"),
        "a@short": answered("4", "1", "2"),
        "a@hot": answered("4", None, "1"),
        "b": answered("5", None, "2"),
        "c": answered("5", None, None),
    }
    consensus = consensus_references(questions, answers, "number", weights={"a": 0.5})
    assert [(q.query_id, q.reference) for q in consensus.queries] == [("q0", "5"), ("q2", "2")]
    assert consensus.shares.tolist() == pytest.approx([2 / 3, 2 / 3]) and consensus.dropped == {"no answers": 1}
    taught = consensus_references(questions, answers, "number", teacher="a@short", weights={"a@short": 0.1})
    assert [q.reference for q in taught.queries] == ["4", "1", "2"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"grader": "judge"}, "grader: 'judge' is not one of"),
        ({"teacher": "z"}, "teacher: no answers of an expert 'z'; there are a, b, c, d"),
        ({"weights": {"z": 1.0}}, "weights: no answers of an expert 'z'"),
        ({"weights": {"a": -1.0}}, "weights: -1.0 of expert 'a'"),
        ({"weights": {"a": [1.0, 2.0]}}, "weights: .* of expert 'a' is not a number >= 0, or one per query"),
        ({"least_share": 1.5}, "least_share: 1.5"),
        ({"answers": {"a": answered("1")}}, "answers: expert 'a' has 1 for 5 queries"),
    ],
)
def test_bad_votes_are_named(change, message):
    """Protects: a wrong name or length would silently move the references of all queries."""
    with pytest.raises(InputError, match=message):
        consensus_references(**({"queries": QUESTIONS, "answers": ANSWERS, "grader": "number"} | change))
