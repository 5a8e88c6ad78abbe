"""Reads the fields of one row of a question file and refuses, in one line, what is no text, option or reference."""

from __future__ import annotations

import ast
import json
import math
import re
import warnings
from collections.abc import Sequence
from typing import Any

from experts.data.readers import shown
from leeroo_env.errors import InputError

COLUMNS = {
    "query_id": ("query_id", "id", "question_id", "sample_id"),
    "text": ("text", "question", "prompt", "query"),
    "domain": ("domain", "category", "subject"),
    "reference": ("reference", "answer", "target"),
    "options": ("choices", "options"),
    "split": ("split",),
}
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
PADDING = "N/A"  # with which MMLU-Pro fills up its lists of options
_LETTER = re.compile(r"\(?([A-Za-z])[).:]{0,2}")
_BAD_CHARACTER = re.compile("[\ud800-\udfff\0]")


def column_of(row: dict[str, Any], field: str) -> str | None:
    """The row's column for a field."""
    return next((name for name in COLUMNS[field] if name in row), None)


def string(row: dict[str, Any], name: str, where: str) -> str:
    """The value of an existing field as a nonempty text."""
    value = row[name]
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise InputError(f"{where}: field {name}: is empty")
    return text_of(value, f"{where}: field {name}")


def text_of(value: Any, where: str) -> str:
    """The value if it is a text that can be stored and sent."""
    if not isinstance(value, str):
        raise InputError(f"{where}: {shown(value)} is not text")
    if bad := _BAD_CHARACTER.search(value):
        problem = "a NUL character" if bad[0] == "\0" else "half of a surrogate pair"
        raise InputError(f"{where}: {shown(value)} contains {problem}")
    return value


def render_options(question: str, options: Sequence[str]) -> str:
    """The question followed by its options, one a line: "A. ...", "B. ..."."""
    lines = (f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
    return "\n".join([question, *lines])


def without_padding(options: Sequence[str]) -> list[str]:
    """The options before the "N/A" at the end; one between others is an option, and dropping it would move letters."""
    end = len(options)
    while end and options[end - 1] == PADDING:
        end -= 1
    return list(options[:end])


def options_of(row: dict[str, Any], where: str) -> list[str]:
    """The options: a list of texts, in a CSV file in the syntax of JSON or Python. Padding is dropped.

    A single "N/A" at the end is an option too, except in MMLU-Pro, which has the field `cot_content`.
    """
    name = column_of(row, "options")
    if name is None or row[name] is None or row[name] == "":
        return []
    where = f"{where}: field {name}"
    values = parsed_list(row[name]) if isinstance(row[name], str) else row[name]
    if not isinstance(values, list):
        raise InputError(f"{where}: {shown(row[name])} is not a list of texts")
    whole = [str(value) if type(value) is int else value for value in values]
    for value in whole:
        if not isinstance(value, str):
            raise InputError(f"{where}: {shown(values)} is not a list of texts: {shown(value)}")
        text_of(value, where)
    padded = "cot_content" in row or whole[-2:] == [PADDING] * 2
    options = without_padding(whole) if padded else whole
    if len(options) > len(LETTERS):
        raise InputError(f"{where}: has more than {len(LETTERS)} options")
    return options


def parsed_list(text: str) -> Any:
    """The list that a text spells in the syntax of JSON or of Python; None if it spells none."""
    for parse in (json.loads, ast.literal_eval):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as one about an unknown escape
            try:
                found = parse(text)
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                continue
        return found if isinstance(found, list) else None
    return None


def reference_of(row: dict[str, Any], options: list[str], where: str) -> str | None:
    """The reference: the letter of an option if there are options, else the text after "####" if there is one."""
    name = column_of(row, "reference")
    value = row[name] if name is not None else None
    if name is None or value is None or value == "":
        return None
    where = f"{where}: field {name}"
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{where}: {value!r} is no reference")
    if options:
        return _letter_of(value, options, where)
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int | float):
        return str(int(value) if float(value).is_integer() else value)
    text = text_of(value, where)
    if not text.strip():
        raise InputError(f"{where}: is empty")
    return text.partition("####")[2].strip() or text


def _letter_of(value: Any, options: list[str], where: str) -> str:
    """The letter of the option that a reference names: by its letter, its number from 0, or its text."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if value not in range(len(options)):
            problem = f"is not the number of one of the {len(options)} options, which count from 0"
            raise InputError(f"{where}: {shown(value)} {problem}")
        return LETTERS[int(value)]
    text = text_of(str(value) if isinstance(value, bool) else value, where).strip()
    letters = LETTERS[: len(options)]
    letter = _LETTER.fullmatch(text)
    if letter and letter[1].upper() in letters and (letter[1].isupper() or text not in options):
        return letter[1].upper()
    listed = [(i, form) for i, option in enumerate(options) for form in (option.strip(), f"{letters[i]}. {option}")]
    found = {letters[i] for i, form in listed if form == text}
    found = found or {letters[i] for i, form in listed if form.casefold() == text.casefold()}
    if text.isascii() and text.isdecimal() and int(text) < len(options):  # of a CSV file, where all is text
        found.add(letters[int(text)])
    if len(found) == 1:
        return found.pop()
    problem = f"names several of the options, {', '.join(sorted(found))}" if found else "is none"
    raise InputError(f"{where}: {shown(value)} {problem} of the {len(options)} options (a letter to {letters[-1]})")
