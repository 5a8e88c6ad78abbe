"""All graders and normal forms: reasoning, outputs that make no sense, and the time that they take."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experts.grading import GRADERS, NORMAL_FORMS, normal_text
from experts.grading.stated import HEAD_CHARS, TAIL_CHARS, graded_text
from experts.types import Query
from tests.experts.grading.grading import FOUR, grade

# By grader: an answer, what is read of it, and another answer, which stands in the reasoning.
STATED = {
    "multiple-choice": ("The answer is (B).", "B", "The answer is (A)."),
    "number": ("The answer is 5.", "5", "The answer is 3, \\boxed{3}."),
    "exact": ("The answer is Paris.", "paris", "The answer is London, \\boxed{London}."),
    "math": ("The answer is $5$.", "5", "$\\boxed{3}$. The answer is $3$."),
}


def graders() -> list[str]:
    pytest.importorskip("math_verify", reason="math-verify is not installed")
    return list(GRADERS)


@pytest.mark.parametrize(
    "form",
    [
        "<think>{0}</think>\n\n{1}",
        "{0}\n</think>\n\n{1}",
        "<think>{0}</think>{1}<think>{0}",
        "<thinking>\n{0}\n</thinking>\n{1}",
        "[THINK]{0}[/THINK]{1}",
        "<think>\n\n</think>\n\n{1}",
        "\u25c1think\u25b7{0}\u25c1/think\u25b7{1}",
        "<|channel|>analysis<|message|>{0}<|end|><|start|>assistant<|channel|>final<|message|>{1}<|return|>",
        "<reasoning>{0}</reasoning><answer>{1}</answer>",
    ],
)
def test_reasoning_is_never_graded(form: str):
    for name in graders():
        stated, answer, other = STATED[name]
        query = Query("q", FOUR, "", answer)
        found = GRADERS[name](form.format(other, stated), query)
        assert (found.score, found.answer) == (1, answer)
        assert NORMAL_FORMS[name](form.format(other, stated), query) == answer


@pytest.mark.parametrize(
    "form", ["<think>{0} Let me see", "<think>{0}</think>", "{0}</think>\n", "[THINK]{0}", "<think>{0}</think> \n"]
)
def test_reasoning_alone_is_no_answer(form: str):
    for name in graders():
        _, answer, other = STATED[name]
        query = Query("q", FOUR, "", answer)
        assert GRADERS[name](form.format(other), query) == GRADERS[name]("", query)
        assert GRADERS[name](form.format(other), query).answer is None
        assert NORMAL_FORMS[name](form.format(other), query) is None


@settings(deadline=None)
@given(
    output=st.text(st.sampled_from("ABab12 .,:/%$\\{}()*#\nE-answer isboxed<>think^\u00bd\u00b2\u2212'|"), max_size=60)
)
def test_no_output_breaks_a_grader(output: str):
    for name, reference in (("multiple-choice", "A"), ("number", "1"), ("exact", "a")):
        found = grade(name, output, reference)
        assert found.score in (0, 1)
        assert found.score == 0 or found.answer is not None
        assert NORMAL_FORMS[name](output, Query("q", FOUR)) == found.answer


def test_of_a_long_answer_the_beginning_and_the_end_are_graded():
    filler = "word " * 20_000
    assert len(graded_text(filler, Query("q", FOUR))) <= HEAD_CHARS + TAIL_CHARS + 10
    for output in (f"The answer is (B).\n{filler}", f"{filler}\nThe answer is (B)."):
        assert grade("multiple-choice", output, "B").score == 1


# What once took quadratic or cubic time, or could.
PIECES = (
    *(
        "answer:" + " " * 900,
        "answer: ",
        "answer to a b c ",
        '"answer": "',
        "<answer>",
        "\\boxed{",
        "\\boxed{1} or ",
        "{",
    ),
    *(
        "<think>",
        "</think>",
        "<",
        "\nQuestion:",
        "#### ",
        "**A.",
        "\u0301",
        "\ufdfa",
        "\u00bd",
        "9",
        "1 ",
        "1,",
        "1/",
        "9^{",
    ),
    *(
        "5=",
        "3 or ",
        "5 million ",
        "10 cm^2/",
        "(A) or ",
        "A. \n",
        "C is correct. ",
        "so ",
        "I choose ",
        "(",
        " ",
        "\n",
    ),
)


def test_hostile_outputs_take_no_time():
    """34 pieces, repeated to 100 kB, some to 1 MB: about 10 s. 3 s are 5 times what the slowest takes."""
    grade("number", r"\boxed{\sqrt{4}}", "2")  # starts the process that reads formulas
    slow = []
    for chars, pieces in ((100_000, PIECES), (1_000_000, PIECES[::6])):
        for piece in pieces:
            output = "A 1 " + piece * (chars // len(piece))
            for name, reference in (("multiple-choice", "A"), ("number", "1"), ("exact", "a")):
                began = time.process_time()
                grade(name, output, reference)
                if (took := time.process_time() - began) > 3:
                    slow.append(f"{name} of {piece!r}: {took:.1f} s")
    assert not slow


@pytest.mark.parametrize("piece", ["\u0301", "a\u0301", " ", "\\text{", "\ufdfa"])
def test_the_normal_form_of_a_long_text_takes_no_time(piece: str):
    began = time.process_time()
    normal_text("x" + piece * (1_000_000 // len(piece)))
    assert time.process_time() - began < 5


@pytest.mark.parametrize("piece", ["\\boxed{", "9^{", "answer: ", "((", "\\frac{"])
def test_formulas_keep_their_deadline_whatever_the_output(piece: str):
    graders()
    query = Query("q", "t", "", "1")
    GRADERS["math"]("1", query)
    began = time.perf_counter()
    GRADERS["math"]("A 1 " + piece * (1_000_000 // len(piece)), query, timeout_s=2)  # type: ignore[call-arg]
    assert time.perf_counter() - began < 20
