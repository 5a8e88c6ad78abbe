"""Formulas: equality, and comparisons that hang."""

import time

import pytest

from experts.grading import GRADERS, grade_math
from experts.types import Query
from tests.experts.grading.grading import grade


@pytest.fixture
def math_verify():
    pytest.importorskip("math_verify", reason="math-verify is not installed")


@pytest.mark.usefixtures("math_verify")
def test_mathematics():
    right = [r"\boxed{\frac12}", "The final answer is $0.5$", r"so $\frac{2}{4}$", r"$\boxed{\dfrac{1}{2}}$"]
    grades = [grade("math", output, r"\frac{1}{2}") for output in right]
    assert [g.score for g in grades] == [1] * len(right)
    assert {g.answer for g in grades} == {"1/2"}
    assert grade("math", r"\boxed{\sqrt{8}}", r"$2\sqrt{2}$").score == 1
    assert grade("math", r"\boxed{\frac13}", r"\frac{1}{2}").score == 0
    assert grade("math", "no idea", r"\frac{1}{2}") == GRADERS["math"]("", Query("q", "t", "", "1"))


@pytest.mark.usefixtures("math_verify")
def test_a_formula_that_hangs_is_stopped_and_the_next_one_is_graded():
    tower = Query("q", "t", "", r"9^{9^{9^{9}}} + 1")
    grade("math", "1", "1")
    began = time.perf_counter()
    assert grade_math(r"\boxed{9^{9^{9^{9}}}}", tower, timeout_s=0.5).score == 0
    assert time.perf_counter() - began < 3
    assert grade("math", r"\boxed{2}", "2").score == 1
