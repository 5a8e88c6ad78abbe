"""The routers that an agent is compared with, played while it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from agents.evaluation.evaluate import Result
from agents.evaluation.report import Played, play
from agents.progress import Bars, silent
from agents.routers import Router
from agents.training.runtime import in_background


class Baselines:
    """Plays groups of routers on the episodes of `val` and `test`, each in a process of its own where that is safe."""

    def __init__(self, val: Played, test: Played, bars: Bars = silent):
        """`bars` show that results are waited for."""
        self.val, self.test, self.bars = val, test, bars
        self._groups: list[Iterator[dict[str, Result]]] = []
        self._on_val: list[dict[str, Result]] = []

    def begin(self, routers: Callable[[], Mapping[str, Router]]) -> None:
        """Begins to play a group, whose routers are made there."""

        def both() -> Iterator[dict[str, Result]]:
            group = routers()
            for episodes in (self.val, self.test):
                yield play(group, episodes).all

        self._groups.append(in_background(both))

    def on_val(self, groups: int | None = None) -> Played:
        """The results of the first `groups` on val; None: of all that have begun."""
        wanted = len(self._groups) if groups is None else groups
        waiting = self._groups[len(self._on_val) : wanted]
        self._on_val += self._received("val", waiting)
        return replace(self.val, all=_together(self._on_val[:wanted]))

    def on_test(self) -> Played:
        """The results of all groups on test; to be asked for once, after those on val."""
        return replace(self.test, all=_together(self._received("test", self._groups)))

    def _received(self, split: str, groups: Sequence[Iterator[dict[str, Result]]]) -> list[dict[str, Result]]:
        if not groups:
            return []
        with self.bars(f"other routers on {split}", len(groups)) as bar:
            received = []
            for group in groups:
                received.append(next(group))
                bar.update()
            return received


def _together(groups: list[dict[str, Result]]) -> dict[str, Result]:
    return {name: result for group in groups for name, result in group.items()}
