"""Which answers are the same: by normal form, and by similarity with a threshold that is fitted."""

from __future__ import annotations

import numpy as np
import pytest

from agents.serving.answer_match import answer_pairs, by_normal_form, by_similarity, fit_threshold
from experts.encoder import Encoder
from experts.grading import GRADERS
from experts.types import Query
from leeroo_env import ExpertTable, InputError


class Angles:
    """Embeds the word of a number of degrees as that angle."""

    def encode(self, texts: list[str]) -> np.ndarray:
        angles = np.deg2rad([float(text) for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "output", "reference"),
    [
        ("multiple-choice", "I think (B) holds, so the answer is **C**.", "C"),
        ("number", "It is 1,234.50 in all.", "1234.5"),
        ("exact", "The answer is: **Monday**.", "monday"),
        ("math", r"So $\frac{2}{4}$.", "1/2"),
    ],
)
def test_normal_forms_are_the_graders(name: str, output: str, reference: str):
    if name == "math":
        pytest.importorskip("math_verify")
    grade = GRADERS[name](output, Query("q", "?", reference=reference))
    assert grade.score == 1 and by_normal_form(name)(Query("q", "?"), [output, " "]) == [grade.answer, None]


def test_texts_join_the_first_that_is_like_them():
    compare = by_similarity(Angles(), float(np.cos(np.deg2rad(31))))
    query = Query("q", "?")
    outputs = ["0", " ", "30", "60", "90", "45"]
    answers = compare(query, outputs)
    assert answers == ["0", None, "0", "60", "60", "60"], "60 is like 30, but 30 has joined 0; 45 is like 60 alone"
    for n in range(len(outputs)):
        assert compare(query, outputs[:n]) == answers[:n], "more answers change none of the earlier"


def test_reasoning_is_not_compared():
    compare = by_similarity(Angles(), 0.99)
    outputs = ["<think>90</think>0", "<think>0 or 45", "0", "60 </think> 0"]
    assert compare(Query("q", "?"), outputs) == ["0", None, "0", "0"]
    assert compare(Query("q", "?"), ["<think>", " "]) == [None, None]


def test_the_threshold_tells_best():
    similarity = np.array([0.1, 0.3, 0.5, 0.7, 0.9, 0.95])
    assert fit_threshold(similarity, np.array([0, 0, 0, 1, 1, 1])) == pytest.approx(0.6)
    many = np.concatenate([np.full(97, 0.8), [0.2, 0.4, 0.9]])
    assert fit_threshold(many, many == 0.8) == pytest.approx(0.6), "the two that differ count as much as the 97"
    with pytest.raises(InputError, match="pairs that are not"):
        fit_threshold(similarity, np.ones(6))


def test_a_threshold_from_a_table(tiny: ExpertTable):
    encoder = Encoder()
    similarity, same = answer_pairs(tiny, encoder, same_by="answer")
    assert len(similarity) == len(same) <= 60 * 10 and 0 < same.mean() < 1
    threshold = fit_threshold(similarity, same)
    assert ((similarity >= threshold)[same]).mean() > 0.9 < ((similarity < threshold)[~same]).mean()
    right, right_same = answer_pairs(tiny, encoder)
    assert 0 < right_same.mean() < 1 and len(right) < len(similarity)
