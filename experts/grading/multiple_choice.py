"""Grades multiple-choice questions by the option letter that an output settles on."""

from __future__ import annotations

import re

from experts.grading.base import Grade, boxed, first_reply, reference_of, statements
from experts.types import Query
from leeroo_env.errors import InputError

_OPTION_LINE = re.compile(r"^[ \t]{0,10}\(?([A-Z])[.):]\s", re.MULTILINE)
_WRAP = r"[\s*_$({\[\"'`]*(?:\\[(\[]\s*)?(?:\\(?:boxed|text|textbf|mathrm|mathbf)\s*\{[\s*_$({\[]*)*"
_LETTER_FIRST = re.compile(rf"\s*:?{_WRAP}(?:(?:option|choice)\s+)?{_WRAP}([A-Z])(?![\w'\u2019]|-\w)")
_ARTICLE = re.compile(r"^[AI]\s+[a-z]")
_SMALL_LETTER = re.compile(rf"\s*:?{_WRAP}(?<=[({{\[])([a-z])[)}}\]]")
_LETTER_FORMS = (
    re.compile(r"(?<![\w)\]}^_\\])[(\[]\**([A-Z])\**[)\]]"),
    re.compile(r"\*\*\(?([A-Z])(?:[.):][^*\n]*)?\*\*"),
    re.compile(r"^[ \t*#>-]{0,10}([A-Z])[.):](?=\s|$)", re.MULTILINE),
    re.compile(r"^[ \t*]{0,10}([A-Z])[ \t*.]{0,10}$", re.MULTILINE),
    re.compile(r"\b(?:option|choice|answer)\s+\(?([A-Z])\b(?!['\u2019-])", re.IGNORECASE),
)


def _letters(query: Query) -> str:
    """The letters of the options in the query's text; A to J if it lists none."""
    found = _OPTION_LINE.findall(query.text)
    last = 0
    for letter in found:
        if ord(letter) - ord("A") == last:
            last += 1
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[:last] if last >= 2 else "ABCDEFGHIJ"


def _leading_letter(statement: str, letters: str) -> str | None:
    """The option letter that a statement begins with, unless it is the word "A" or "I"."""
    match = _LETTER_FIRST.match(statement)
    if match and match[1] in letters and not _ARTICLE.match(statement[match.start(1) :]):
        return match[1]
    match = _SMALL_LETTER.match(statement)
    return match[1].upper() if match and match[1].upper() in letters else None


def chosen_letter(output: str, query: Query) -> str | None:
    """The letter of the option that the output settles on.

    In this order: the last "answer is X" or "Answer: X", the last boxed letter, the last letter that is formatted as
    an option: "(X)", "**X**", "X." at the start of a line, "option X". The options are those that the query's text
    lists line by line ("A. ..."), A to J if it lists none. Text after a new "Question:" is ignored.
    """
    text, letters = first_reply(output), _letters(query)
    for candidate in (*statements(text), boxed(text) or ""):
        if letter := _leading_letter(candidate, letters):
            return letter
    marked = [m for form in _LETTER_FORMS for m in form.finditer(text) if m[1].upper() in letters]
    return max(marked, key=lambda m: m.start(1))[1].upper() if marked else None


def grade_multiple_choice(output: str, query: Query) -> Grade:
    """Whether `chosen_letter` is the letter in the reference."""
    reference = re.fullmatch(r"\W*([A-Za-z])\W*", reference_of(query))
    if reference is None:
        raise InputError(f"query {query.query_id!r}: the reference {query.reference!r} is not the letter of an option")
    letter = chosen_letter(output, query)
    return Grade(float(letter == reference[1].upper()), letter)
