import asyncio
from collections.abc import AsyncIterator

import pytest

from tui.client.api import ApiError, Heard, UnreachableError
from tui.client.feed import Feed
from tui.client.stream import LONGEST_MESSAGE, Message, SseParser, StreamTooLongError
from tui.state import connection as link
from tui.state.clock import SystemClock
from tui.state.connection import Connection, Link
from tui.state.history import History


def lose(connection: Connection, now: float) -> Connection:
    return link.failed(connection, now, error="gone", hint="start it", chance=1.0)


def test_from_connecting_to_live_to_stale_and_back() -> None:
    connection = Connection(since=0.0)
    assert connection.link is Link.CONNECTING
    connection = link.heard(connection, 1.0)
    assert link.tick(connection, 7.0).link is Link.LIVE
    stale = link.tick(connection, 7.1)
    assert stale.link is Link.STALE
    assert not stale.is_current
    assert stale.heard_at == 1.0
    assert link.heard(stale, 8.0).link is Link.LIVE


def test_losing_it_counts_attempts_and_backs_off() -> None:
    connection = link.heard(Connection(), 10.0)
    delays = []
    for _ in range(8):
        connection = lose(connection, 10.0)
        assert connection.retry_at is not None
        delays.append(connection.retry_at - 10.0)
    assert delays[:5] == [0.25, 0.5, 1.0, 2.0, 4.0]
    assert delays[-1] == 5.0
    assert connection.attempt == 8
    assert link.heard(connection, 11.0) == Connection(link=Link.LIVE, since=11.0, heard_at=11.0)


def test_chance_spreads_the_retries() -> None:
    assert link.delay_before(3, 0.0) == 0.5
    assert link.delay_before(3, 1.0) == 1.0
    assert link.delay_before(10_000, 1.0) == link.LONGEST_DELAY_S


def test_after_a_minute_it_is_disconnected() -> None:
    connection = lose(link.heard(Connection(), 0.0), 0.0)
    assert link.tick(connection, 60.0).link is Link.RECONNECTING
    assert link.tick(connection, 60.1).link is Link.DISCONNECTED
    assert lose(connection, 61.0).link is Link.DISCONNECTED


def test_refusals_wait_for_a_person() -> None:
    refused = link.refused(Connection(), 5.0, error="no key", hint="give one")
    assert refused.link is Link.UNAUTHORISED
    assert refused.retry_at is None
    assert link.tick(refused, 500.0) is refused
    assert link.retrying(refused, 6.0).link is Link.CONNECTING


def test_history_holds_the_value_through_silence() -> None:
    history = History(seconds=5)
    history.add(10.0, 1.0)
    history.add(10.4, 2.0)
    history.add(13.0, 3.0)
    assert history.last(10) == [2.0, 2.0, 2.0, 3.0]
    history.add(500.0, 9.0)
    assert history.last(10) == [3.0, 3.0, 3.0, 3.0, 9.0]
    assert history.last(0) == []


def test_stream_messages_survive_any_cut() -> None:
    raw = b'id: 7\ndata: {"a":\ndata: 1}\n\n: heartbeat\n\ndata: x\r\n\r\n'
    expected = [Message('{"a":\n1}', "7"), Message(), Message("x")]
    for cut in range(len(raw)):
        parser = SseParser()
        assert parser.feed(raw[:cut]) + parser.feed(raw[cut:]) == expected


def test_a_message_without_end_is_refused() -> None:
    parser = SseParser()
    assert parser.feed(b"x" * LONGEST_MESSAGE) == []
    with pytest.raises(StreamTooLongError):
        parser.feed(b"x")


class _Client:
    def __init__(self, *outcomes: Exception | None) -> None:
        self.outcomes = list(outcomes)
        self.asked: list[int | None] = []

    async def events(self, since: int | None) -> AsyncIterator[Heard]:
        self.asked.append(since)
        outcome = self.outcomes.pop(0)
        yield Heard()
        if outcome is not None:
            raise outcome
        await asyncio.Event().wait()


async def _until(feed: Feed, wanted: Link) -> None:
    changed = asyncio.Event()
    feed.on_change = changed.set
    async with asyncio.timeout(5):
        while feed.connection.link is not wanted:
            changed.clear()
            await changed.wait()


async def test_the_feed_comes_back_after_a_broken_stream() -> None:
    client = _Client(UnreachableError("reset", "start it"), None)

    async def open_client() -> _Client:
        return client

    feed = Feed(open_client, SystemClock(), chance=lambda: 0.0)
    task = asyncio.create_task(feed.run())
    await _until(feed, Link.RECONNECTING)
    assert feed.connection.error == "reset"
    await _until(feed, Link.LIVE)
    assert len(client.asked) == 2
    task.cancel()


async def test_the_feed_never_loops_on_a_refused_key() -> None:
    client = _Client(ApiError("no", "", status=401), None)

    async def open_client() -> _Client:
        return client

    feed = Feed(open_client, SystemClock())
    task = asyncio.create_task(feed.run())
    await _until(feed, Link.UNAUTHORISED)
    assert "APPLIANCE_API_KEY" in feed.connection.hint
    assert len(client.asked) == 1
    feed.retry()
    await _until(feed, Link.LIVE)
    task.cancel()
