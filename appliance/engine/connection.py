"""HTTP/1.1 to an engine over its unix socket: pooled, streaming, with back-pressure.

The gateway sends every token through here, so this is a thin layer over asyncio transports and
llhttp's parser instead of a general client, which costs several times as much for each request.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import cast

import httptools

# uvicorn, which vLLM runs on, closes an idle connection after 5 s; ours are dropped before.
_IDLE_S = 3.0
# As many as a batch has requests in an engine, whose short ones come back in waves.
_MOST_IDLE = 512
_HIGH_WATER = 256 * 1024
_CONNECT_S = 5.0
_ACCEPT_S = 0.005

Headers = list[tuple[bytes, bytes]]


class ConnectionLostError(Exception):
    """The engine closed the connection before its answer was complete."""


class _Traffic:
    """Accounts of one engine's connections; what only probes it is not counted."""

    def __init__(self) -> None:
        self.awaited = 0
        self.received_bytes = 0


class _Protocol(asyncio.Protocol):
    """One connection; at most one request at a time."""

    def __init__(self) -> None:
        self.traffic = _Traffic()
        self.transport: asyncio.Transport | None = None
        self.status = 0
        self.headers: Headers = []
        self.chunks: deque[bytes] = deque()
        self.complete = False
        self.received_any = False
        self.lost = False
        self.idle_since = 0.0
        self._will_keep = False
        self._parser = httptools.HttpResponseParser(self)
        self._buffered = 0
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._write_waiter: asyncio.Future[None] | None = None
        self._write_paused = False

    def begin(self, traffic: _Traffic) -> None:
        """Forget the last answer."""
        self.traffic = traffic
        self.status = 0
        self.headers = []
        self.chunks.clear()
        self.complete = False
        self.received_any = False
        self._buffered = 0
        self._parser = httptools.HttpResponseParser(self)

    @property
    def is_usable(self) -> bool:
        """Whether another request may be sent on it."""
        return (
            self.transport is not None
            and not self.lost
            and not self.transport.is_closing()
            and time.monotonic() - self.idle_since < _IDLE_S
        )

    @property
    def keeps_alive(self) -> bool:
        """Whether the engine will take another request."""
        return self.complete and self._will_keep and not (self.lost or self._paused)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are asyncio's in all but their base class.
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.received_any = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()
        if self._buffered > _HIGH_WATER and not self._paused and self.transport is not None:
            self._paused = True
            self.transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._wake()
        self.resume_writing()

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        if self._write_waiter is not None and not self._write_waiter.done():
            self._write_waiter.set_result(None)

    # Callbacks of the parser.
    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self.chunks.append(body)
        self._buffered += len(body)
        if self.status < 300:
            self.traffic.received_bytes += len(body)

    def on_message_complete(self) -> None:
        if self.status >= 200:
            self.complete = True
            # The parser forgets it when the message is over.
            self._will_keep = bool(self._parser.should_keep_alive())
        else:
            self.headers = []

    async def drain(self) -> None:
        """Until what was written has left for the engine."""
        while self._write_paused and not self.lost:
            self._write_waiter = asyncio.get_running_loop().create_future()
            self.traffic.awaited += 1
            try:
                await self._write_waiter
            finally:
                self.traffic.awaited -= 1

    async def wait_head(self) -> None:
        """Until status and headers are there. Raises ConnectionLostError."""
        while self.status < 200:
            if self.lost:
                raise ConnectionLostError("the engine closed the connection without an answer")
            await self._wait()

    async def next_chunk(self) -> bytes | None:
        """What has come of the body, None at its end. Raises ConnectionLostError."""
        while not self.chunks:
            if self.complete:
                return None
            if self.lost:
                raise ConnectionLostError("the engine closed the connection in mid-answer")
            await self._wait()
        body = self.chunks.popleft() if len(self.chunks) == 1 else b"".join(self.chunks)
        self.chunks.clear()
        self._buffered = 0
        if self._paused and self.transport is not None and not self.lost:
            self._paused = False
            self.transport.resume_reading()
        return body

    def close(self) -> None:
        """Close at once."""
        if self.transport is not None:
            self.transport.abort()
        self.lost = True

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        traffic = self.traffic
        traffic.awaited += 1
        try:
            await self._waiter
        finally:
            traffic.awaited -= 1
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class EngineResponse:
    """An answer whose head is there. Iterate the body, then `release` (or use `read`)."""

    def __init__(self, protocol: _Protocol, connections: "EngineConnections") -> None:
        self._protocol = protocol
        self._connections = connections
        self.status = protocol.status
        self.headers = protocol.headers

    def header(self, name: bytes) -> bytes | None:
        """First header of that (lower case) name."""
        return next((value for key, value in self.headers if key == name), None)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises ConnectionLostError."""
        while (chunk := await self._protocol.next_chunk()) is not None:
            yield chunk

    async def read(self) -> bytes:
        """The whole body, and release. Raises ConnectionLostError."""
        try:
            return b"".join([chunk async for chunk in self.chunks()])
        finally:
            self.release()

    def release(self) -> None:
        """Give the connection back; an answer that is not complete is cancelled by closing."""
        self._connections.give_back(self._protocol)


class EngineConnections:
    """The pool of one engine."""

    def __init__(self, socket: Path) -> None:
        self._socket = str(socket)
        self._idle: list[_Protocol] = []
        self._traffic = _Traffic()
        self._crowded = asyncio.Lock()

    @property
    def awaited(self) -> int:
        """Requests that wait for the engine now; not those whose client does not read."""
        return self._traffic.awaited

    @property
    def received_bytes(self) -> int:
        """Of the bodies of all good answers; heads and errors come without the engine's core."""
        return self._traffic.received_bytes

    async def request(
        self,
        method: str,
        path: str,
        *,
        headers: Iterable[tuple[bytes, bytes]] = (),
        body: bytes = b"",
        is_probe: bool = False,
    ) -> EngineResponse:
        """Send a request and wait for the head of the answer; a probe is left out of the accounts.

        Raises OSError when the engine cannot be reached, ConnectionLostError when it goes away.
        A pooled connection that turns out to be closed is replaced once: the engine has closed it
        for being idle and has seen nothing of the request.
        """
        traffic = _Traffic() if is_probe else self._traffic
        protocol = self._take()
        if protocol is not None:
            protocol.begin(traffic)
            try:
                return await self._exchange(protocol, method, path, headers, body)
            except ConnectionLostError:
                if protocol.received_any:
                    raise
        protocol = await self._connect()
        protocol.begin(traffic)
        return await self._exchange(protocol, method, path, headers, body)

    def give_back(self, protocol: _Protocol) -> None:
        """Keep a connection for the next request, or close it."""
        if protocol.keeps_alive and len(self._idle) < _MOST_IDLE:
            protocol.idle_since = time.monotonic()
            self._idle.append(protocol)
        else:
            protocol.close()

    def close(self) -> None:
        """Close the idle connections; those in use close when they are released."""
        for protocol in self._idle:
            protocol.close()
        self._idle.clear()

    def _take(self) -> _Protocol | None:
        while self._idle:
            protocol = self._idle.pop()
            if protocol.is_usable:
                return protocol
            protocol.close()
        return None

    async def _connect(self) -> _Protocol:
        try:
            return await self._connect_now()
        except BlockingIOError:
            return await self._connect_in_turn()

    async def _connect_in_turn(self) -> _Protocol:
        """More have connected at once than the engine's backlog takes: wait until it accepts.

        Without a limit: an engine that hangs is found by its silence, and its end ends this.
        """
        async with self._crowded:
            while True:
                try:
                    return await self._connect_now()
                except BlockingIOError:
                    await asyncio.sleep(_ACCEPT_S)

    async def _connect_now(self) -> _Protocol:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(_CONNECT_S):
            _, protocol = await loop.create_unix_connection(_Protocol, self._socket)
        return protocol

    async def _exchange(
        self,
        protocol: _Protocol,
        method: str,
        path: str,
        headers: Iterable[tuple[bytes, bytes]],
        body: bytes,
    ) -> EngineResponse:
        assert protocol.transport is not None
        head = [f"{method} {path} HTTP/1.1\r\nhost: engine\r\n".encode("latin-1")]
        head += [name + b": " + value + b"\r\n" for name, value in headers]
        head.append(b"content-length: %d\r\n\r\n" % len(body))
        try:
            protocol.transport.writelines([*head, body] if body else head)
            await protocol.drain()
            await protocol.wait_head()
        except BaseException:
            protocol.close()
            raise
        return EngineResponse(protocol, self)
