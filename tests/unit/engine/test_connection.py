import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

from appliance.engine.connection import ConnectionLostError, EngineConnections

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
pytestmark = pytest.mark.timeout(20)

Answer = Callable[["Engine", asyncio.StreamWriter], Awaitable[None]]


class Engine:
    """A server on a unix socket that answers each request as the test says."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.connections = 0
        self.requests: list[tuple[bytes, bytes]] = []
        self.answer: Answer = answer_ok
        self.go_on = asyncio.Event()
        self.sent = 0
        self.readers: list[asyncio.StreamReader] = []
        self.writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self.serve, self.socket)

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self.writers:
            writer.transport.abort()
        await self._server.wait_closed()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.readers.append(reader)
        self.writers.append(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                self.requests.append((head, await reader.readexactly(length)))
                await self.answer(self, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


async def answer_ok(engine: Engine, writer: asyncio.StreamWriter) -> None:
    writer.write(OK)


@pytest.fixture
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Engine]:
    engine = Engine(tmp_path_factory.mktemp("s") / "e.sock")
    await engine.start()
    yield engine
    await engine.close()


@pytest.fixture
async def pool(engine: Engine) -> AsyncIterator[EngineConnections]:
    pool = EngineConnections(engine.socket)
    yield pool
    pool.close()


async def test_request_and_answer(engine: Engine, pool: EngineConnections) -> None:
    async def answer(_: Engine, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\nX-Two: 1\r\nX-Two: 2\r\n"
            b"Content-Length: 4\r\n\r\nnope"
        )

    engine.answer = answer
    response = await pool.request("POST", "/v1/x?y=1", headers=[(b"x-a", b"b")], body=b"{}")
    assert response.status == 404
    assert response.header(b"content-type") == b"text/plain"
    assert response.header(b"none") is None
    assert [value for name, value in response.headers if name == b"x-two"] == [b"1", b"2"]
    assert await response.read() == b"nope"
    head, body = engine.requests[0]
    assert head.startswith(b"POST /v1/x?y=1 HTTP/1.1\r\n")
    assert b"\r\nx-a: b\r\n" in head
    assert body == b"{}"


async def test_engine_that_wants_to_close_is_not_asked_again_on_that_connection(
    engine: Engine, pool: EngineConnections
) -> None:
    async def answer(_: Engine, writer: asyncio.StreamWriter) -> None:
        writer.write(OK.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))

    engine.answer = answer
    for _ in range(2):
        response = await pool.request("GET", "/")
        assert await response.read() == b"ok"
    assert engine.connections == 2


async def test_connection_that_the_engine_closed_is_replaced(
    engine: Engine, pool: EngineConnections
) -> None:
    await (await pool.request("GET", "/1")).read()
    engine.writers[0].close()
    # The client does not know of it yet: both ends share this loop.
    assert await (await pool.request("POST", "/2", body=b"body")).read() == b"ok"
    assert engine.connections == 2
    assert [body for _, body in engine.requests] == [b"", b"body"]


async def test_request_that_a_fresh_connection_lost_is_not_sent_twice(
    engine: Engine, pool: EngineConnections
) -> None:
    async def answer(_: Engine, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    engine.answer = answer
    with pytest.raises(ConnectionLostError, match="without an answer"):
        await pool.request("POST", "/")
    assert len(engine.requests) == 1


async def test_replacement_that_is_lost_too_is_not_replaced(
    engine: Engine, pool: EngineConnections
) -> None:
    async def answer(_: Engine, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    await (await pool.request("GET", "/1")).read()
    engine.answer = answer
    with pytest.raises(ConnectionLostError):
        await pool.request("GET", "/2")
    assert engine.connections == 2


async def test_stream_arrives_piece_by_piece(engine: Engine, pool: EngineConnections) -> None:
    async def answer(engine: Engine, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED)
        for piece in (b"3\r\none\r\n", b"3\r\ntwo\r\n", b"0\r\n\r\n"):
            await engine.go_on.wait()
            engine.go_on.clear()
            writer.write(piece)

    engine.answer = answer
    response = await pool.request("GET", "/")
    pieces = response.chunks()
    for expected in (b"one", b"two"):
        engine.go_on.set()
        assert await anext(pieces) == expected
    engine.go_on.set()
    assert [piece async for piece in pieces] == []
    response.release()


@pytest.mark.parametrize(
    "begun",
    [CHUNKED + b"3\r\none\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\none"],
)
async def test_engine_that_dies_in_mid_answer_is_an_error_after_what_came(
    engine: Engine, pool: EngineConnections, begun: bytes
) -> None:
    async def answer(engine: Engine, writer: asyncio.StreamWriter) -> None:
        writer.write(begun)
        await engine.go_on.wait()
        writer.transport.abort()

    engine.answer = answer
    response = await pool.request("GET", "/")
    pieces = response.chunks()
    assert await anext(pieces) == b"one"
    engine.go_on.set()
    with pytest.raises(ConnectionLostError, match="in mid-answer"):
        await anext(pieces)
    response.release()


async def test_answer_that_is_no_http_is_an_error(engine: Engine, pool: EngineConnections) -> None:
    async def answer(_: Engine, writer: asyncio.StreamWriter) -> None:
        writer.write(b"I am no web server\r\n\r\n")

    engine.answer = answer
    with pytest.raises(ConnectionLostError):
        await pool.request("GET", "/")


async def test_engine_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        await EngineConnections(tmp_path / "none.sock").request("GET", "/")


async def test_interim_answer_is_passed_over(engine: Engine, pool: EngineConnections) -> None:
    async def answer(_: Engine, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 100 Continue\r\nx-interim: 1\r\n\r\n" + OK)

    engine.answer = answer
    response = await pool.request("GET", "/")
    assert response.status == 200
    assert response.header(b"x-interim") is None
    assert await response.read() == b"ok"


async def test_released_stream_is_cancelled_by_closing(
    engine: Engine, pool: EngineConnections
) -> None:
    closed = asyncio.Event()

    async def answer(engine: Engine, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + b"3\r\none\r\n")
        await engine.readers[0].read()
        closed.set()

    engine.answer = answer
    response = await pool.request("GET", "/")
    response.release()
    await closed.wait()
    engine.answer = answer_ok
    assert await (await pool.request("GET", "/")).read() == b"ok"
    assert engine.connections == 2


async def test_engine_that_is_faster_than_the_reader_is_held_back(
    engine: Engine, pool: EngineConnections
) -> None:
    piece, count = b"x" * 65_536, 512

    async def answer(engine: Engine, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (len(piece) * count))
        for _ in range(count):
            writer.write(piece)
            await writer.drain()
            engine.sent += len(piece)
        engine.go_on.set()

    engine.answer = answer
    response = await pool.request("GET", "/")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(engine.go_on.wait(), 0.2)
    # 256 KiB here, as much again in one read, and the buffers of the socket.
    assert 0 < engine.sent < 2 * 1024**2
    assert len(await response.read()) == len(piece) * count
    assert engine.sent == len(piece) * count


async def test_large_body_reaches_a_slow_engine(engine: Engine, pool: EngineConnections) -> None:
    body = b"y" * 5_000_000
    response = await pool.request("POST", "/", body=body)
    assert await response.read() == b"ok"
    assert engine.requests[0][1] == body


async def test_cancelled_request_closes_its_connection(
    engine: Engine, pool: EngineConnections
) -> None:
    async def answer(engine: Engine, writer: asyncio.StreamWriter) -> None:
        engine.go_on.set()
        await engine.readers[0].read()

    engine.answer = answer
    task = asyncio.create_task(pool.request("GET", "/"))
    await engine.go_on.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    engine.answer = answer_ok
    assert await (await pool.request("GET", "/")).read() == b"ok"
    assert engine.connections == 2


async def test_connection_is_used_again(engine: Engine, pool: EngineConnections) -> None:
    for number in range(5):
        response = await pool.request("GET", f"/{number}")
        assert await response.read() == b"ok"
    assert len(engine.requests) == 5
    assert engine.connections == 1


async def test_a_wave_of_requests_rides_on_the_connections_of_the_last(
    engine: Engine, pool: EngineConnections
) -> None:
    async def ask() -> None:
        await (await pool.request("GET", "/")).read()

    for _ in range(3):
        await asyncio.gather(*(ask() for _ in range(90)))
    assert len(engine.requests) == 270
    assert engine.connections == 90


async def test_requests_at_once_have_connections_of_their_own(
    engine: Engine, pool: EngineConnections
) -> None:
    first, second = await pool.request("GET", "/1"), await pool.request("GET", "/2")
    assert await asyncio.gather(first.read(), second.read()) == [b"ok", b"ok"]
    assert engine.connections == 2
    again = await pool.request("GET", "/3")
    assert await again.read() == b"ok"
    assert engine.connections == 2


async def test_engine_that_began_to_answer_is_not_asked_again(
    engine: Engine, pool: EngineConnections
) -> None:
    async def answer(_: Engine, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-le")
        writer.close()

    await (await pool.request("GET", "/1")).read()
    engine.answer = answer
    with pytest.raises(ConnectionLostError):
        await pool.request("GET", "/2")
    assert engine.connections == 1


async def test_connection_of_a_stream_is_used_again(
    engine: Engine, pool: EngineConnections
) -> None:
    async def answer(_: Engine, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + b"2\r\nok\r\n0\r\n\r\n")

    engine.answer = answer
    for _ in range(3):
        assert await (await pool.request("GET", "/")).read() == b"ok"
    assert engine.connections == 1


async def test_answer_that_nobody_read_does_not_block_the_next_one(
    engine: Engine, pool: EngineConnections
) -> None:
    async def answer(engine: Engine, writer: asyncio.StreamWriter) -> None:
        size = 256 * 1024 + 1000
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + b"x" * size)
        await writer.drain()
        engine.go_on.set()

    engine.answer = answer
    response = await pool.request("GET", "/")
    await engine.go_on.wait()
    # The client takes what is left in the socket; then the answer is complete and unread.
    for _ in range(100):
        await asyncio.sleep(0)
    response.release()
    engine.answer = answer_ok
    async with asyncio.timeout(2.0):
        assert await (await pool.request("GET", "/")).read() == b"ok"


# On the server's event loop: that of the standard library takes a full backlog for a connection.
def test_a_crowd_larger_than_the_backlog_waits_until_the_engine_accepts(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("s") / "e.sock"

    async def crowd() -> list[bytes]:
        with listening(path) as listener:
            pool = EngineConnections(path)
            asking = [asyncio.create_task(pool.request("GET", "/")) for _ in range(20)]
            done, _ = await asyncio.wait(asking, timeout=0.1)
            assert not done
            engine = Engine(path)
            server = await asyncio.start_unix_server(engine.serve, sock=listener, backlog=1)
            bodies = [await response.read() for response in await asyncio.gather(*asking)]
            pool.close()
            server.close()
            return bodies

    assert uvloop.run(crowd()) == [b"ok"] * 20


def test_who_waits_in_the_crowd_learns_that_the_engine_is_gone(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("s") / "e.sock"

    async def crowd() -> list[object]:
        with listening(path):
            pool = EngineConnections(path)
            asking = [asyncio.create_task(pool.request("GET", "/")) for _ in range(5)]
            done, _ = await asyncio.wait(asking, timeout=0.1)
            assert not done
        return list(await asyncio.gather(*asking, return_exceptions=True))

    answers = uvloop.run(crowd())
    assert {type(answer) for answer in answers} == {ConnectionLostError, ConnectionRefusedError}


def listening(path: Path) -> socket.socket:
    """An engine that accepts nobody, and whose backlog takes two."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)
    return listener
