"""Bounds what one connection may take: time for a request's head, bytes without a body, and time to read an answer."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

HEAD_S = 15.0  # for the head of a request, and from the connection to the first
IDLE_S = 75.0  # between requests
LINGER_S = 3.0  # for the rest of a body that nobody wants, so that the client reads why
UNREAD_S = 30.0  # without any of an answer being read
MOST_HEAD_BYTES = 1 << 16  # of a head, and of what is neither head nor body, beside some for each byte of a body
FRAME_BYTES = 8  # for each byte of a body: a chunk of one byte has five
TOO_LARGE = b"the head of the request is too large"


class BoundedHttp(HttpToolsProtocol):
    """uvicorn's protocol, which by itself waits forever for clients that send or read slowly.

    A connection is between requests, in a head, or in a message; a time limit holds for the first two, and for the
    third when its answer was given. It is not extended by what comes meanwhile.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._in_head, self._in_message = False, False
        self._received, self._received_body = 0, 0  # of the current message
        self._answering: Any = None  # the request whose application runs
        self._timer: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._limit(HEAD_S)

    def connection_lost(self, error: Exception | None) -> None:
        for timer in (self._timer, self._unread):
            if timer is not None:
                timer.cancel()
        super().connection_lost(error)
        if (
            self._answering is not None
        ):  # uvicorn tells the last of the requests that wait, not the one that is answered
            self._answering.disconnected = True
            self._answering.message_event.set()
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        begun = self._received
        super().data_received(data)
        if self.transport.is_closing():  # what was received made no sense
            self._limit(LINGER_S)
        elif begun:  # else it may be the end of the message before
            self._received += len(data)
            if self._received - FRAME_BYTES * self._received_body > MOST_HEAD_BYTES:
                self._refuse()

    def on_message_begin(self) -> None:
        self._received, self._received_body = 1, 0
        self._in_head, self._in_message = True, True
        if not self._is_answering:
            self._limit(HEAD_S)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._limit(None)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._received_body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._received, self._in_message = 0, False
        if not self._is_answering:
            self._limit(IDLE_S)
        super().on_message_complete()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        async def bounded(*arguments: Any) -> None:
            self._answering = cycle
            try:
                await app(*arguments)
            finally:
                self._answering = None if self._answering is cycle else self._answering
                if cycle is self.cycle:  # no other waits
                    rest_s = LINGER_S if self._in_message else IDLE_S
                    self._limit(HEAD_S if self._in_head else rest_s)

        super()._start_asgi_task(cycle, bounded)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(UNREAD_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _limit(self, seconds: float | None) -> None:
        """Cuts the connection off so many seconds from now, unless it goes on."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.loop.call_later(seconds, self.transport.abort)

    def _refuse(self) -> None:
        """Says that a head is too large, where no answer is under way, and closes."""
        if not self._is_answering:
            head = STATUS_LINE[431] + b"content-length: %d\r\nconnection: close\r\n\r\n" % len(TOO_LARGE)
            self.transport.write(head + TOO_LARGE)
            self.transport.close()
            self._limit(LINGER_S)
        else:
            self.transport.abort()
