"""Writes new training questions with known answers by programs; defines the interface of all writers.

The questions are for training only: they carry no split, and `novelty` must keep them away from val and test.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from experts.data.queries import load_queries, text_id
from experts.generation.novelty import normal_question
from experts.tiny.tasks import DIFFICULTIES, FAMILIES, draw
from experts.types import Query
from leeroo_env.errors import InputError

GYM_LEVELS = 5
GYM_TASKS = (  # fast to generate, with one right answer on one line
    *("aiw", "basic_arithmetic", "calendar_arithmetic", "chain_sum", "count_bits", "count_primes"),
    *("family_relationships", "gcd", "lcm", "leg_counting", "letter_counting", "simple_equations", "syllogism"),
)


@dataclass
class Written:
    """The result of one call of a writer.

    Attributes:
        queries: at most as many as requested, without repeated texts. `reference` is None if it is unknown.
        dropped: by reason, how many questions (or complete replies, if unreadable) were left out.
        cost_usd: cost of the writing, in dollars.
    """

    queries: list[Query] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    cost_usd: float = 0.0


class Writer(Protocol):
    """Writes questions. Equal arguments, including the state of `rng`, give equal questions."""

    @property
    def name(self) -> str: ...

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains that it can write questions for."""
        ...

    def write(self, n: int, domain: str | None, rng: np.random.Generator) -> Written:
        """Up to n new questions of one domain, or of random domains if None. Raises InputError if it is unknown."""
        ...


@dataclass(frozen=True)
class TaskWriter:
    """Writes questions of `experts.tiny.tasks` with known answers that the tiny models were not trained on."""

    difficulties: tuple[int, ...] = DIFFICULTIES
    domains: tuple[str, ...] = tuple(FAMILIES)
    name: str = "tasks"

    def __post_init__(self) -> None:
        check_names("domains", self.domains, FAMILIES)
        check_names("difficulties", self.difficulties, DIFFICULTIES)

    def write(self, n: int, domain: str | None, rng: np.random.Generator) -> Written:
        """As `Writer.write`; "used up" counts questions that a family with few texts could not supply."""
        written, texts, used_up = Written(), set[str](), set[str]()
        for chosen in draw_domains(self, n, domain, rng):
            if chosen not in used_up:
                try:
                    task = draw(rng, [chosen], held_out=True, exclude=texts, difficulties=self.difficulties)
                except ValueError:
                    used_up.add(chosen)
                else:
                    texts.add(task.text)
                    written.queries.append(Query(text_id(task.text), task.text, chosen, task.reference))
            written.dropped.update(["used up"] if chosen in used_up else [])
        return written


class GymWriter:
    """Writes tasks of the package reasoning-gym with known answers, at five levels of difficulty.

    Args:
        tasks: names of tasks that have a curriculum in the package.

    Raises:
        InputError: the package is not installed, or has no such task.
    """

    name = "reasoning-gym"

    def __init__(self, tasks: Sequence[str] = GYM_TASKS) -> None:
        try:
            from reasoning_gym.factory import CURRICULA, DATASETS
        except ImportError:
            raise InputError("GymWriter needs the package reasoning-gym: pip install -e '.[reasoning]'") from None
        check_names("tasks", tasks, CURRICULA)
        self.domains = tuple(dict.fromkeys(tasks))
        self._datasets, self._curricula = DATASETS, CURRICULA

    def write(self, n: int, domain: str | None, rng: np.random.Generator) -> Written:
        """As `Writer.write`; of n draws, those "repeated" and with "no answer" are dropped."""
        written, forms = Written(), set[str]()
        for chosen in draw_domains(self, n, domain, rng):
            task = self._task(chosen, int(rng.integers(GYM_LEVELS)), int(rng.integers(2**31)))
            text, reference = task["question"].strip(), task["answer"]
            if not isinstance(reference, str) or not reference.strip():
                written.dropped["no answer"] += 1
            else:
                add_new(written, Query(text_id(text), text, chosen, reference.strip()), forms)
        return written

    def _task(self, name: str, level: int, seed: int) -> dict[str, Any]:
        """One task with all parameters at this level, or at their last one if they have fewer."""
        curriculum = self._curricula[name]()
        for parameter, values in curriculum.attributes.items():
            curriculum.set_attr_level(parameter, min(level, len(values.levels) - 1))
        return self._datasets[name][0](curriculum.generate_configuration({"seed": seed, "size": 1}))[0]


class FileWriter:
    """Hands out questions of a file in a random order, with their references where it has them.

    Raises InputError where the file cannot be read.
    """

    def __init__(self, path: str) -> None:
        self.name = path
        self._queries = load_queries(path)
        self.domains = tuple(dict.fromkeys(query.domain for query in self._queries))

    def write(self, n: int, domain: str | None, rng: np.random.Generator) -> Written:
        """As `Writer.write`; the same question may come again in a later call."""
        check_names(f"writer {self.name!r}: domain", [domain] if domain is not None else self.domains, self.domains)
        suitable = [query for query in self._queries if domain in (None, query.domain)]
        return Written([suitable[i] for i in rng.permutation(len(suitable))[:n]])


def check_names(where: str, names: Sequence[Any], known: Any) -> None:
    """Raises InputError if there are no names or one is unknown."""
    if not names:
        raise InputError(f"{where}: none are given")
    for name in names:
        if name not in known:
            raise InputError(f"{where}: {name!r} is not one of {', '.join(map(str, known))}")


def draw_domains(writer: Writer, n: int, domain: str | None, rng: np.random.Generator) -> list[str]:
    """The domains of n questions (or replies): the given one, or random ones."""
    if domain is not None:
        check_names(f"writer {writer.name!r}: domain", [domain], writer.domains)
        return [domain] * n
    return [writer.domains[i] for i in rng.integers(len(writer.domains), size=max(n, 0))]


def add_new(written: Written, query: Query, forms: set[str]) -> None:
    """Adds a query unless the normal form of its text is in `forms`."""
    form = normal_question(query.text)
    if form in forms:
        written.dropped["repeated"] += 1
    else:
        forms.add(form)
        written.queries.append(query)
