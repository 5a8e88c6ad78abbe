"""Compares formulas in a process of its own: one JSON line [reference, output] in, one JSON line out."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import Any

LIBRARY_TIMEOUT_S = 4
MEMORY_BYTES = 4 << 30


def _parse(text: str) -> list[Any]:
    from math_verify import parse

    return parse(text, parsing_timeout=LIBRARY_TIMEOUT_S)


def _parse_reference(text: str) -> list[Any]:
    """Parses a reference with or without dollar signs; the parser finds bare LaTeX only between them."""
    return _parse(text) if "$" in text or "\\boxed" in text else _parse(f"${text}$") or _parse(text)


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

    gold, target = _parse_reference(reference), _parse(output)
    right = bool(gold and target) and verify(gold, target, timeout_seconds=LIBRARY_TIMEOUT_S)
    return {"right": bool(right), "answer": _normal_form(target)}


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
        try:
            reply = compare(*json.loads(line))
        except (Exception, MemoryError):
            reply = {"right": False, "answer": None}
        print(json.dumps(reply), file=replies, flush=True)
