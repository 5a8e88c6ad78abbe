"""Replaces what a worker answers with while requests are under way, on demand and together with the other workers."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from agents.server import logs, metrics
from agents.server.config import ServerConfig
from agents.server.gateway import READ_ON_S
from agents.server.journal import Journal
from agents.server.money import Ledger
from agents.server.service import Service, load
from agents.server.versions import Problem, Versions
from leeroo_env.errors import InputError, first_line

LOOK_EVERY_S = 0.5
RETRY_S = 30.0  # after a version in force could not be loaded
OTHERS_S = 30.0  # the longest wait for the other workers
KEPT = "the version before stays in force"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reloaded:
    """What a reload has brought.

    Attributes:
        version: its number.
        policies: names of the one or two policies.
        experts: that can be asked now.
        added: the experts that are new.
        changed: those that are asked in another way, or have other prices.
        removed: those that are gone.
        workers: that use the version.
        waiting: other workers that do not yet.
        seconds: that it took.
    """

    version: int
    policies: list[str]
    experts: list[str]
    added: list[str]
    changed: list[str]
    removed: list[str]
    workers: int = 1
    waiting: int = 0
    seconds: float = 0.0


class Reloader:
    """For one event loop.

    Attributes:
        service: what requests that begin now are answered with.
    """

    service: Service

    def __init__(self, config: ServerConfig, ledger: Ledger, journal: Journal):
        self._config, self._ledger, self._journal = config, ledger, journal
        self._own = tempfile.TemporaryDirectory(prefix="leeroo-") if config.versions is None else None
        self._versions = Versions(config.versions or Path(self._own.name if self._own else ""))
        self._one_at_a_time = asyncio.Lock()
        self._retiring: asyncio.Task[None] | None = None  # the last of those that wait for the end of old requests
        self._following: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Loads the version in force. Raises InputError."""
        if self._own is not None:
            await asyncio.to_thread(self._versions.begin, self._config)
        self.service = await self._load_current()
        self._versions.use(self.service.number)
        logs.event("start", version=self.service.number, policies=self.service.policies)
        self._following = asyncio.create_task(self._follow())

    async def close(self, grace_s: float) -> None:
        """Waits for calls in flight, and closes everything."""
        if self._following is not None:
            self._following.cancel()
        closing = asyncio.create_task(self.service.close(grace_s))
        await asyncio.wait([closing, *([self._retiring] if self._retiring else [])], timeout=2 * grace_s)
        self._versions.use(None)
        if self._own is not None:
            self._own.cleanup()

    @property
    def problem(self) -> Problem | None:
        """Why the last reload changed nothing."""
        return self._versions.problem

    async def reload(self) -> Reloaded:
        """Loads pool and runs as they are now, and has all workers use them. Raises InputError: nothing has changed."""
        started = time.monotonic()
        task = asyncio.create_task(self._locked_reload())  # it ends even if nobody waits for it any more
        done = await asyncio.shield(task)
        while time.monotonic() < started + OTHERS_S:
            used = self._versions.used()
            if min(used) >= done.version:
                break
            await asyncio.sleep(LOOK_EVERY_S / 4)
        waiting = sum(number < done.version for number in used)
        seconds = round(time.monotonic() - started, 3)
        return Reloaded(**{**asdict(done), "workers": len(used) - waiting, "waiting": waiting, "seconds": seconds})

    async def _locked_reload(self) -> Reloaded:
        with contextlib.ExitStack() as stack:
            await asyncio.to_thread(stack.enter_context, self._versions.lock())
            return await self._make_version()

    async def _make_version(self) -> Reloaded:
        """The next version, in force. Raises InputError."""
        number = None
        try:
            number = await asyncio.to_thread(self._versions.add, self._config)
            async with self._one_at_a_time:
                new = await asyncio.to_thread(self._load, number)
                self._versions.put_in_force(number)
                return self._replace_by(new)
        except Exception as error:
            if number is not None:
                self._versions.remove(number)
            message = f"{first_line(error)}; {KEPT}"
            if not isinstance(error, InputError):
                log.exception("a reload failed", exc_info=error)
                message = f"{type(error).__name__}: {message}"
            self._versions.refuse(message)
            logs.event("reload", status="refused", message=message)
            raise InputError(message) from None

    def _load(self, number: int) -> Service:
        old = getattr(self, "service", None)
        return load(self._config, self._versions, number, self._ledger, self._journal, old)

    def _replace_by(self, new: Service) -> Reloaded:
        """Has requests that begin from now on answered by `new`; the others end as they began."""
        old, self.service = self.service, new
        before, after = old.first.by_name, new.first.by_name
        same = [name for name in after if name in before]
        changed = [name for name in same if after[name].spec != before[name].spec]
        added = [name for name in after if name not in before]
        removed = [name for name in before if name not in after]
        done = Reloaded(new.number, new.policies, list(after), added, changed, removed)
        self._versions.use(new.number)
        metrics.forget(removed)
        logs.event(
            "reload",
            status="done",
            version=new.number,
            policies=new.policies,
            added=added,
            changed=changed,
            removed=removed,
        )
        self._retiring = asyncio.create_task(self._retire(old, new, self._retiring))
        return done

    async def _retire(self, old: Service, new: Service, before: asyncio.Task[None] | None) -> None:
        """Closes what `new` has replaced when nobody uses it any more, and not before what that had replaced."""
        if before is not None:
            await asyncio.wait([before])
        await old.close(READ_ON_S, 2 * self._config.deadline_s + READ_ON_S, in_use=new)
        del old
        gc.unfreeze()  # else it stays in memory
        gc.collect()
        gc.freeze()

    async def _follow(self) -> None:
        """Does what other processes ask for: makes a version, or uses one that is in force."""
        again_at = 0.0
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                if self._versions.is_wanted():
                    await self._do_what_is_wanted()
                if self._versions.current != self.service.number and time.monotonic() >= again_at:
                    await self._use_current()
            except Exception as error:
                again_at = time.monotonic() + RETRY_S
                log.exception("the version in force cannot be loaded", exc_info=error)

    async def _do_what_is_wanted(self) -> None:
        with self._versions.lock(waits=False) as is_mine:
            if is_mine and self._versions.is_wanted():
                self._versions.handle()
                with contextlib.suppress(InputError):  # which was told
                    await self._make_version()

    async def _use_current(self) -> None:
        async with self._one_at_a_time:
            if self._versions.current != self.service.number:
                self._replace_by(await self._load_current())

    async def _load_current(self) -> Service:
        """The version in force; if another one is by the time, that."""
        while True:
            number = self._versions.current
            try:
                return await asyncio.to_thread(self._load, number)
            except Exception:
                if number == self._versions.current:
                    raise
