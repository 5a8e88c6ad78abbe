"""Generates questions with computed answers, on which the tiny language models are trained and tested.

A family maps a random generator and a difficulty to a short English question and its only right answer. Family and
difficulty can be read from the text, so a router can learn them.

    python -m experts.tiny.tasks --out questions.jsonl      # 6,000 held-out questions, for experts.collect
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import tyro

from leeroo_env.files import write_text

DIFFICULTIES = (1, 2, 3, 4, 5)
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MAX_REDRAWS = 1000


@dataclass(frozen=True)
class Question:
    """One question with its right answer; `domain` is its family."""

    query_id: str
    text: str
    domain: str
    reference: str
    difficulty: int


def is_held_out(text: str) -> bool:
    """Whether a question is a test question (a quarter of all texts), on which no model is trained.

    It depends on the text alone, so training and test questions cannot overlap for any seed, family or order of calls.
    """
    return sha256(text.encode()).digest()[0] < 64


def _phrase(rng: np.random.Generator, *phrasings: str) -> str:
    return phrasings[int(rng.integers(len(phrasings)))]


def _number(rng: np.random.Generator, digits: int) -> int:
    """A number with exactly this many digits, without a leading zero."""
    return int(rng.integers(10 ** (digits - 1), 10**digits))


def _letters(rng: np.random.Generator, length: int, alphabet: str = "abcdefghijklmnopqrstuvwxyz") -> str:
    return "".join(alphabet[i] for i in rng.integers(len(alphabet), size=length))


def add(rng: np.random.Generator, difficulty: int) -> tuple[str, str]:
    """The sum of two numbers; the difficulty is the number of digits (the easiest adds one digit to two)."""
    a = _number(rng, max(difficulty, 2))
    b = _number(rng, difficulty)
    return _phrase(rng, "What is {} + {}?", "Add {} and {}.", "{} + {} = ?").format(a, b), str(a + b)


def subtract(rng: np.random.Generator, difficulty: int) -> tuple[str, str]:
    """The difference of two numbers, never negative; digits as in `add`."""
    b, a = sorted((_number(rng, max(difficulty, 2)), _number(rng, difficulty)))
    return _phrase(rng, "What is {} - {}?", "From {} take {}.", "{} - {} = ?").format(a, b), str(a - b)


def multiply(rng: np.random.Generator, difficulty: int) -> tuple[str, str]:
    """The product of two numbers: up to 19 by one digit, then 2, 3 and 4 digits by one, then 2 digits by 2."""
    a = int(rng.integers(2, 20)) if difficulty == 1 else _number(rng, (2, 3, 4, 2)[difficulty - 2])
    b = _number(rng, 2) if difficulty == 5 else int(rng.integers(2, 10))
    return _phrase(rng, "What is {} * {}?", "Multiply {} by {}.", "{} * {} = ?").format(a, b), str(a * b)


def compare(rng: np.random.Generator, difficulty: int) -> tuple[str, str]:
    """The largest of 2, 3 or 4 different two-digit numbers, then the second largest of 3 or 5."""
    numbers = [int(n) for n in rng.choice(90, size=(2, 3, 4, 3, 5)[difficulty - 1], replace=False) + 10]
    rank, name = (0, "largest") if difficulty <= 3 else (1, "second largest")
    text = _phrase(rng, "Which is {}: {}?", "Find the {} of {}.").format(name, " ".join(map(str, numbers)))
    return text, str(sorted(numbers, reverse=True)[rank])


def sort(rng: np.random.Generator, difficulty: int) -> tuple[str, str]:
    """4 to 12 digits in ascending order."""
    digits = _letters(rng, 2 + 2 * difficulty, "0123456789")
    return _phrase(rng, "Sort the digits {}.", "Put {} in order.").format(digits), "".join(sorted(digits))


def reverse(rng: np.random.Generator, difficulty: int) -> tuple[str, str]:
    """4 to 12 letters, last one first."""
    word = _letters(rng, 2 + 2 * difficulty)
    return _phrase(rng, "Reverse the word {}.", "Spell {} backwards.").format(word), word[::-1]


def count(rng: np.random.Generator, difficulty: int) -> tuple[str, str]:
    """How often a letter occurs among 4 to 16 letters of three kinds."""
    alphabet = "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), size=3, replace=False))
    word = _letters(rng, 1 + 3 * difficulty, alphabet)
    text = _phrase(rng, "How many {} in {}?", "Count the {} in {}.").format(alphabet[0], word)
    return text, str(word.count(alphabet[0]))


def weekday(rng: np.random.Generator, difficulty: int) -> tuple[str, str]:
    """The day of the week some days after or before another; the difficulty is the distance, 99 days at most."""
    distance = int(rng.integers(*((1, 8), (8, 15), (15, 29), (29, 61), (61, 100))[difficulty - 1]))
    start, direction = int(rng.integers(7)), int(rng.choice((-1, 1)))
    phrasing = _phrase(rng, "Which day is {} days {} {}?", "What is {} days {} {}?", "{} days {} {} is?")
    text = phrasing.format(distance, "after" if direction == 1 else "before", WEEKDAYS[start])
    return text, WEEKDAYS[(start + direction * distance) % 7]


FAMILIES: dict[str, Callable[[np.random.Generator, int], tuple[str, str]]] = {
    family.__name__: family for family in (add, subtract, multiply, compare, sort, reverse, count, weekday)
}


def draw(
    rng: np.random.Generator,
    families: Sequence[str],
    held_out: bool,
    exclude: AbstractSet[str] = frozenset(),
    difficulties: Sequence[int] = DIFFICULTIES,
) -> Question:
    """A question of a random family and difficulty, held out or not, whose text is not in `exclude`.

    The easiest difficulties have few texts; if one is used up, another difficulty of the same family replaces it.

    Raises:
        ValueError: the family has no texts left.
    """
    domain = families[int(rng.integers(len(families)))]
    for _ in range(MAX_REDRAWS):
        difficulty = difficulties[int(rng.integers(len(difficulties)))]
        for _ in range(20):
            text, reference = FAMILIES[domain](rng, difficulty)
            if is_held_out(text) == held_out and text not in exclude:
                query_id = f"{domain}-{sha256(text.encode()).hexdigest()[:16]}"
                return Question(query_id, text, domain, reference, difficulty)
    raise ValueError(f"family {domain!r} has no text left after {20 * MAX_REDRAWS} draws; ask for fewer questions")


def generate(
    n: int,
    seed: int,
    families: Sequence[str] | None = None,
    exclude: AbstractSet[str] = frozenset(),
    held_out: bool = True,
) -> list[Question]:
    """n questions with distinct texts, none of them in `exclude`; equal arguments give equal questions.

    They are test questions unless `held_out` is False.
    """
    rng = np.random.default_rng(seed)
    used = set(exclude)
    questions = []
    for _ in range(n):
        question = draw(rng, families or tuple(FAMILIES), held_out, used)
        used.add(question.text)
        questions.append(question)
    return questions


def write_questions(out: Path, n: int = 6000, seed: int = 0) -> None:
    """Writes held-out questions as JSON lines.

    Args:
        out: the file.
        n: number of questions.
        seed: seed of the random generator.
    """
    fields = ("query_id", "text", "domain", "reference")
    lines = [json.dumps({name: getattr(question, name) for name in fields}) for question in generate(n, seed)]
    write_text(out, "\n".join(lines) + "\n")


if __name__ == "__main__":
    tyro.cli(write_questions)
