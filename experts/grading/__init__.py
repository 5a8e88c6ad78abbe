"""Grades experts' outputs: each grader turns an output into a score and a short answer in normal form."""

from __future__ import annotations

from collections.abc import Callable

from experts.grading.base import Grade, Grader
from experts.grading.exact import grade_exact, normal_text, stated_text
from experts.grading.judge import judge, judge_batch
from experts.grading.math import grade_math, stated_formula
from experts.grading.multiple_choice import chosen_letter, grade_multiple_choice
from experts.grading.number import grade_number, number_text, stated_number
from experts.types import Query

__all__ = [
    "GRADERS",
    "NORMAL_FORMS",
    "Grade",
    "Grader",
    "grade_exact",
    "grade_math",
    "grade_multiple_choice",
    "grade_number",
    "judge",
    "judge_batch",
    "normal_text",
    "number_text",
]

GRADERS: dict[str, Grader] = {
    "multiple-choice": grade_multiple_choice,
    "number": grade_number,
    "exact": grade_exact,
    "math": grade_math,
}

# `Grade.answer` of each grader, which needs no reference.
NORMAL_FORMS: dict[str, Callable[[str, Query], str | None]] = {
    "multiple-choice": chosen_letter,
    "number": stated_number,
    "exact": stated_text,
    "math": stated_formula,
}
