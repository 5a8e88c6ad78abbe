"""Grades formulas by mathematical equality with the reference."""

from __future__ import annotations

from experts.grading.base import Grade, reference_of
from experts.grading.formula import FORMULA_CHARS, formula_process, have_math_verify
from experts.grading.stated import boxed, graded_text, statements
from experts.types import Query
from leeroo_env.errors import InputError

MATH_TIMEOUT_S = 10.0


def stated_formula(output: str, query: Query, timeout_s: float = MATH_TIMEOUT_S) -> str | None:
    """The formula that the output settles on, simplified; None also if that takes longer than `timeout_s`."""
    return _compare("", output, query, timeout_s).answer


def grade_math(output: str, query: Query, timeout_s: float = MATH_TIMEOUT_S) -> Grade:
    """Whether the output's formula is mathematically equal to the reference, by the library `math-verify`.

    The output's formula is the last boxed one, else that of the last statement ("the answer is ..."), else the last
    of all. Two numbers that are exact, as fractions are, must be the same; of others 6 digits. The comparison runs in
    a process of its own, which is killed after `timeout_s`; the score is then 0.
    """
    return _compare(reference_of(query), output, query, timeout_s)


def _compare(reference: str, output: str, query: Query, timeout_s: float) -> Grade:
    if not have_math_verify():
        raise InputError("grader 'math' needs the package math-verify: pip install -e '.[math]'")
    for formula in _candidates(graded_text(output, query)):
        reply = formula_process.ask(["compare", reference[:FORMULA_CHARS], formula[:FORMULA_CHARS]], timeout_s)
        if reply is None or reply.get("answer") is not None:
            return Grade(float(bool(reply and reply["right"])), reply["answer"] if reply else None)
    return Grade(0.0, None)


def _candidates(text: str) -> list[str]:
    """Where the formula may stand, the likeliest first: the box, the last statements, the end of the text."""
    box = boxed(text)
    if box is not None:
        return [f"$\\boxed{{{box.text}}}$"]
    stated = [one.text.strip(" *_\n").split("\n")[0].rstrip(" .*_") for one in statements(text)[:3]]
    return [line for line in stated if line] + ([text[-FORMULA_CHARS:]] if text else [])
