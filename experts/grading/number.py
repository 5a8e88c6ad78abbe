"""Grades numeric questions by the number that an output settles on."""

from __future__ import annotations

import functools
import re
from fractions import Fraction
from typing import Literal

from experts.grading.base import Grade, reference_of
from experts.grading.formula import formula_process, have_math_verify
from experts.grading.numerals import UNIT, Number, number_in_words, numbers, plain_numerals
from experts.grading.stated import boxed, graded_text, statements
from experts.types import Query
from leeroo_env.errors import InputError

NUMBER_TIMEOUT_S = 3.0
_RELATIVE_TOLERANCE = Fraction(1, 10_000)
_SEGMENT_CHARS = 400

_LEAD = re.compile(
    r"[\s*_`\"'$(\[{\u201c\u2018:=\u2248~\u300c\u3010]{0,8}(?:(?:the|is|be|exactly|about|approximately|roughly"
    r"|around|nearly|almost|a total of|equal to"
    r"|clearly|therefore|thus|simply|just|only|number|value|of|approx\.?|circa|ca\.|ungef\u00e4hr|environ"
    r"|aproximadamente|cerca de)[ :*_$(]{1,4}){0,5}",
    re.IGNORECASE,
)
_JOIN = (
    r" ?(?:[,;&|]|\u3001|\bor\b|\band\b|\boder\b|\bund\b|\bou\b|\bet\b|\bo\b|\by\b|\be\b|\u6216|\u548c|\bto\b"
    r"|\bbis\b)"
)
_JOINED = re.compile(
    rf"(?P<unit>[ $]{{0,2}}(?:{UNIT.pattern})?[ $]{{0,2}})(?P<join>{_JOIN}{{1,2}}) ?(?:maybe "
    rf"|also )?(?:[a-z]_?\d? ?= ?)?[(\[{{$]{{0,2}}(?=[-+$]?[\d.])",
    re.IGNORECASE,
)
_LIST_ENDS = re.compile(rf"(?P<unit>[ $]{{0,2}}(?:{UNIT.pattern})?)[\s$)\]}}*]{{0,4}}(?:[.,;]|$|\b(?:and|or)\b)")
_RANGE = re.compile(r" ?(?:-|\.\.\.?|\u2026) ?(?=\d)")
_OPERATION = re.compile(
    r" ?(?:[-+*/=\u00d7\u00f7\u00b7\u2248x<>\u2264\u2265] ?[-(]?[\d\\(a-zA-Z]|\\(?:approx|le|ge|times))"
)
_SET = re.compile(r"^[\s$]*(?:\\?[{(\[]).*,.*(?:\\?[})\]])[\s$.]*$")
_RELATION = re.compile(
    r"[<>\u2264\u2265\u2260\u2208\u222a]|\\(?:le|ge|leq|geq|lt|gt|ne|neq|in|cup|leqslant|geqslant)(?![a-z])"
)
_SEVERAL = re.compile(r"(?:^|=|\bis)[\s$]*(?:\u00b1|\+/-)")
_TOWER = re.compile(r"\^[\s{(]{0,3}[\d.]{0,20}[\s{(]{0,3}\^|\^[\s{(]{0,3}-?\d{5}|\d{5}\)?!|!!")  # too large to compute
_TEX = re.compile(r"\\[a-zA-Z]+")
_UNKNOWNS = re.compile(r"(?<![a-zA-Z\\])([a-zA-Z]_?\d?) ?=")
_CLAUSE = re.compile(r"[,;] |\. |\.$| (?:since|because|as|so|which|where|when|and)\b")
_FORMULA = re.compile(
    r"(?:\\[a-zA-Z]+|[\d.,]+|[{}()^_+\-*/\u00d7\u00b7\u221a\u03c0\u00f7\u27e8\u27e9!]|[a-zA-Z](?![a-zA-Z])"
    r"| (?=[\\\d{(^+\-*/\u00d7\u00b7\u221a\u03c0])){1,120}"
)
_DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+$(?<![1-9],\d{3})(?<![1-9]\d,\d{3})(?<![1-9]\d\d,\d{3})")  # or is it a list?
_UNKNOWN: Literal["unknown"] = "unknown"  # there is a number, but not a single one, or not one that can be read

# A number, no number at all, or numbers of which none is the answer.
_Reading = Number | None | Literal["unknown"]


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


def _evaluate(formula: str) -> Number | None:
    """The number that a formula is, by math-verify; None if it is none, or the package is missing."""
    formula = formula.strip(" .,;:$")
    if not formula or len(formula) > _SEGMENT_CHARS or not have_math_verify():
        return None
    if _TOWER.search(formula):
        return None
    formula = formula.replace("\u221a", r"\sqrt ").replace("\u03c0", r"\pi ").replace("\u00d7", r"\times ")
    formula = formula.replace("\u00b7", r"\cdot ").replace("\u00f7", r"\div ").replace("**", "^")
    formula = formula.replace("\u27e8", "(").replace("\u27e9", ")")
    try:
        reply = formula_process.ask(["value", formula], NUMBER_TIMEOUT_S)
    except (RuntimeError, OSError):  # no process can be started here
        return None
    value = reply.get("value") if reply else None
    return None if value is None else Number(Fraction(value), False, 0, len(formula))


def _formula_at(text: str, number: Number) -> Number | None:
    """The number that the formula around `number` is."""
    if re.match(r"[^\W\d_]{2}", text[number.end : number.end + 2]):  # a word
        return None
    line_start = text.rfind("\n", 0, number.start) + 1
    start = max(line_start, number.start - _SEGMENT_CHARS)
    for run in _FORMULA.finditer(text[start : number.end + _SEGMENT_CHARS].split("\n")[0]):
        if run.start() <= number.start - start < run.end():
            return _evaluate(run[0].split("=")[-1]) if re.search(r"[^\d.,\s]", run[0]) else None
    return None


def _whole(text: str) -> _Reading:
    """What a text that should be one number is: a box, or a reference. Its unit may follow, "x =" precede it."""
    text = plain_numerals(text[:_SEGMENT_CHARS]).strip(" \n.$*_\u2248~")
    text = re.sub(r"^\([A-Z]\) ?", "", text)  # the letter of an option
    if _RELATION.search(text) or _SET.match(text) or _SEVERAL.search(text) or len(set(_UNKNOWNS.findall(text))) > 1:
        return _UNKNOWN
    text = text.split("=")[-1].split("\u2248")[0] if "=" in text or "\u2248" in text else text
    text = text.strip(" $\n")
    text = text[1:-1] if re.fullmatch(r"\{[^{}]*\}", text) else text
    found = list(numbers(text))
    if not found:
        return number_in_words(text) or (_evaluate(text) if "\\" in text or "\u03c0" in text else None)
    first = found[0]
    unit = UNIT.match(text, first.end)
    rest = text[unit.end() if unit else first.end :].strip(" ).*_$}!")
    before = _LEAD.match(text)
    if len(found) == 1 and first.value is not None and before and before.end() >= first.start and not rest:
        return first if not text[first.end :].lstrip().startswith("!") else _evaluate(text) or _UNKNOWN
    if re.search(r"\\(?:text|quad)|[^\W\d_]{3,}(?<!sqrt)(?<!frac)(?<!binom)", re.sub(r"\\[a-z]+", "", text)):
        single = [one for one in found if one.value is not None]
        return single[0] if len(single) == len(found) == 1 else _UNKNOWN
    return (
        _evaluate(text)
        if not _JOINED.match(text, first.end) and not re.search(r"\d ?:", text) and _evaluate(text)
        else _UNKNOWN
    )


def _of_statement(text: str) -> _Reading:
    """The number that a statement such as "... 5 cm, since 2 + 3 = 5" begins with, or that its equation ends with."""
    line = plain_numerals(text.strip(" \n")[:_SEGMENT_CHARS].split("\n")[0])
    lead = _LEAD.match(line)
    start = lead.end() if lead else 0
    if spelled := number_in_words(line[start:]):
        return spelled
    found = list(numbers(line))
    if not found:
        return None
    first = found[0]
    if _SEVERAL.search(line) or _SET.match(line.rstrip(".")):
        return _UNKNOWN
    if first.start <= start + 1:
        if first.value is not None and not _OPERATION.match(line, first.end):
            return _UNKNOWN if (len(found) > 1 and _is_list(line, first, found[1])) else first
        clause = line[: clause_end.start()] if (clause_end := _CLAUSE.search(line, first.end)) else line
        line = clause if "=" in clause or first.value is None else line
    line = re.sub(r"(?<=[\w}]) \([^()]{0,200}\)", "", line)
    for part in (line.split("=")[-1], line):
        if found := list(numbers(part)):
            return _first_of(part, found)
    return None


def _first_of(text: str, found: list[Number]) -> _Reading:
    """The first number of a text, or the formula that it begins."""
    one, rest = found[0], text[found[0].end :]
    if (len(found) > 1 and _is_list(text, one, found[1])) or re.match(
        r"-\d|[:.,/'_]\d", rest
    ):  # a list, a range, a date, an address
        return _UNKNOWN
    if one.value is None or _OPERATION.match(rest):
        return _formula_at(text, one) or (_UNKNOWN if one.value is None or _RANGE.match(rest) else one)
    return one


def _is_list(text: str, one: Number, two: Number) -> bool:
    """Whether two numbers are joined, as in "3, 5", "3 or 5" and "3 to 5"; "1.5 hours or 90 minutes" is one number."""
    joined = _JOINED.match(text, one.end)
    ends = _LIST_ENDS.match(text, two.end)
    if joined is None or ends is None or two.start > joined.end() + 1:
        return False
    if one.value is None or two.value is None:
        return True
    units = joined["unit"].strip(" $"), ends["unit"].strip(" $")
    near = [abs(one.value - value) <= abs(one.value) / 100 for value in (two.value, two.value / 100, two.value * 100)]
    same = near[0] or (one.percent != two.percent and any(near))
    return not same and not (all(units) and units[0] != units[1] and "or" in joined["join"].lower())


def _last(text: str) -> _Reading:
    """The last number of a text; not one that is part of an enumeration or of a formula that is no number."""
    text = plain_numerals(text.strip())
    line = text[text.rfind("\n") + 1 :]
    if (_SET.match(line) and len(list(numbers(line))) > 1) or _SEVERAL.search(line):
        return _UNKNOWN
    if (
        "\n" not in text
        and re.search(r"[\^\u221a\u03c0\\]", text)
        and not re.search(r"[^\W\d_]{2,}", _TEX.sub("", text))
    ):
        return _whole(text)
    without_asides = re.sub(r"(?<=[\w}%]) \([^()]{0,200}\)(?=[\s.!*]*$)", "", line)
    text = text[: len(text) - len(line)] + (without_asides if next(numbers(without_asides), None) else line)
    found = list(numbers(text))
    for i in range(len(found) - 1, max(-1, len(found) - 50), -1):
        one = found[i]
        if one.value is None:
            if (read := _formula_at(text, one)) is not None:
                return read
            if re.match(r" ?(?:\\|\u221a|\u03c0|\^)", text[one.end :]):
                return _UNKNOWN
            continue
        if i and _is_list(text, found[i - 1], one):
            return _UNKNOWN
        return one
    lead = _LEAD.match(text)
    return number_in_words(text[lead.end() :]) if lead and len(text) < _SEGMENT_CHARS else None


def _stated_number(output: str, query: Query) -> Number | None:
    text = graded_text(output, query)
    box = boxed(text)
    reading = _whole(box.text) if box else None
    if reading is None:
        for statement in statements(text):
            if (reading := _of_statement(statement.text)) is not None:
                break
    if reading is None:
        reading = _last(text)
    return reading if isinstance(reading, Number) else None


def _same_number(value: Fraction, reference: Fraction) -> bool:
    if reference.denominator == 1:
        return value == reference
    return abs(value - reference) <= _RELATIVE_TOLERANCE * abs(reference)


def stated_number(output: str, query: Query) -> str | None:
    """The number that the output settles on, in normal form; see `grade_number`."""
    stated = _stated_number(output, query)
    return None if stated is None or stated.value is None else number_text(stated.value)


@functools.lru_cache(maxsize=4096)
def _read_reference(reference: str) -> _Reading:
    """The number that a reference is, with a known unit; of a solution that ends with "#### 5" only that."""
    text = re.sub(r"\s+", " ", reference.split("####")[-1]).strip(" $*_")
    if text.startswith(("~", "\u2248")):
        return _UNKNOWN
    box = boxed(text)
    text = box.text if box and re.fullmatch(r"\\\w{3,10} ?\{.*\}\.?", text) else text
    numerals = plain_numerals(text).strip(" $*_")
    numerals = numerals[1:-1].strip() if re.fullmatch(r"\{[^{}]*\}", numerals) else numerals
    found = list(numbers(numerals[:_SEGMENT_CHARS]))
    if not found and not re.search(r"\\|\u03c0", text):
        return None
    if found and found[0].value is not None and found[0].start == 0 and not _DECIMAL_COMMA.match(numerals):
        unit = UNIT.match(numerals, found[0].end)
        return found[0] if numerals[unit.end() if unit else found[0].end :].strip(" .$") == "" else _UNKNOWN
    words = re.search(r"[^\W\d_]{2,}", re.sub(r"\\[a-zA-Z]+(?:\{[a-zA-Z ]{1,20}\})?", "", text))
    formula = re.search(r"\\[a-zA-Z]|[\u221a\u03c0]", text) and not words and not re.search(r"[=<>:,;]", text)
    return (_evaluate(text) if formula else None) or _UNKNOWN


def grade_number(output: str, query: Query) -> Grade:
    """Whether the number that the output settles on equals the reference's.

    The output's number is the boxed one, else that of the last statement ("the answer is ..."), else the last of all.
    A whole reference must be matched exactly, any other to one part in 10,000. Read are thousands in any form,
    powers ("1.2e3", "5 x 10^3", "2^5"), fractions and mixed numbers, "$1.5 million", "minus 5", units, Unicode's signs
    and LaTeX (formulas by math-verify, where it is installed). Several numbers ("3, 5", "3 or 5") are no answer. A
    percentage p% on either side equals p and p/100; its normal form is p.

    Raises:
        InputError: the reference is not wholly a number.
    """
    reference = _read_reference(reference_of(query))
    if reference is None:
        raise InputError(f"query {query.query_id!r}: the reference {query.reference!r} contains no number")
    if not isinstance(reference, Number) or reference.value is None:
        hint = "" if have_math_verify() else "; formulas need the package math-verify: pip install -e '.[math]'"
        raise InputError(f"query {query.query_id!r}: the reference {query.reference!r} is not wholly a number{hint}")
    stated = _stated_number(output, query)
    if stated is None or stated.value is None:
        return Grade(0.0, None)
    accepted = [reference.value]
    if stated.percent != reference.percent:
        accepted.append(reference.value * 100 if stated.percent else reference.value / 100)
    right = any(_same_number(stated.value, one) for one in accepted)
    return Grade(float(right), number_text(stated.value))
