"""Reads server-sent events from the bytes of a stream, however these are cut into parts (WHATWG HTML, section 9.2)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """The data of one event, its lines joined, and its name."""

    data: bytes
    name: bytes = b""


class EventReader:
    """Takes the parts of a stream and gives the events that are complete; in linear time."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []  # of the line that is not complete
        self._data: list[bytes] = []
        self._name = b""
        self._after_cr = False  # a line feed that follows belongs to the same end of line
        self._at_start = True

    def feed(self, part: bytes) -> list[Event]:
        """The events that end in the next part."""
        if self._after_cr and part.startswith(b"\n"):
            part = part[1:]
        if not part:
            return []
        self._after_cr = part.endswith(b"\r")
        if b"\n" not in part and b"\r" not in part:
            self._parts.append(part)
            return []
        lines = b"".join((*self._parts, part)).splitlines()
        self._parts = [] if part.endswith((b"\n", b"\r")) else [lines.pop()]
        if self._at_start:
            lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
            self._at_start = False
        return self._events(lines)

    def end(self) -> list[Event]:
        """The last event, if the stream ends without the blank line after it."""
        return self._events([*b"".join(self._parts).splitlines(), b""])

    def _events(self, lines: list[bytes]) -> list[Event]:
        events = []
        for line in lines:
            if not line:
                if self._data:
                    events.append(Event(b"\n".join(self._data) if len(self._data) > 1 else self._data[0], self._name))
                    self._data = []
                self._name = b""
            elif line.startswith(b"data:"):
                self._data.append(line[6:] if line.startswith(b"data: ") else line[5:])
            elif line.startswith(b"event:"):
                self._name = line[6:].strip()
        return events
