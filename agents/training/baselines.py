"""The routers that an agent is compared with, played while it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from agents.evaluation.evaluate import Result
from agents.evaluation.report import Played, play
from agents.progress import Bars, silent
from agents.routers import Router
from agents.training.runtime import Background, in_background


class Baselines:
    """Plays groups of routers on episodes of val and of test, each group in a process of its own where that is safe."""

    def __init__(self, bars: Bars = silent):
        """`bars` show that results are waited for."""
        self.bars = bars
        self._groups: list[Background[dict[str, Result]]] = []
        self._on_val: list[dict[str, Result]] = []

    def begin(self, routers: Callable[[], Mapping[str, Router]], val: Played, test: Played) -> None:
        """Begins to play a group, whose routers are made there, on these episodes."""

        def both() -> Iterator[dict[str, Result]]:
            group = routers()
            for episodes in (val, test):
                yield play(group, episodes).all

        self._groups.append(in_background(both, urgent=False))

    def ready(self, groups: int | None = None) -> bool:
        """Whether `on_val` would not wait."""
        return all(group.ready() for group in self._groups[len(self._on_val) : groups])

    def on_val(self, groups: int | None = None) -> dict[str, Result]:
        """The results on val, by router, of the first `groups`; None: of all that have begun."""
        self._on_val += self._received("val", self._groups[len(self._on_val) : groups])
        return _together(self._on_val[:groups])

    def on_test(self) -> dict[str, Result]:
        """The results of all groups on test; to be asked for once, after those on val."""
        return _together(self._received("test", self._groups))

    def _received(self, split: str, groups: Sequence[Background[dict[str, Result]]]) -> list[dict[str, Result]]:
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
