import asyncio
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.engine.log_handover import Handover
from appliance.engine.log_tail import LogTail
from appliance.engine.logs import EngineLog, remove_log, start_pump
from tests.support.wait import wait_until_async


def log_with(directory: Path, count: int) -> EngineLog:
    log = EngineLog(directory / "engine.log", "eng_1", "m")
    log.append([line.encode() for line in lines(1, count)])
    log.end_writing()
    return log


def lines(first: int, last: int) -> list[str]:
    return [f"line {number}" for number in range(first, last + 1)]


@pytest.fixture(scope="module")
def long_log(tmp_path_factory: pytest.TempPathFactory) -> EngineLog:
    return log_with(tmp_path_factory.mktemp("log"), 3000)


# The index holds the place of each 1024th short line.
@pytest.mark.parametrize("first", [1, 2, 1023, 1024, 1025, 2047, 2048, 2049, 2050, 2999, 3000])
@pytest.mark.parametrize("count", [1, 2, 1024, 2100])
def test_window_across_the_index(long_log: EngineLog, first: int, count: int) -> None:
    window = long_log.window(first, count)
    assert window.first_line == first
    assert window.lines == lines(first, min(first + count - 1, 3000))
    assert window.total_lines == 3000
    assert window.skipped == 0
    assert (window.engine_id, window.model) == ("eng_1", "m")


@pytest.mark.parametrize(
    ("first", "count", "shown_from", "shown"),
    [
        (3001, 5, 3001, []),
        (9999, 5, 3001, []),
        (0, 2, 1, ["line 1", "line 2"]),
        (-50, 1, 1, ["line 1"]),
        (10, 0, 10, []),
    ],
)
def test_window_beyond_the_log(
    long_log: EngineLog, first: int, count: int, shown_from: int, shown: list[str]
) -> None:
    window = long_log.window(first, count)
    assert (window.first_line, window.lines) == (shown_from, shown)


@pytest.mark.parametrize(("count", "first"), [(1, 3000), (952, 2049), (953, 2048), (9999, 1)])
def test_last_lines(long_log: EngineLog, count: int, first: int) -> None:
    window = long_log.last(count)
    assert window.lines == lines(first, 3000)
    assert window.first_line == first


@pytest.mark.parametrize(
    ("before", "shown"),
    [(1, (1, 0)), (2, (1, 1)), (1026, (1024, 1025)), (3001, (2999, 3000)), (9999, (2999, 3000))],
)
def test_last_lines_before_a_line(long_log: EngineLog, before: int, shown: tuple[int, int]) -> None:
    window = long_log.last(2, before)
    assert (window.first_line, window.lines) == (shown[0], lines(*shown))


def test_empty_log_has_no_lines(tmp_path: Path) -> None:
    log = EngineLog(tmp_path / "engine.log", "eng_1", "m")
    for window in (log.last(10), log.window(1, 10)):
        assert (window.first_line, window.total_lines, window.lines) == (1, 0, [])


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 100), min_size=1, max_size=6), st.integers(1, 400))
def test_lines_appended_bit_by_bit_are_found(
    tmp_path_factory: pytest.TempPathFactory, parts: list[int], first: int
) -> None:
    log = EngineLog(tmp_path_factory.mktemp("log") / "engine.log", "eng_1", "m")
    written: list[str] = []
    for part in parts:
        more = lines(len(written) + 1, len(written) + part)
        assert log.append([line.encode() for line in more]) == len(written) + 1
        written += more
        assert log.line_count == len(written)
        assert log.window(first, 70).lines == written[first - 1 : first + 69]
    log.end_writing()


def test_bytes_that_are_no_text_are_shown_as_such(tmp_path: Path) -> None:
    log = EngineLog(tmp_path / "engine.log", "eng_1", "m")
    log.append([b"ok \xff\xfe"])
    log.end_writing()
    assert log.last(1).lines == ["ok ��"]


async def test_tail_gets_what_is_delivered(tmp_path: Path) -> None:
    log = log_with(tmp_path, 3)
    tail = log.tail(4)
    log.deliver(4, ["line 4", "line 5"])
    log.deliver(6, ["line 6"])
    assert await tail.batch(1.0) == (4, lines(4, 6), 0)
    log.deliver(7, ["line 7"])
    assert await tail.batch(1.0) == (7, ["line 7"], 0)


async def test_tail_leaves_out_what_it_has_shown() -> None:
    tail = LogTail(4)
    tail.put(2, lines(2, 5))
    tail.put(3, lines(3, 6))
    assert await tail.batch(1.0) == (4, lines(4, 6), 0)
    tail.put(5, lines(5, 7))
    assert await tail.batch(1.0) == (7, ["line 7"], 0)


async def test_slow_tail_drops_its_oldest_lines_and_counts_them() -> None:
    tail = LogTail(1)
    tail.put(1, lines(1, 1500))
    tail.put(1501, lines(1501, 2600))
    assert await tail.batch(1.0) == (601, lines(601, 2600), 600)
    tail.put(2601, ["line 2601"])
    assert await tail.batch(1.0) == (2601, ["line 2601"], 0)


async def test_slow_tail_knows_what_it_dropped_when_lines_come_twice() -> None:
    tail = LogTail(1)
    tail.put(1, lines(1, 2500))
    tail.put(2400, lines(2400, 2501))
    first, shown, skipped = await tail.batch(1.0) or (0, [], 0)
    assert (first, skipped) == (502, 501)
    assert shown == lines(502, 2501)


async def test_slow_tail_holds_few_bytes() -> None:
    tail = LogTail(1)
    for number in range(1, 1001):
        tail.put(number, ["x" * 16_384])
    first, shown, skipped = await tail.batch(1.0) or (0, [], 0)
    assert 50 < len(shown) <= 64
    assert (first, skipped) == (1001 - len(shown), 1000 - len(shown))


async def test_batch_of_a_tail_has_no_gap_inside() -> None:
    tail = LogTail(1)
    tail.put(1, lines(1, 3))
    tail.put(6, lines(6, 7))
    assert await tail.batch(1.0) == (6, lines(6, 7), 5)


async def test_silence_is_no_batch() -> None:
    assert await LogTail(1).batch(0.001) is None


async def test_line_wakes_a_tail_that_waits(tmp_path: Path) -> None:
    log = log_with(tmp_path, 0)
    waiting = asyncio.create_task(log.tail(1).batch(60.0))
    await asyncio.sleep(0)
    log.deliver(1, ["line 1"])
    assert await asyncio.wait_for(waiting, 5.0) == (1, ["line 1"], 0)


async def test_end_of_the_log_comes_after_its_last_lines(tmp_path: Path) -> None:
    log = log_with(tmp_path, 0)
    tail = log.tail(1)
    log.deliver(1, ["line 1"])
    log.close()
    assert await tail.batch(1.0) == (1, ["line 1"], 0)
    with pytest.raises(StopAsyncIteration):
        await tail.batch(1.0)


async def test_tail_of_an_ended_log_ends_at_once(tmp_path: Path) -> None:
    log = log_with(tmp_path, 0)
    log.close()
    with pytest.raises(StopAsyncIteration):
        await log.tail(1).batch(1.0)


async def test_tail_that_was_handed_back_gets_nothing_more(tmp_path: Path) -> None:
    log = log_with(tmp_path, 0)
    tail = log.tail(1)
    log.untail(tail)
    log.deliver(1, ["line 1"])
    assert await tail.batch(0.001) is None


def test_removed_log_leaves_nothing(tmp_path: Path) -> None:
    log = EngineLog(tmp_path / "m.eng_1.log", "eng_1", "m", limit_bytes=800)
    log.append([line.encode() for line in lines(1, 60)])
    log.end_writing()
    others = [tmp_path / "m.eng_1.log.old", tmp_path / "m.eng_11.log", tmp_path / "m.eng_11.log.1"]
    for other in others:
        other.touch()
    assert len(list(tmp_path.iterdir())) > 5
    remove_log(log.file)
    remove_log(log.file)
    assert sorted(tmp_path.iterdir()) == sorted(others)


class Heard:
    """What came of writes to the pipe of a pump."""

    def __init__(self, directory: Path) -> None:
        self.log = EngineLog(directory / "engine.log", "eng_1", "m")
        self.lines: list[tuple[int, str]] = []
        self.updates: list[str] = []

    def take(self, first: int, more: list[str]) -> None:
        self.lines.extend(enumerate(more, first))


async def pump(directory: Path, writes: list[bytes]) -> Heard:
    heard = Heard(directory)
    read_end, write_end = os.pipe()
    loop = asyncio.get_running_loop()
    thread = start_pump(read_end, heard.log, loop, heard.take, on_update=heard.updates.append)
    for data in writes:
        await asyncio.to_thread(os.write, write_end, data)
    os.close(write_end)
    await asyncio.to_thread(thread.join, 5.0)
    assert not thread.is_alive()
    # What the thread left for the loop came before the end of the join.
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(read_end)
    return heard


@pytest.mark.parametrize(
    ("writes", "expected"),
    [
        ([], []),
        ([b"one\ntwo\n"], ["one", "two"]),
        ([b"o", b"ne\ntw", b"o\n"], ["one", "two"]),
        ([b"one\ntwo"], ["one", "two"]),
        ([b"one\r\n\n  \ntwo\n"], ["one", "two"]),
        ([b" 10%|#   \r 50%|##  \r100%|####\ndone\n"], ["100%|####", "done"]),
        ([b" 10%\r", b" 50%"], [" 50%"]),
        (["grün\n".encode()[:3], "grün\n".encode()[3:]], ["grün"]),
        ([b"x" * 20_000 + b"\nafter\n"], ["x" * 16_384, "after"]),
    ],
)
async def test_pump_makes_lines_of_what_the_engine_writes(
    tmp_path: Path, writes: list[bytes], expected: list[str]
) -> None:
    heard = await pump(tmp_path, writes)
    assert [line for _, line in heard.lines] == expected
    assert [number for number, _ in heard.lines] == list(range(1, len(expected) + 1))
    assert heard.log.last(100).lines == expected


async def test_pump_takes_a_flood_without_losing_a_line(tmp_path: Path) -> None:
    text = "".join(f"line {number}\n" for number in range(1, 20_001)).encode()
    heard = await pump(tmp_path, [text[at : at + 8192] for at in range(0, len(text), 8192)])
    assert heard.lines == list(enumerate(lines(1, 20_000), 1))
    assert heard.log.line_count == 20_000
    assert heard.log.window(12_345, 2).lines == lines(12_345, 12_346)


async def test_bar_that_moves_is_heard_of_before_it_is_a_line(tmp_path: Path) -> None:
    heard = Heard(tmp_path)
    read_end, write_end = os.pipe()
    loop = asyncio.get_running_loop()
    thread = start_pump(read_end, heard.log, loop, heard.take, on_update=heard.updates.append)

    async def is_heard(what: str) -> bool:
        return what in heard.updates

    for state in ("shards:  50% Completed | 1/2", "shards: 100% Completed | 2/2"):
        os.write(write_end, b"\r" + state.encode())
        await wait_until_async(lambda state=state: is_heard(state))  # type: ignore[misc]
        assert heard.lines == []
    os.close(write_end)
    await asyncio.to_thread(thread.join, 5.0)
    assert heard.lines == [(1, "shards: 100% Completed | 2/2")]


async def test_what_the_loop_has_no_time_for_is_bounded() -> None:
    heard: list[tuple[int, int]] = []
    handover = Handover(
        asyncio.get_running_loop(), lambda first, more: heard.append((first, len(more))), None
    )
    for number in range(1000):
        handover.put(1 + number * 10, [b"x" * 1000] * 10, [])
    handover.end()
    await asyncio.sleep(0)
    assert 400 < len(heard) < 430
    assert heard[-1] == (9991, 10)
    assert [first for first, _ in heard] == list(range(heard[0][0], 10_000, 10))


def test_loop_that_has_ended_stops_nothing() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    handover = Handover(loop, lambda first, more: None, None)
    handover.put(1, [b"line"], [])
    handover.end()
