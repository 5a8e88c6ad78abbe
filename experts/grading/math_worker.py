"""Reads and compares formulas in a process of its own: one JSON line with a question in, one with the reply out."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import re
import sys
import unicodedata
from collections.abc import Callable
from fractions import Fraction
from typing import Any

LIBRARY_TIMEOUT_S = 4
LONGEST_TIME_S = 30  # then the process ends by itself: whoever asked has given up, or was killed
MEMORY_BYTES = 4 << 30
RELATIVE_TOLERANCE = 1e-4  # numbers that differ by more are not the same; the library rounds to 6 decimals
_LONGEST_BITS = 4_000
_SIGNS = str.maketrans(
    {
        "\u2212": "-", "\u2013": "-", "\uff0d": "-", "\ufe63": "-", "\u00d7": r"\times ", "\u22c5": r"\cdot ",
        "\u00b7": r"\cdot ", "\u00f7": r"\div ", "\u03c0": r"\pi ", "\u221e": r"\infty ", "\u2264": r"\le ",
        "\u2265": r"\ge ", "\u2260": r"\ne ", "\u00b1": r"\pm ", "\u222a": r"\cup ", "\u2208": r"\in ",
    }
)  # fmt: skip
_BOX = re.compile(r"\\(?:fbox|framebox|bbox|doublebox|shadowbox|[oO]valbox)(?: ?\[[^\[\]\n]{0,40}\])?(?=\{)")


def readable(text: str) -> str:
    """The text with LaTeX in place of Unicode's signs, powers, roots and fractions, and mixed numbers in LaTeX."""
    text = re.sub(
        "[\u2070\u00b9\u00b2\u00b3\u2074-\u207b]+", lambda m: "^{" + unicodedata.normalize("NFKC", m[0]) + "}", text
    )
    text = re.sub("[\u00bc-\u00be\u2150-\u215e]", lambda m: r"\frac{{{}}}{{{}}}".format(*_parts(m[0])), text)
    text = re.sub(r"\u221a ?(\d+|[a-z]|\([^()]{1,40}\))", r"\\sqrt{\1}", text)
    text = re.sub(r"(?<![\d./^_{])(\d{1,9})(?: | and )(\d{1,9}) ?/ ?(\d{1,9})(?![\d/])", r"\1\\frac{\2}{\3}", text)
    return _BOX.sub(r"\\boxed", text.translate(_SIGNS))


def _parts(fraction: str) -> list[str]:
    return unicodedata.normalize("NFKC", fraction).replace("\u2044", "/").split("/")


def _parse(text: str) -> list[Any]:
    from math_verify import parse

    return parse(readable(text), parsing_timeout=LIBRARY_TIMEOUT_S)


def _parse_formula(text: str) -> list[Any]:
    """Parses a formula with or without dollar signs; the parser finds bare LaTeX only between them."""
    return _parse(text) if "$" in text or "\\boxed" in text else _parse(f"${text}$") or _parse(text)


def _number(expression: Any) -> Any | None:
    """The expression, evaluated, if it is a real number: of sympy's classes Rational or Float if it can be."""
    import sympy

    if isinstance(expression, sympy.Eq):
        expression = expression.rhs
    if not isinstance(expression, sympy.Expr) or expression.free_symbols:
        return None
    value = expression.doit()
    if not isinstance(value, sympy.Number):
        value = sympy.simplify(value) if value.is_real is not False else value
    return value if value.is_real and value.is_finite else None


def _same_number(gold: Any, target: Any) -> bool | None:
    """Whether two expressions are the same number; None if one is no number, or if they differ by little."""
    import sympy

    a, b = _number(gold), _number(target)
    if a is None or b is None:
        return None
    if isinstance(a, sympy.Rational) and isinstance(b, sympy.Rational):
        return bool(a == b)
    difference, size = abs((a - b).evalf(30)), abs(a.evalf(30))
    return False if difference > RELATIVE_TOLERANCE * size else None


def _normal_form(parsed: list[Any]) -> str | None:
    """A string that is equal for equal values, as far as simplification shows it."""
    import sympy

    if not parsed:
        return None
    try:
        return str(sympy.nsimplify(parsed[0].doit(), rational=True))
    except Exception:
        return str(parsed[0])


def compare(reference: str, output: str) -> dict[str, Any]:
    """{"right": whether the output's formula equals the reference, "answer": the formula in normal form or None}."""
    from math_verify import verify

    gold, target = _parse_formula(reference), _parse_formula(output) if _is_formula(output) else _parse(output)
    right = bool(gold and target) and _same_number(gold[0], target[0])
    if right is None:
        right = verify(gold, target, timeout_seconds=LIBRARY_TIMEOUT_S)
    return {"right": bool(right), "answer": _normal_form(target)}


def _is_formula(text: str) -> bool:
    """Whether a text without dollar signs is a formula and no prose."""
    return "$" not in text and not re.search(
        r"(?<![\\a-zA-Z])[a-zA-Z]{3,}|\w \w+ \w", re.sub(r"\\\w+(?:\{[a-z ]{1,20}\})?", "", text)
    )


def value(formula: str) -> dict[str, Any]:
    """{"value": the number that the formula is, as "p/q", or None if it is no real number, or several}."""
    import sympy

    parsed = _parse(f"${formula}$")
    number = _number(parsed[0]) if parsed else None
    if number is None:
        return {"value": None}
    exact = Fraction(str(number if isinstance(number, sympy.Rational) else number.evalf(20)))
    size = exact.numerator.bit_length() + exact.denominator.bit_length()
    return {"value": f"{exact.numerator}/{exact.denominator}" if size < _LONGEST_BITS else None}


QUESTIONS: dict[str, Callable[..., dict[str, Any]]] = {"compare": compare, "value": value}


def answer(question: list[Any]) -> dict[str, Any]:
    """The reply to [name of a function in `QUESTIONS`, its arguments]; {} if it fails."""
    try:
        return QUESTIONS[question[0]](*question[1:])
    except (Exception, MemoryError):
        return {}


def serve() -> None:
    """Replies on the original standard output; what the libraries print is discarded."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    compare("1", "$1$")
    print("{}", file=replies, flush=True)
    for line in sys.stdin:
        faulthandler.dump_traceback_later(LONGEST_TIME_S, exit=True, file=sys.stderr)
        reply = answer(json.loads(line))
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps(reply), file=replies, flush=True)
