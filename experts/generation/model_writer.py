"""Writes new training questions by asking a language model for questions like given ones."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
import pydantic

from experts.data.queries import text_id
from experts.generation.novelty import normal_question
from experts.generation.writers import Written, add_new, draw_domains
from experts.pool import make_expert
from experts.specs import ExpertSpec, Generation, StrictModel
from experts.spending import NOT_ASKED, SpendCap
from experts.types import Expert, Query
from leeroo_env.errors import InputError

MAX_QUESTION_CHARS = 4000


class Item(StrictModel):
    """One question in a language model's reply. The model's own answer is checked for its type but not used."""

    question: Annotated[str, pydantic.StringConstraints(strip_whitespace=True, min_length=1)]
    answer: str | int | pydantic.FiniteFloat | None = None


_FENCED = re.compile(r"```(?:json)?[ \t]*\n(.*)\n[ \t]*```", re.DOTALL | re.IGNORECASE)
_REPLY = pydantic.TypeAdapter(list[Any])


class ModelWriter:
    """Shows a language model a few questions of a domain and has it write others, without references.

    Args:
        expert: the language model; `writing_expert` prepares an expert of a pool.
        seeds: the questions to show, training queries only. Their domains are those of the writer.
        per_call: number of questions that one call asks for.
        shots: number of questions that one call shows.

    Raises:
        InputError: there are no seeds, one of them belongs to val or test, or a number is below 1.
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
        """As `Writer.write`, for equal replies. Calls are not repeated, so there may be fewer than n questions.

        Complete replies are dropped as "call failed", "no money" (the spend cap is reached), "no JSON list" or "empty
        list"; questions as "not the form" (fields, types), "too long", "repeated" (also of a seed) and "more than
        asked".
        """
        sizes = [min(self._per_call, n - start) for start in range(0, n, self._per_call)]
        domains = draw_domains(self, len(sizes), domain, rng)
        prompts = [self._prompt(size, chosen, rng) for size, chosen in zip(sizes, domains, strict=True)]
        replies = self._expert.answer([Query(text_id(prompt), prompt) for prompt in prompts]) if prompts else []
        written = Written(cost_usd=math.fsum(reply.cost_usd for reply in replies))
        forms = {normal_question(seed.text) for seed in self._seeds}
        for size, chosen, reply in zip(sizes, domains, replies, strict=True):
            reason = "no money" if reply.error == NOT_ASKED else "call failed"
            items, dropped = parse_questions(reply.text) if not reply.error else ([], Counter({reason: 1}))
            written.dropped += dropped + Counter({"more than asked": len(items[size:])})
            for item in items[:size]:
                add_new(written, Query(text_id(item.question), item.question, chosen), forms)
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
    spec: ExpertSpec,
    spend_cap: SpendCap,
    max_tokens: int = 1024,
    temperature: float = 1.0,
    seed: int | None = None,
    make: Callable[[ExpertSpec, SpendCap], Expert] = make_expert,
) -> Expert:
    """An expert of a pool, as `make` makes it, for writing: without its prompt, system message and stop strings."""
    fields = {"temperature": temperature, "top_p": None, "seed": seed, "stop": ()}
    generation = Generation.model_validate(spec.generation.model_dump() | fields)
    settings = {"prompt": "{text}", "system": None, "max_tokens": max_tokens, "generation": generation}
    settings["confidence"] = False
    return make(spec.model_copy(update=settings), spend_cap)


def parse_questions(reply: str) -> tuple[list[Item], Counter[str]]:
    """The questions in a reply, which is a JSON list, possibly in a code fence, and the number dropped by reason."""
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
