"""Formulas: equality, and comparisons that hang."""
# ruff: noqa: RUF001

import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from experts.grading import GRADERS, grade_math
from experts.grading.formula import formula_process
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
@pytest.mark.parametrize(
    ("output", "reference", "score"),
    [
        (r"\boxed{\frac12}", r"\frac{1}{2}", 1),
        ("The final answer is $0.5$", r"\frac{1}{2}", 1),
        ("1/10000000", "2/10000000", 0),
        ("0.0000001", "0.0000002", 0),
        ("1/10000000", "1/10000001", 0),
        (r"$\frac{1}{10000000}$", r"\frac{1}{10000001}", 0),
        ("0.0000001", "1/10000000", 1),
        (r"\frac{1}{3000000}", r"\frac{1}{3000001}", 0),
        (r"The answer is $\frac{1}{3000000}$.", "1/3000001", 0),
        ("1e-7", "2e-7", 0),
        ("1 1/2", "3/2", 1),
        ("1 1/2", "1.5", 1),
        (r"1\frac{1}{2}", "3/2", 1),
        (r"The answer is $1\frac{1}{2}$", "3/2", 1),
        ("1½", "3/2", 1),
        (r"-1\frac12", "-3/2", 1),
        (r"\boxed{-1 \frac{1}{2}}", "-1.5", 1),
        ("The answer is 2 3/4.", "11/4", 1),
        ("2¾", "11/4", 1),
        ("−5", "-5", 1),
        ("The answer is −5.", "-5", 1),
        (r"$−\frac{1}{2}$", "-1/2", 1),
        ("x − 1", "x-1", 1),
        (r"\fbox{5}", "5", 1),
        (r"\boxed 5", "5", 1),
        (r"\framebox{5}", "5", 1),
        (r"$\boxed5$", "5", 1),
        (r"\boxed{x^2+1}", "x^2+1", 1),
        ("The answer is x^2 + 1.", "x^2+1", 1),
        ("**Answer**: $x^2+1$", "1+x^2", 1),
        ("Answer: x^2+1", "x^2+1", 1),
        ("x²+1", "x^2+1", 1),
        ("2√3", r"2\sqrt{3}", 1),
        ("π/2", r"\frac{\pi}{2}", 1),
        ("3×10⁴", "30000", 1),
        ("0.333333", "1/3", 1),
        ("0.33", "1/3", 0),
        ("0.3333", "1/3", 0),
        (r"\boxed{(1,2)}", "(1,2)", 1),
        (r"\boxed{\{1,2\}}", r"\{2,1\}", 1),
        ("5\n\nQuestion: what is 2+2?\nAnswer: 4", "5", 1),
        ("5\n\nQuestion: what is 2+2?\nAnswer: 4", "4", 0),
        ("$5$ and then $6$", "6", 1),
        ("no idea", "5", 0),
        ("", "5", 0),
        ("<think>5", "5", 0),
        ("50%", "0.5", 1),
        (r"50\%", r"50\%", 1),
        (r"\sqrt{2}\cdot 10^{-9}", r"\sqrt{3}\cdot 10^{-9}", 0),
        (r"\boxed{10^{-12}}", "0", 0),
        ("0", "10^{-12}", 0),
        ("0", "0", 1),
        ("1,000", "1000", 1),
        (r"\boxed{\text{east}}", r"\text{east}", 1),
        (r"\boxed{\text{east}}", r"\text{west}", 0),
        ("y = 2x + 1", "y=2x+1", 1),
        ("x = 5", "5", 1),
        (r"\boxed{x=5}", "5", 1),
        ("[0,1)", "[0,1)", 1),
        (r"\boxed{90^\circ}", "90", 1),
        (r"\boxed{\dfrac{7}{2}\text{ cm}}", "7/2", 1),
        ("1000001", "1000000", 0),
        ("10000000.1", "10000000.2", 0),
        (r"\boxed{3 \text{ or } 5}", "5", 0),
        (r"\bbox[border:1px solid]{5}", "5", 1),
    ],
)
def test_formulas_are_equal(output: str, reference: str, score: float):
    assert grade("math", output, reference).score == score


@pytest.mark.usefixtures("math_verify")
def test_threads_that_ask_about_formulas_that_hang_do_not_block_each_other_for_good():
    grade("math", "1", "1")
    tower = Query("q", "t", "", r"9^{9^{9^{9}}} + 1")

    def ask(i: int) -> float:
        if i % 2:
            return grade("math", rf"\boxed{{{i}}}", str(i)).score
        return grade_math(r"\boxed{9^{9^{9^{9}}}}", tower, timeout_s=0.3).score

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(4))) == [0, 1, 0, 1]


@pytest.mark.usefixtures("math_verify")
def test_an_interrupted_question_is_not_answered_by_the_next_reply(monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_: object) -> str:
        raise KeyboardInterrupt

    grade("math", "1", "1")
    assert formula_process.process is not None
    monkeypatch.setattr(formula_process.process, "stdout", SimpleNamespace(readline=interrupt))
    with pytest.raises(KeyboardInterrupt):
        grade("math", "2", "2")
    monkeypatch.undo()
    assert grade("math", "3", "3").answer == "3"


@pytest.mark.usefixtures("math_verify")
def test_a_formula_that_hangs_is_stopped_and_the_next_one_is_graded():
    tower = Query("q", "t", "", r"9^{9^{9^{9}}} + 1")
    grade("math", "1", "1")
    began = time.perf_counter()
    assert grade_math(r"\boxed{9^{9^{9^{9}}}}", tower, timeout_s=0.5).score == 0
    assert time.perf_counter() - began < 3
    assert grade("math", r"\boxed{2}", "2").score == 1
