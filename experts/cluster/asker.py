"""What runs in a worker of the cluster: asks experts, each batch within the dollars that it came with."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import AsyncIterator, Mapping, Sequence

from experts.backends.openai import OpenAIExpert
from experts.pool import make_experts, with_cap
from experts.specs import LocalSpec, Pool
from experts.spending import SpendCap
from experts.types import Answer, Query

PART_S = 0.1  # the longest that an answer waits for others before it is handed over to be stored

Part = list[tuple[int, Answer]]  # answers, each with the place of its query in the batch


class Asker:
    """The experts with these names, made where this runs.

    Args:
        environment: variables with keys and addresses that the experts need.
        threads: torch threads of local models.
    """

    def __init__(self, pool: Pool, names: Sequence[str], environment: Mapping[str, str], threads: int) -> None:
        os.environ.update(environment)
        if any(isinstance(spec, LocalSpec) for spec in pool.select(names)):
            from leeroo_env.threads import set_threads  # imports torch

            set_threads(threads)
        self._experts = {expert.name: expert for expert in make_experts(pool, names, SpendCap())}

    async def ask(self, name: str, queries: Sequence[Query], usd: float) -> AsyncIterator[Part]:
        """The answers as they come. They are billed `usd` at most, and not asked for where that does not pay."""
        expert = with_cap(self._experts[name], SpendCap(usd))
        if not isinstance(expert, OpenAIExpert):
            yield list(enumerate(await asyncio.to_thread(expert.answer, queries)))
            return
        calls = {asyncio.ensure_future(expert.ask(query, math.inf)): i for i, query in enumerate(queries)}
        running = set(calls)
        while running:
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            if running:
                more, running = await asyncio.wait(running, timeout=PART_S)
                done |= more
            yield [(calls[call], call.result()) for call in done]
