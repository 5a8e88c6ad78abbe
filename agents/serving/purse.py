"""Counts the dollars that are left, and reserves what calls in progress may be billed."""

from __future__ import annotations

import threading
from collections.abc import Sequence

WAIT_S = 1.0


class Purse:
    """Dollars that queries share, also those of several threads.

    Attributes:
        left_usd: what calls have not been billed; calls in progress are not taken off.
    """

    def __init__(self, usd: float) -> None:
        self.left_usd = self._free_usd = usd
        self._calls = 0
        self._settled = threading.Condition()

    def reserve(self, worst_usd: float, most_usd: float) -> float | None:
        """Reserves `most_usd` for a call, or what is free of it. None: less than `worst_usd` is free, and there may be
        more when calls in progress are settled."""
        with self._settled:
            if self._free_usd < min(worst_usd, self.left_usd):
                return None
            usd = min(most_usd, self._free_usd)
            self._free_usd -= usd
            self._calls += 1
            return usd

    def settle(self, reserved_usd: Sequence[float], billed_usd: Sequence[float]) -> None:
        """Replaces the reservations of calls by what they were, or may have been, billed."""
        with self._settled:
            self.left_usd = max(0.0, self.left_usd - sum(billed_usd))
            self._calls -= len(reserved_usd)
            free_usd = self._free_usd + sum(reserved_usd) - sum(billed_usd)
            self._free_usd = min(free_usd, self.left_usd) if self._calls else self.left_usd
            self._settled.notify_all()

    def wait(self) -> None:
        """Waits until calls in progress are settled, for a second at most."""
        with self._settled:
            if self._calls:
                self._settled.wait(WAIT_S)
