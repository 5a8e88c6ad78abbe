"""Grades numeric questions by the number that an output settles on."""

from __future__ import annotations

import re
from fractions import Fraction

from experts.grading.base import Grade, boxed, first_reply, reference_of, statements
from experts.types import Query
from leeroo_env.errors import InputError

_DIGITS = r"(?:\d{1,3}(?:(?:,|\{,\})\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_TIMES = r"(?:\\times|\\cdot|[x*\u00d7\u00b7])"
_POWER = rf"(?:[eE][-+]?\d{{1,3}}(?!\d)|\s*{_TIMES}\s*10\s*\^\s*\{{?\s*(?P<power>[-+]?\d{{1,3}})\s*\}}?)?"
_NUMBER = re.compile(
    r"(?<![\w./])(?P<sign>-)?(?:\\?[$€£]\s?)?(?P<sign2>-)?(?:"
    r"\\[dt]?frac\s*\{\s*(?P<fn>-?\d+)\s*\}\s*\{\s*(?P<fd>\d+)\s*\}"
    r"|(?:(?P<whole>\d{1,3}) )?(?P<n>\d+)\s?/\s?(?P<d>\d+)(?![\d/])"
    rf"|(?P<plain>{_DIGITS}){_POWER})(?P<percent>\s?\\?%|\s?percent\b)?"
)
_LONGEST_NUMBER = 400
_RELATIVE_TOLERANCE = Fraction(1, 10_000)


def _with_ascii_minus(text: str) -> str:
    return re.sub("[\N{MINUS SIGN}\N{EN DASH}\N{FULLWIDTH HYPHEN-MINUS}\N{SMALL HYPHEN-MINUS}]", "-", text)


def _value(match: re.Match[str]) -> Fraction | None:
    """The value of a match of `_NUMBER`; None for a division by zero and for excessive lengths."""
    if len(match[0]) > _LONGEST_NUMBER:
        return None
    if match["plain"] is None:
        numerator, denominator = int(match["fn"] or match["n"]), int(match["fd"] or match["d"])
        if denominator == 0:
            return None
        value = int(match["whole"] or 0) + Fraction(numerator, denominator)
    else:
        exponent = re.search(r"[eE]([-+]?\d+)", match[0])
        power = int(match["power"] or (exponent[1] if exponent else 0))
        value = Fraction(re.sub(r"[,{}]", "", match["plain"])) * Fraction(10) ** power
    return -value if match["sign"] or match["sign2"] else value


def _numbers(text: str) -> list[tuple[Fraction, bool]]:
    """Each number in a text, and whether it is a percentage."""
    found = []
    for match in _NUMBER.finditer(_with_ascii_minus(text)):
        if (value := _value(match)) is not None:
            found.append((value, match["percent"] is not None))
    return found


def number_text(value: Fraction) -> str:
    """The normal form of a number: a whole or decimal number without trailing zeros, else a reduced fraction."""
    twos, fives, rest = 0, 0, value.denominator
    while rest % 2 == 0:
        twos, rest = twos + 1, rest // 2
    while rest % 5 == 0:
        fives, rest = fives + 1, rest // 5
    places = max(twos, fives)
    if rest != 1 or places > 30:
        return f"{value.numerator}/{value.denominator}"
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    whole, decimals = digits[: len(digits) - places], digits[len(digits) - places :]
    return ("-" if value < 0 else "") + whole + ("." + decimals if places else "")


def _stated_number(output: str) -> tuple[Fraction, bool] | None:
    text = first_reply(output)
    if found := _numbers(boxed(text) or ""):
        return found[-1]
    for statement in statements(text):
        first_line = statement.strip().split("\n")[0]
        if found := _numbers(first_line.split("=")[-1]) or _numbers(first_line):
            return found[0]
    found = _numbers(text)
    return found[-1] if found else None


def _same_number(value: Fraction, reference: Fraction) -> bool:
    if reference.denominator == 1:
        return value == reference
    return abs(value - reference) <= _RELATIVE_TOLERANCE * abs(reference)


def stated_number(output: str, query: Query) -> str | None:
    """The number that the output settles on, in normal form; see `grade_number`."""
    stated = _stated_number(output)
    return None if stated is None else number_text(stated[0])


def grade_number(output: str, query: Query) -> Grade:
    """Whether the number that the output settles on equals the reference's.

    The output's number is the last boxed one, else the last after "answer is", else the last of all. A whole reference
    must be matched exactly, any other to one part in 10,000. "1,234.50", "1.2345e3", "$3", "1/3", "1 1/2", LaTeX
    fractions and Unicode minus signs are read. A percentage p% on either side equals p and p/100; its normal form is p.
    """
    references = _numbers(reference_of(query))
    if not references:
        raise InputError(f"query {query.query_id!r}: the reference {query.reference!r} contains no number")
    reference, reference_percent = references[-1]
    stated = _stated_number(output)
    if stated is None:
        return Grade(0.0, None)
    value, percent = stated
    accepted = [reference]
    if percent != reference_percent:
        accepted.append(reference * 100 if percent else reference / 100)
    return Grade(float(any(_same_number(value, one) for one in accepted)), number_text(value))
