"""Requests per minute: at most so many requests of a key in any 60 seconds, whichever worker they come to."""

from __future__ import annotations

from sqlalchemy import Connection, delete, func, insert, select

from agents.server.money.schema import admissions

WINDOW_S = 60.0


class Admissions:
    """The requests of the last minute of some keys.

    Args:
        limits: requests per minute by key, None: no limit.
    """

    def __init__(self, connection: Connection, limits: dict[int, int | None], now: float):
        self._connection, self._now = connection, now
        self._limits = {key_id: limit for key_id, limit in limits.items() if limit is not None}
        self._seen: dict[int, tuple[int, float]] = {}  # their number and the time of the first
        self._new: list[dict[str, float]] = []
        if self._limits:
            recent = (
                select(admissions.c.key_id, func.count(), func.min(admissions.c.at))
                .where(admissions.c.key_id.in_(list(self._limits)), admissions.c.at > now - WINDOW_S)
                .group_by(admissions.c.key_id)
            )
            self._seen = {key_id: (number, first) for key_id, number, first in connection.execute(recent)}

    def admit(self, key_id: int) -> float | None:
        """None if the request may come now, which counts it; else the seconds until it may."""
        if key_id not in self._limits:
            return None
        number, first = self._seen.get(key_id, (0, self._now))
        if number >= self._limits[key_id]:
            return max(first + WINDOW_S - self._now, 0.001)
        self._seen[key_id] = (number + 1, first)
        self._new.append({"key_id": key_id, "at": self._now})
        return None

    def write(self) -> None:
        """Stores the new requests and drops those that count no more."""
        if self._new:
            old = admissions.c.key_id.in_(list(self._limits)) & (admissions.c.at <= self._now - WINDOW_S)
            self._connection.execute(delete(admissions).where(old))
            self._connection.execute(insert(admissions), self._new)
