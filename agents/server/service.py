"""What a server answers with between two reloads: experts, and one or two policies that choose among them."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from agents.server.config import ServerConfig
from agents.server.gateway import Gateway
from agents.server.journal import Journal
from agents.server.money import Ledger
from agents.server.routing import Planner
from agents.server.versions import FIRST, SECOND, Versions
from agents.serving.answer_match import by_normal_form
from agents.serving.defaults import budget_of, compare_of
from agents.serving.orchestrator import Orchestrator
from experts.live import LiveExpert, make_live_experts
from experts.specs import Pool
from leeroo_env.errors import UNFIT, InputError, first_line
from leeroo_env.variants import entry_of


class Service:
    """One version, loaded.

    Attributes:
        number: of the version.
        first: answers with the policy of the run.
        second: with that of the second run, if there is one; it has the same experts.
    """

    def __init__(self, number: int, first: Gateway, second: Gateway | None, split: float):
        """Args: number and gateways, and the share of conversations that the second one answers."""
        self.number, self.first, self.second, self._split = number, first, second, split
        self._requests, self._is_idle = 0, asyncio.Event()
        self._is_idle.set()

    @property
    def policies(self) -> list[str]:
        """Names of the one or two."""
        return [self.first.policy] + ([] if self.second is None else [self.second.policy])

    def begin(self) -> None:
        """Notes that a request uses it, until `end`."""
        self._requests += 1
        self._is_idle.clear()

    def end(self) -> None:
        self._requests -= 1
        if not self._requests:
            self._is_idle.set()

    def for_conversation(self, key_id: int, messages: list[dict[str, Any]]) -> Gateway:
        """What answers a conversation: the same for all of its turns."""
        if self.second is None or not self._split:
            return self.first
        return self.second if place(key_id, messages) < self._split else self.first

    def of(self, policy: str) -> Gateway:
        """The gateway with a policy of this name, the first if there is none."""
        return self.second if self.second is not None and self.second.policy == policy else self.first

    def beside(self, policy: str) -> Gateway | None:
        """The gateway that decides beside the one with this policy."""
        return (
            None if self.second is None or not policy else self.first if self.second.policy == policy else self.second
        )

    async def close(self, grace_s: float, idle_s: float = 0.0, in_use: Service | None = None) -> None:
        """Waits for requests, and for their calls, and closes all but the experts that another service uses."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._is_idle.wait(), idle_s)
        used = [] if in_use is None else list(in_use.first.by_name.values())
        if self.second is not None:
            await self.second.close(grace_s, list(self.second.by_name.values()))
        await self.first.close(grace_s, used)


def place(key_id: int, messages: list[dict[str, Any]]) -> float:
    """Where a conversation lies between 0 and 1, by its key and the user's first turn."""
    first = next((message for message in messages if message["role"] == "user"), messages[0])
    digest = hashlib.sha256(json.dumps([key_id, first.get("content")]).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def same_encoder(one: Gateway, other: Gateway) -> bool:
    """Whether the policies of two gateways observe the same embeddings."""
    first, second = one.planner.orchestrator, other.planner.orchestrator
    return (first.encoder, first.embedding_dim) == (second.encoder, second.embedding_dim)


def load(
    config: ServerConfig, versions: Versions, number: int, ledger: Ledger, journal: Journal, old: Service | None = None
) -> Service:
    """Loads a version; not for an event loop. Experts that are the same in `old` go on as they are.

    Raises InputError where something is broken, or does not fit together.
    """
    runs = [versions.run(number, name) for name, _ in zip((FIRST, SECOND), config.runs, strict=False)]
    loaded = read(config, versions, number)
    pool = versions.pool(number, config.pool)
    experts = experts_of(pool, {} if old is None else old.first.by_name)
    compare = by_normal_form(config.compare or compare_of(runs[0]))
    usd_per_query = budget_of(runs[0]) if config.usd_per_query is None else config.usd_per_query
    gateways: list[Gateway] = []
    try:
        for orchestrator, policy in zip(loaded, versions.policies(number), strict=True):
            planner = Planner(orchestrator, compare, usd_per_query)
            own = [experts[name] for name in orchestrator.experts]
            others = [expert for name, expert in experts.items() if name not in orchestrator.experts]
            gateways.append(Gateway(planner, own, others, ledger, journal, config.deadline_s, policy))
            planner.warm_up()
    except BaseException:
        for gateway in gateways:
            gateway.planner.close()
        raise
    first, second = gateways[0], gateways[1] if len(gateways) > 1 else None
    if old is not None:
        first.learn_from(old.first)
    if second is not None:
        second.learn_with(first)
    return Service(number, first, second, config.split)


def read(config: ServerConfig, versions: Versions, number: int) -> list[Orchestrator]:
    """The policies of a version, which fit its pool. Raises InputError, which names the files that were copied."""
    names = {spec.name for spec in versions.pool(number, config.pool).experts}
    loaded = []
    for run, name in zip(config.runs, (FIRST, SECOND), strict=False):
        copy = versions.run(number, name)
        try:
            loaded.append(Orchestrator.load(copy))
        except (*UNFIT, OSError) as error:  # InputError is a ValueError
            raise InputError(first_line(error).replace(str(copy), str(run))) from None
        for expert in loaded[-1].experts:
            if expert not in names:
                raise InputError(f"{config.pool}: has no expert {expert!r}, one of those of {run}")
    return loaded


def experts_of(pool: Pool, known: Mapping[str, LiveExpert]) -> dict[str, LiveExpert]:
    """The experts of a pool, of which those are used on whose model has the same settings as it has in `known`.

    Raises InputError.
    """
    specs = {spec.name: spec for spec in pool.experts}
    names = specs.keys() | known.keys()
    changed = {
        entry_of(name, names)
        for name in names
        if name not in specs or name not in known or specs[name] != known[name].spec
    }
    new = [name for name in specs if entry_of(name, names) in changed]
    made = {expert.name: expert for expert in (make_live_experts(pool, new) if new else ())}
    return {name: made[name] if name in made else known[name] for name in specs}
