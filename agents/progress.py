"""Shows the progress of work: bars on a terminal, whole lines from time to time in a log."""

from __future__ import annotations

import os
import sys
import time
from typing import Any, Protocol

from tqdm import tqdm

LOG_EVERY_S = 10.0


class Bars(Protocol):
    """Begins a bar for a piece of work with so many parts."""

    def __call__(self, label: str, total: int) -> tqdm: ...


class LogLines(tqdm):
    """Progress in a log: a line when the work begins, one from time to time with the time left, and one at its end."""

    _printed: tuple[float, float] | None = None  # parts done, and when

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Prints a line, unless there was one a moment ago."""
        values, now = self.format_dict, time.monotonic()
        n, elapsed = values["n"], values["elapsed"]
        done = n / max(values["total"] or 1, 1)
        if self._printed and (n == self._printed[0] or (done < 1 and now - self._printed[1] < LOG_EVERY_S)):
            return
        self._printed = n, now
        words = "begins" if n == values["initial"] else f"{min(100 * done, 100):.0f} %"
        if 0 < done < 1:
            words += f", {tqdm.format_interval(elapsed * (1 - done) / done)} left"
        elif done >= 1:
            words += f", {tqdm.format_interval(elapsed)}"
        self.fp.write(f"{values['prefix']}: {words}{', ' + values['postfix'] if values['postfix'] else ''}\n")
        self.fp.flush()

    def clear(self, *args: Any, **kwargs: Any) -> None:
        """There is nothing to clear in a log."""

    def moveto(self, n: int) -> None:
        """Nor another line to move to."""


def shown(label: str, total: int, unit: str = "", initial: int = 0) -> tqdm:
    """A bar on stderr, with the time left."""
    if not _is_terminal():
        return LogLines(
            total=total,
            initial=initial,
            desc=label,
            mininterval=LOG_EVERY_S,
            maxinterval=LOG_EVERY_S,
            miniters=1,
            leave=False,
        )
    return tqdm(
        total=total,
        initial=initial,
        desc=label,
        unit=unit,
        unit_scale=bool(unit),
        dynamic_ncols=True,
        bar_format=None if unit else "{desc}: {percentage:3.0f}%|{bar}| {elapsed} < {remaining}",
    )


def _is_terminal() -> bool:
    """Whether stderr is a terminal with a size: some pseudo-terminals of logs have none."""
    try:
        return sys.stderr.isatty() and min(os.get_terminal_size(sys.stderr.fileno())) > 0
    except (OSError, ValueError):
        return False


def silent(label: str, total: int) -> tqdm:
    """No bar."""
    return tqdm(total=total, disable=True)
