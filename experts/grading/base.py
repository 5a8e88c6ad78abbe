"""Defines grades and finds what a model's output states as its answer."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from experts.types import Query
from leeroo_env.errors import InputError

_ANSWER = r"\banswer(?:\s+is)?\s*[:=]|\banswer\s+is\b|\banswer\s+would\s+be\b|####"
_STATEMENT = re.compile(rf"(?:{_ANSWER})(?P<rest>[^\n]{{0,1000}}(?:\n\s*\S[^\n]{{0,1000}})?)", re.IGNORECASE)
_MOST_UNCLOSED = 3  # degenerate outputs repeat "\\boxed{" thousands of times; reading each would take quadratic time
_NEXT_QUESTION = re.compile(r"\n[ \t#*]{0,10}Question\b[^\n:]{0,20}:", re.IGNORECASE)


@dataclass(frozen=True)
class Grade:
    """The grade of one output.

    Attributes:
        score: in [0, 1].
        answer: the short answer in normal form: equal strings mean agreement. None if the output gives no answer.
        cost_usd: cost of the grading, in dollars; zero except for a model as judge.
        error: why there is no verdict; the score is then 0 and has no meaning.
    """

    score: float
    answer: str | None
    cost_usd: float = 0.0
    error: str | None = None


Grader = Callable[[str, Query], Grade]


def first_reply(output: str) -> str:
    """The output up to where a base model continues with a question of its own."""
    found = _NEXT_QUESTION.search(output)
    return output[: found.start()] if found and output[: found.start()].strip() else output


def boxed(text: str) -> str | None:
    r"""The content of the last complete \boxed{...}."""
    end_of_search = len(text)
    for _ in range(_MOST_UNCLOSED):
        start = text.rfind("\\boxed{", 0, end_of_search)
        if start < 0:
            break
        depth = 0
        for end in range(start + 6, len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                return text[start + 7 : end]
        end_of_search = start
    return None


def statements(text: str) -> list[str]:
    """The text after each "answer is", "answer:" and the like, with the next nonempty line; the last one first."""
    found, position = [], 0
    while match := _STATEMENT.search(text, position):
        found.append(match["rest"].split("####")[0])
        position = match.start("rest")
    return found[::-1]


def reference_of(query: Query) -> str:
    if query.reference is None or not query.reference.strip():
        raise InputError(f"query {query.query_id!r} has no reference to grade against")
    return query.reference
