"""Sends requests over connections that stay open: h11 on asyncio's transports, which takes a fifth of httpx's time.

Through a proxy, as the usual environment variables name it, requests go with httpx.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import socket
import ssl
import time
import urllib.request
import zlib
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, Protocol
from urllib.parse import quote, unquote, urlsplit

import h11

from experts.backends.http import CONNECT_S, NEVER_SENT, UnreadableBody, http_library, ssl_context

IDLE_S = 4.0  # servers close idle connections, many after 5 s
PAUSE_BYTES = 1 << 18  # no more is read before these are taken
HEAD_BYTES = 1 << 16
UNPACKED_BYTES = 1 << 20  # the most at a time
URL_CHARS = "/?#[]@!$&'()*+,;=:%~-._"


class NotConnected(Exception):
    """The server was not reached, so that it was asked nothing."""


class BrokenOff(Exception):
    """The connection ended, or brought what is no HTTP, before the reply was whole."""


class Response(Protocol):
    """A reply whose body is still to be read; it must be closed."""

    @property
    def status_code(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    def aiter_bytes(self) -> AsyncIterator[bytes]:
        """The parts of the body, unpacked."""
        ...

    async def aclose(self) -> None: ...


class Route(Protocol):
    """One way to one address."""

    async def connect(self) -> Any:
        """A connection for one request. Raises NotConnected."""
        ...

    async def send(self, connection: Any, body: bytes) -> Response:
        """The reply to a request, its head read. Raises NotConnected and BrokenOff."""
        ...

    async def close(self) -> None: ...


def route_to(url: str, headers: Mapping[str, str]) -> Route:
    """The way to an address, for requests with these headers; user and password of the address go into one."""
    parts = urlsplit(url)
    if parts.username is not None:
        secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers = {**headers, "Authorization": f"Basic {base64.b64encode(secret.encode()).decode()}"}
    host = parts.netloc.rpartition("@")[2]
    if {parts.scheme, "all"} & urllib.request.getproxies().keys() and not urllib.request.proxy_bypass(
        parts.hostname or ""
    ):
        return Proxied(parts._replace(netloc=host).geturl(), headers)
    return Direct(parts._replace(netloc=host).geturl(), headers)


class Direct:
    """Connections to a server itself, kept open for the next request."""

    def __init__(self, url: str, headers: Mapping[str, str]):
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        self._host, self._port = parts.hostname or "", parts.port or (443 if secure else 80)
        self._ssl = ssl_context() if secure else None
        self._target = quote(parts._replace(scheme="", netloc="", fragment="").geturl() or "/", safe=URL_CHARS)
        fields = {"Host": parts.netloc.encode("idna").decode(), **headers}
        self._headers = [(name.encode(), value.encode("utf-8", "replace")) for name, value in fields.items()]
        self._idle: deque[tuple[float, Connection]] = deque()

    async def connect(self) -> Connection:
        """See `Route`. The connection that was used last, if it is still open."""
        while self._idle:
            since, connection = self._idle.pop()
            if time.monotonic() - since < IDLE_S and connection.is_quiet:
                return connection
            connection.close()
        loop = asyncio.get_running_loop()
        opening = loop.create_connection(lambda: Connection(self), self._host, self._port, ssl=self._ssl)
        try:
            return (await asyncio.wait_for(opening, CONNECT_S))[1]
        except (OSError, asyncio.TimeoutError) as error:
            raise NotConnected(_why_not(error)) from None

    async def send(self, connection: Connection, body: bytes) -> Reply:
        """See `Route`."""
        http = connection.http
        try:
            head = h11.Request(
                method="POST",
                target=self._target,
                headers=[*self._headers, (b"Content-Length", str(len(body)).encode())],
            )
        except h11.LocalProtocolError:  # whose message has the header's value
            connection.close()
            raise NotConnected("the head cannot be sent; a key must be one line of ASCII") from None
        parts = (http.send(head), http.send(h11.Data(data=body)), http.send(h11.EndOfMessage()))
        try:
            connection.transport.write(b"".join(part for part in parts if part))
            while True:
                event = await connection.next_event()
                if isinstance(event, h11.Response):
                    return Reply(connection, event)
                if not isinstance(event, h11.InformationalResponse):
                    raise BrokenOff("the server closed the connection without a reply")
        except BaseException:
            connection.close()
            raise

    def keep(self, connection: Connection) -> None:
        """Takes back a connection that is ready for the next request."""
        now = time.monotonic()
        self._idle.append((now, connection))
        while now - self._idle[0][0] >= IDLE_S:
            self._idle.popleft()[1].close()

    async def close(self) -> None:
        """See `Route`."""
        while self._idle:
            self._idle.pop()[1].close()


def _why_not(error: Exception) -> str:
    """Why there is no connection, without the address, as the words may reach clients."""
    if isinstance(error, asyncio.TimeoutError):
        return f"no connection within {CONNECT_S:g} s"
    if isinstance(error, ssl.SSLError):
        return f"no secure connection: {error.reason or 'TLS failed'}"
    if isinstance(error, socket.gaierror):
        return "the server's name is not known"
    is_refused = f"[Errno {errno.ECONNREFUSED}]" in str(error)  # of one address or of several
    return "the connection is refused" if is_refused else "the server is not reached"


class Connection(asyncio.Protocol):
    """An open connection, and what HTTP has said on it."""

    transport: asyncio.Transport

    def __init__(self, owner: Direct):
        self.owner = owner
        self.http = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES)
        self._received = bytearray()
        self._has_ended = False
        self._error: Exception | None = None
        self._reader: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._received += data
        if len(self._received) > PAUSE_BYTES:
            self.transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        self._has_ended = True
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        self._has_ended, self._error = True, error
        self._wake()

    def close(self) -> None:
        self.transport.abort()

    @property
    def is_quiet(self) -> bool:
        """Whether it is open and has brought nothing that was not asked for."""
        return not self._has_ended and not self._received and not self.transport.is_closing()

    async def next_event(self) -> Any:
        """The next event of the reply. Raises BrokenOff."""
        try:
            while (event := self.http.next_event()) is h11.NEED_DATA:
                self.http.receive_data(await self._read())
            return event
        except h11.RemoteProtocolError as error:
            raise BrokenOff(str(error)) from None

    async def _read(self) -> bytes:
        """What has come; b"" at the end."""
        while not self._received:
            if self._error is not None:
                raise BrokenOff(f"{type(self._error).__name__}: {self._error}")
            if self._has_ended:
                return b""
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        data = bytes(self._received)
        self._received.clear()
        if len(data) > PAUSE_BYTES and not self.transport.is_closing():
            self.transport.resume_reading()
        return data

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


class Reply:
    """See `Response`."""

    def __init__(self, connection: Connection, head: h11.Response):
        self.status_code = head.status_code
        self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
        self._connection = connection

    async def aiter_bytes(self) -> AsyncIterator[bytes]:
        """See `Response`."""
        packed = self.headers.get("content-encoding", "").strip().lower() in ("gzip", "deflate")
        unpacker = Unpacker() if packed else None
        while isinstance(event := await self._connection.next_event(), h11.Data):
            if unpacker is None:
                yield bytes(event.data)
            else:
                for part in unpacker.feed(bytes(event.data)):
                    yield part

    async def aclose(self) -> None:
        """The connection is kept if the reply was read to its end."""
        http = self._connection.http
        if http.our_state is h11.DONE and http.their_state is h11.DONE and not http.trailing_data[0]:
            http.start_next_cycle()
            self._connection.owner.keep(self._connection)
        else:
            self._connection.close()


class Unpacker:
    """Unpacks gzip and deflate, a bounded number of bytes at a time."""

    def __init__(self) -> None:
        self._inflater: Any = None

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The parts that the next bytes unpack to, one by one."""
        if self._inflater is None:  # some servers leave out zlib's head of deflate
            raw = data[:1] and data[0] & 0x0F != 8 and data[:2] != b"\x1f\x8b"
            self._inflater = zlib.decompressobj(-zlib.MAX_WBITS if raw else zlib.MAX_WBITS | 32)
        try:
            while data:
                part = self._inflater.decompress(data, UNPACKED_BYTES)
                data = self._inflater.unconsumed_tail
                if part:
                    yield part
        except zlib.error as error:
            raise UnreadableBody(f"the reply cannot be unpacked: {error}") from None


class Proxied:
    """Requests that go through a proxy, by the library that openai's uses."""

    def __init__(self, url: str, headers: Mapping[str, str]):
        self._http = http_library()
        timeout = self._http.Timeout(None, connect=CONNECT_S)
        self._url, self._headers = url, dict(headers)
        limits = self._http.Limits(max_connections=None)
        self._client = self._http.AsyncClient(verify=ssl_context(), timeout=timeout, limits=limits)

    async def connect(self) -> None:
        """See `Route`."""

    async def send(self, connection: None, body: bytes) -> Any:
        """See `Route`."""
        request = self._client.build_request("POST", self._url, content=body, headers=self._headers)
        try:
            response = await self._client.send(request, stream=True)
        except self._http.TransportError as error:
            kind = NotConnected if type(error).__name__ in NEVER_SENT else BrokenOff
            raise kind(f"{type(error).__name__}: {error}") from None
        return ProxiedReply(response, self._http)

    async def close(self) -> None:
        """See `Route`."""
        await self._client.aclose()


class ProxiedReply:
    """See `Response`."""

    def __init__(self, response: Any, http: Any):
        self.status_code: int = response.status_code
        self.headers: Mapping[str, str] = response.headers
        self._response, self._http = response, http

    async def aiter_bytes(self) -> AsyncIterator[bytes]:
        """See `Response`."""
        try:
            async for part in self._response.aiter_bytes():
                yield part
        except self._http.DecodingError as error:
            raise UnreadableBody(f"the reply cannot be unpacked: {error}") from None
        except self._http.TransportError as error:
            raise BrokenOff(f"{type(error).__name__}: {error}") from None

    async def aclose(self) -> None:
        """See `Response`."""
        await self._response.aclose()
