"""All graders: outputs that make no sense."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.experts.grading.grading import grade


@given(output=st.text(st.sampled_from("ABab12 .,:/%$\\{}()*#\nE-answer isboxed"), max_size=60))
def test_no_output_breaks_a_grader(output: str):
    for name, reference in (("multiple-choice", "A"), ("number", "1"), ("exact", "a")):
        found = grade(name, output, reference)
        assert found.score in (0, 1)
        assert found.score == 0 or found.answer is not None


@pytest.mark.parametrize("piece", ["\\boxed{", "the answer is ", "1 ", "1,", "(A) ", "\n", " ", "#### ", "Question"])
def test_degenerate_outputs_take_no_time(piece: str):
    output = "A 1" + piece * (50_000 // len(piece))
    began = time.perf_counter()
    for name, reference in (("multiple-choice", "A"), ("number", "1"), ("exact", "a")):
        grade(name, output, reference)
    assert time.perf_counter() - began < 20
