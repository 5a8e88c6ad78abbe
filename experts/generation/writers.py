"""New queries for self-play, which programs and language models write.

They are for training alone: none carries a split, and `novelty` has to keep them away from val and test.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

import numpy as np
import pydantic

from experts.data.queries import text_id
from experts.generation.novelty import normal_question
from experts.pool import make_expert
from experts.specs import ExpertSpec, Generation, StrictModel
from experts.spending import NOT_ASKED, SpendCap
from experts.tiny.tasks import DIFFICULTIES, FAMILIES, draw
from experts.types import Expert, Query
from leeroo_env.errors import InputError

GYM_LEVELS = 5
GYM_TASKS = (  # of reasoning-gym: quick to make, and with one right answer on one line
    *("aiw", "basic_arithmetic", "calendar_arithmetic", "chain_sum", "count_bits", "count_primes"),
    *("family_relationships", "gcd", "lcm", "leg_counting", "letter_counting", "simple_equations", "syllogism"),
)
MAX_QUESTION_CHARS = 4000


@dataclass
class Written:
    """What a writer gave.

    Attributes:
        queries: of one call no text twice; at most as many as were asked for. `reference` is None where it is unknown.
        dropped: reason -> how many questions (or whole replies, where a reply could not be read) were left out.
        cost_usd: what the writing cost.
    """

    queries: list[Query] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    cost_usd: float = 0.0


class Writer(Protocol):
    """Something that writes questions. The same arguments, `rng`'s state among them, give the same questions."""

    @property
    def name(self) -> str: ...

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains that it can write for."""
        ...

    def write(self, n: int, domain: str | None, rng: np.random.Generator) -> Written:
        """Up to n new questions of one domain, of random ones where None. Raises InputError for an unknown domain."""
        ...


# ---------------------------------------------------------------------------------------------------------------------
# Programs


@dataclass(frozen=True)
class TaskWriter:
    """The families of `experts.tiny.tasks`, with known answers; only texts that the tiny models were not trained on."""

    difficulties: tuple[int, ...] = DIFFICULTIES
    domains: tuple[str, ...] = tuple(FAMILIES)
    name: str = "tasks"

    def __post_init__(self) -> None:
        _check_names("domains", self.domains, FAMILIES)
        _check_names("difficulties", self.difficulties, DIFFICULTIES)

    def write(self, n: int, domain: str | None, rng: np.random.Generator) -> Written:
        """As `Writer.write`; "used up" counts what a family of few texts could not give."""
        written, seen, used_up = Written(), set[str](), set[str]()
        for chosen in _domains(self, n, domain, rng):
            if chosen not in used_up:
                try:
                    task = draw(rng, [chosen], held_out=True, seen=seen, difficulties=self.difficulties)
                except ValueError:
                    used_up.add(chosen)
                else:
                    seen.add(task.text)
                    written.queries.append(Query(text_id(task.text), task.text, chosen, task.reference))
            written.dropped.update(["used up"] if chosen in used_up else [])
        return written


class GymWriter:
    """Tasks of the package reasoning-gym with known answers, from the easiest level to the hardest of five.

    Args:
        tasks: names of tasks; one whose curriculum the package lacks is refused.

    Raises:
        InputError: the package is not installed, or has no such task.
    """

    name = "reasoning-gym"

    def __init__(self, tasks: Sequence[str] = GYM_TASKS) -> None:
        try:
            from reasoning_gym.factory import CURRICULA, DATASETS
        except ImportError:
            raise InputError("GymWriter needs the package reasoning-gym: pip install -e '.[reasoning]'") from None
        _check_names("tasks", tasks, CURRICULA)
        self.domains = tuple(dict.fromkeys(tasks))
        self._datasets, self._curricula = DATASETS, CURRICULA

    def write(self, n: int, domain: str | None, rng: np.random.Generator) -> Written:
        """As `Writer.write`; n draws, of which those "repeated" and with "no answer" are dropped."""
        written, seen = Written(), set[str]()
        for chosen in _domains(self, n, domain, rng):
            task = self._task(chosen, int(rng.integers(GYM_LEVELS)), int(rng.integers(2**31)))
            text, reference = task["question"].strip(), task["answer"]
            if not isinstance(reference, str) or not reference.strip():
                written.dropped["no answer"] += 1
            else:
                _keep(written, Query(text_id(text), text, chosen, reference.strip()), seen)
        return written

    def _task(self, name: str, level: int, seed: int) -> dict[str, Any]:
        """One task, all of whose parameters are at a level, or at their last where they have fewer."""
        curriculum = self._curricula[name]()
        for parameter, values in curriculum.attributes.items():
            curriculum.set_attr_level(parameter, min(level, len(values.levels) - 1))
        return self._datasets[name][0](curriculum.generate_configuration({"seed": seed, "size": 1}))[0]


def _check_names(where: str, names: Sequence[Any], known: Any) -> None:
    """InputError unless there are names, and all are known."""
    if not names:
        raise InputError(f"{where}: there are none")
    for name in names:
        if name not in known:
            raise InputError(f"{where}: {name!r} is none of {', '.join(map(str, known))}")


def _domains(writer: Writer, n: int, domain: str | None, rng: np.random.Generator) -> list[str]:
    """The domain of each of n questions (or replies)."""
    if domain is not None:
        _check_names(f"writer {writer.name!r}: domain", [domain], writer.domains)
        return [domain] * n
    return [writer.domains[i] for i in rng.integers(len(writer.domains), size=max(n, 0))]


def _keep(written: Written, query: Query, seen: set[str]) -> None:
    """Adds a query unless its text is in `seen`, in other case or spacing too."""
    form = normal_question(query.text)
    if form in seen:
        written.dropped["repeated"] += 1
    else:
        seen.add(form)
        written.queries.append(query)


# ---------------------------------------------------------------------------------------------------------------------
# Language models


class Item(StrictModel):
    """One question as a language model must write it. Its own answer is taken for no more than form."""

    question: Annotated[str, pydantic.StringConstraints(strip_whitespace=True, min_length=1)]
    answer: str | int | pydantic.FiniteFloat | None = None


_FENCED = re.compile(r"```(?:json)?[ \t]*\n(.*)\n[ \t]*```", re.DOTALL | re.IGNORECASE)
_REPLY = pydantic.TypeAdapter(list[Any])


class ModelWriter:
    """A language model that is shown a few questions of a domain and writes others, without references.

    Args:
        expert: what is asked; `writing_expert` makes one of an expert of a pool.
        seeds: the questions to show, training queries only. Their domains are the writer's.
        per_call: questions that one call asks for.
        shots: questions that one call shows.

    Raises:
        InputError: there are no seeds, one belongs to val or test, or a number is below 1.
    """

    def __init__(self, expert: Expert, seeds: Sequence[Query], per_call: int = 5, shots: int = 4) -> None:
        if not seeds or min(per_call, shots) < 1:
            raise InputError(f"seeds ({len(seeds)}), per_call ({per_call}) and shots ({shots}) must be at least 1")
        for seed in seeds:
            if seed.split not in (None, "train"):
                raise InputError(f"seeds: query {seed.query_id!r}: field split: {seed.split!r} must not be shown")
        self.name = expert.name
        self.domains = tuple(dict.fromkeys(seed.domain for seed in seeds))
        self._expert, self._seeds = expert, tuple(seeds)
        self._per_call, self._shots = per_call, shots

    def write(self, n: int, domain: str | None, rng: np.random.Generator) -> Written:
        """As `Writer.write`, given the same replies. A reply is not asked for again: there may be fewer than n.

        Whole replies are dropped as "call failed", "no money" (the spend cap is reached), "no JSON list" or "empty
        list"; questions as "not the form" (fields, types), "too long", "repeated" (a seed, or twice) and "more than
        asked".
        """
        sizes = [min(self._per_call, n - start) for start in range(0, n, self._per_call)]
        domains = _domains(self, len(sizes), domain, rng)
        prompts = [self._prompt(size, chosen, rng) for size, chosen in zip(sizes, domains, strict=True)]
        replies = self._expert.answer([Query(text_id(prompt), prompt) for prompt in prompts]) if prompts else []
        written = Written(cost_usd=math.fsum(reply.cost_usd for reply in replies))
        seen = {normal_question(seed.text) for seed in self._seeds}
        for size, chosen, reply in zip(sizes, domains, replies, strict=True):
            reason = "no money" if reply.error == NOT_ASKED else "call failed"
            items, dropped = parse_questions(reply.text) if not reply.error else ([], Counter({reason: 1}))
            written.dropped += dropped + Counter({"more than asked": len(items[size:])})
            for item in items[:size]:
                _keep(written, Query(text_id(item.question), item.question, chosen), seen)
        return written

    def _prompt(self, n: int, domain: str, rng: np.random.Generator) -> str:
        known = [seed for seed in self._seeds if seed.domain == domain]
        shown = [known[i] for i in rng.permutation(len(known))[: self._shots]]
        examples = [{"question": q.text} | ({"answer": q.reference} if q.reference else {}) for q in shown]
        subject = f' on the subject "{domain}"' if domain else ""
        return (
            f"Write {n} new question{'s' if n > 1 else ''}{subject}, of the kind of these examples:\n"
            f"{json.dumps(examples, ensure_ascii=False, indent=1)}\n\n"
            "Do not repeat an example, nor say one in other words. Let some be harder and some easier. "
            "Each must be complete by itself and have one right answer that is short and can be checked.\n"
            "Reply with one JSON list and nothing else, in this form:\n"
            '[{"question": "..."}]'
        )


def writing_expert(
    spec: ExpertSpec, spend_cap: SpendCap, max_tokens: int = 1024, temperature: float = 1.0, seed: int | None = None
) -> Expert:
    """An expert of a pool set up for writing: without its prompt, system message and stop strings."""
    fields = {"temperature": temperature, "top_p": None, "seed": seed, "stop": ()}
    generation = Generation.model_validate(spec.generation.model_dump() | fields)
    settings = {"prompt": "{text}", "system": None, "max_tokens": max_tokens, "generation": generation}
    return make_expert(spec.model_copy(update=settings), spend_cap)


def parse_questions(reply: str) -> tuple[list[Item], Counter[str]]:
    """Reads a reply, a JSON list in a code fence or alone: the questions, and how many were dropped by reason."""
    fenced = _FENCED.search(reply)
    try:
        rows = _REPLY.validate_json(fenced[1] if fenced else reply)
    except ValueError:
        return [], Counter({"no JSON list": 1})
    items, dropped = [], Counter({"empty list": 1} if not rows else {})
    for row in rows:
        try:
            item = Item.model_validate(row)
        except pydantic.ValidationError:
            dropped["not the form"] += 1
            continue
        if len(item.question) > MAX_QUESTION_CHARS:
            dropped["too long"] += 1
        else:
            items.append(item)
    return items, dropped
