"""The filter of a log: pages of matches, bounded work, live matches."""

import asyncio
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.engine import log_search, log_store
from appliance.engine.log_search import Found, LogFilter, search_before, search_from
from appliance.engine.log_store import Block, LogStore
from appliance.engine.log_tail import MatchTail
from appliance.engine.logs import EngineLog
from appliance.protocol.engines import LogLevel
from appliance.units import KIB, MIB

Line = tuple[int, bytes]

WORDS = st.sampled_from([b"plain", b"Needle", b"needle needle", b"NEEDLE at the end", b"x" * 60])


def impatient() -> Callable[[], float]:
    """A clock that is over the time of a step each time that it is asked."""
    ticks = count()
    return lambda: float(next(ticks))


def patient() -> float:
    return 0.0


def pages_on(
    store: LogStore, keep: LogFilter, n: int, clock: Callable[[], float]
) -> Iterator[Found]:
    line = 1
    while True:
        page = search_from(store, keep, line, n, clock)
        assert page.scanned_from == line
        yield page
        if page.is_complete:
            return
        assert page.scanned_to > line
        line = page.scanned_to


def pages_back(
    store: LogStore, keep: LogFilter, n: int, clock: Callable[[], float]
) -> Iterator[Found]:
    line = store.total_lines + 1
    while True:
        page = search_before(store, keep, line, n, clock)
        assert page.scanned_to == line
        yield page
        if page.is_complete:
            return
        assert page.scanned_from < line
        line = page.scanned_from


def kept_lines(store: LogStore) -> list[Line]:
    lines: list[Line] = []
    line = 1
    while block := store.block_from(line):
        found = block.lines(line, block.end_line)
        line = max(line, block.first_line)
        lines.extend(enumerate(found, line))
        line += len(found)
    return lines


@settings(deadline=None, max_examples=80)
@given(
    lines=st.lists(WORDS, max_size=120),
    batch=st.integers(1, 50),
    limit=st.sampled_from([400, 2000, 100_000]),
    n=st.sampled_from([1, 3, 1000]),
    is_hurried=st.booleans(),
)
def test_pages_hold_all_matches_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory,
    lines: list[bytes],
    batch: int,
    limit: int,
    n: int,
    is_hurried: bool,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_store, "_MARK_BYTES", 100)
        patch.setattr(log_store, "_MARK_LINES", 5)
        store = LogStore(tmp_path_factory.mktemp("log") / "log", limit)
        for at in range(0, len(lines), batch):
            store.append(lines[at : at + batch])
        store.close()
        keep = LogFilter("needLE")
        kept = kept_lines(store)
        expected = [(number, line) for number, line in kept if b"needle" in line.lower()]
        clock = impatient() if is_hurried else patient
        on = list(pages_on(store, keep, n, clock))
        back = list(pages_back(store, keep, n, clock))
    assert [match for page in on for match in page.lines] == expected
    assert [match for page in reversed(back) for match in page.lines] == expected
    for pages in (on, back):
        assert all(len(page.lines) <= n for page in pages)
        assert sum(page.skipped for page in pages) == len(lines) - len(kept)
        for page in pages:
            assert all(page.scanned_from <= number < page.scanned_to for number, _ in page.lines)


@pytest.fixture(scope="module")
def long_store(tmp_path_factory: pytest.TempPathFactory) -> LogStore:
    """300,000 lines; each thousandth is an error, and one alone holds a rare word."""
    store = LogStore(tmp_path_factory.mktemp("log") / "log", 256 * MIB)
    info = b"(EngineCore_DP0 pid=4287) INFO 11-21 08:57:34 [loggers.py:248] Avg throughput %d"
    error = b"(EngineCore_DP0 pid=4287) ERROR 11-21 08:57:34 [core.py:700] request %d failed"
    rare = b"(APIServer pid=1) INFO 11-21 08:57:34 [launcher.py:46] Route: /Health %d"
    for first in range(1, 300_001, 1000):
        numbers = range(first, first + 1000)
        lines = [(error if number % 1000 == 0 else info) % number for number in numbers]
        if first == 150_001:
            lines[5] = rare % (first + 5)
        store.append(lines)
    store.close()
    return store


@pytest.mark.parametrize(
    ("keep", "matches"),
    [
        (LogFilter("/health"), 1),
        (LogFilter("absent"), 0),
        (LogFilter(level=LogLevel.ERROR), 300),
        (LogFilter("request 1", LogLevel.WARNING), 111),
        (LogFilter("avg", LogLevel.ERROR), 0),
    ],
)
def test_all_matches_of_a_long_log(long_store: LogStore, keep: LogFilter, matches: int) -> None:
    for pages in (
        pages_on(long_store, keep, 1000, impatient()),
        pages_back(long_store, keep, 1000, patient),
    ):
        found = [match for page in pages for match in page.lines]
        assert len(found) == matches


@pytest.mark.parametrize("text", ["absent", "avg"])
def test_step_looks_at_one_block_when_time_is_short(
    long_store: LogStore, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    sizes: list[int] = []
    find = LogFilter.find

    def counted(keep: LogFilter, block: Block) -> list[tuple[int, int, int]]:
        sizes.append(len(block.data))
        return find(keep, block)

    monkeypatch.setattr(LogFilter, "find", counted)
    for search, line in ((search_before, 300_001), (search_from, 123_456)):
        step = search(long_store, LogFilter(text), line, 10_000, impatient())
        assert not step.is_complete
        assert len(sizes) == 1
        assert sizes.pop() <= 4 * 65 * KIB


def test_frequent_word_is_found_in_one_block(
    long_store: LogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = []
    block_before = long_store.block_before

    def counted(line: int, marks: int = 1) -> Block | None:
        blocks.append(line)
        return block_before(line, marks)

    monkeypatch.setattr(long_store, "block_before", counted)
    step = search_before(long_store, LogFilter("avg"), 300_001, 200, patient)
    assert (len(step.lines), len(blocks)) == (200, 1)
    assert step.lines[-1][0] == 299_999
    assert step.scanned_from == step.lines[0][0]


def test_answer_has_a_bounded_size(tmp_path: Path) -> None:
    store = LogStore(tmp_path / "log", 256 * MIB)
    for _ in range(20):
        store.append([b"x" * 16_000] * 10)
    store.close()
    step = search_from(store, LogFilter("x"), 1, 10_000, patient)
    assert MIB <= sum(len(line) for _, line in step.lines) < MIB + 16_001
    assert step.scanned_to == step.lines[-1][0] + 1
    assert not step.is_complete


@pytest.mark.parametrize(
    ("line", "level"),
    [
        (b"(APIServer pid=1) INFO 11-21 08:57:34 [a.py:1] an error is no ERROR here", None),
        (b"INFO 11-21 08:57:34 [a.py:1] Traceback (most recent call last):", None),
        (b"plain text about an exception", None),
        (b"(EngineCore_DP0 pid=42) WARNING 11-21 08:57:34 [a.py:1] careful", LogLevel.WARNING),
        (b"WARN careful", LogLevel.WARNING),
        (b"(EngineCore_DP0 pid=42) ERROR 11-21 08:57:34 [a.py:1] x", LogLevel.ERROR),
        (b"CRITICAL x", LogLevel.ERROR),
        (b"(EngineCore_DP0 pid=42) Traceback (most recent call last):", LogLevel.ERROR),
        (b"  torch.OutOfMemoryError: CUDA out of memory", LogLevel.ERROR),
    ],
)
def test_level_of_a_line(line: bytes, level: LogLevel | None) -> None:
    block = Block(7, 8, line + b"\n")
    is_warned_of = bool(LogFilter(level=LogLevel.WARNING).find(block))
    assert is_warned_of == (level is not None)
    assert bool(LogFilter(level=LogLevel.ERROR).find(block)) == (level is LogLevel.ERROR)
    assert LogFilter(line[-3:].decode(), level).find(block) == [(7, 0, len(line))]


def test_case_of_other_letters_counts() -> None:
    block = Block(1, 3, "grün\nGRÜN\n".encode())
    assert LogFilter("GRün").find(block) == [(1, 0, 5)]


def block(first: int, *lines: str) -> Block:
    return Block(first, first + len(lines), "".join(f"{line}\n" for line in lines).encode())


async def test_follower_gets_matches_with_their_numbers() -> None:
    tail = MatchTail(LogFilter("b"), 3)
    tail.put(block(1, "b1", "b2", "b3", "a4", "b5"))
    tail.put(block(6, "a6"))
    batch = await tail.batch(1.0)
    assert batch is not None
    assert batch.lines == [(3, b"b3"), (5, b"b5")]
    assert (batch.scanned_from, batch.scanned_to, batch.skipped) == (3, 7, 0)
    tail.put(block(7, "a7"))
    assert await tail.batch(0.001) is None
    tail.put(block(10, "b10"))
    batch = await tail.batch(1.0)
    assert batch is not None
    assert (batch.lines, batch.scanned_from, batch.scanned_to) == ([(10, b"b10")], 7, 11)
    assert batch.skipped == 2


async def test_slow_follower_loses_its_oldest_matches() -> None:
    tail = MatchTail(LogFilter("b"))
    for first in range(1, 5001, 2):
        tail.put(block(first, "b", "a"))
    batch = await tail.batch(1.0)
    assert batch is not None
    assert (len(batch.lines), batch.lines[0][0], batch.skipped) == (2000, 1001, 500)
    for first in range(5001, 5201):
        tail.put(block(first, "b" * 16_000))
    batch = await tail.batch(1.0)
    assert batch is not None
    assert sum(len(line) for _, line in batch.lines) <= MIB
    assert len(batch.lines) + batch.skipped == 200


async def test_what_was_read_from_the_file_meanwhile_is_not_missed() -> None:
    tail = MatchTail(LogFilter("b"))
    for first in range(11, 3011):
        tail.put(block(first, "b"))
    tail.begin_at(3009)
    batch = await tail.batch(1.0)
    assert batch is not None
    assert ([number for number, _ in batch.lines], batch.skipped) == ([3009, 3010], 0)


async def test_lines_that_came_neither_from_the_file_nor_live_are_counted() -> None:
    tail = MatchTail(LogFilter("b"))
    tail.put(block(11, "b"))
    tail.begin_at(8)
    batch = await tail.batch(1.0)
    assert batch is not None
    assert (batch.lines, batch.skipped, batch.scanned_from) == ([(11, b"b")], 3, 8)


async def test_matches_are_delivered_to_those_who_follow(tmp_path: Path) -> None:
    log = EngineLog(tmp_path / "engine.log", "eng_1", "m")
    loud, quiet = log.tail_matches(LogFilter("b")), log.tail_matches(LogFilter("x"))
    waiting = asyncio.create_task(loud.batch(60.0))
    await asyncio.sleep(0)
    log.deliver(4, ["a4", "b5 ü"])
    batch = await asyncio.wait_for(waiting, 5.0)
    assert batch is not None
    assert [match.text for match in log.matches(batch).matches] == ["b5 ü"]
    assert await quiet.batch(0.001) is None
    log.untail(quiet)
    log.deliver(6, ["bx"])
    log.close()
    assert await loud.batch(1.0) is not None
    for tail in (loud, log.tail_matches(LogFilter("b"))):
        with pytest.raises(StopAsyncIteration):
            await tail.batch(1.0)
    assert await quiet.batch(0.001) is None


def test_words_of_levels_are_in_lower_case() -> None:
    assert all(word == word.lower() for word in log_search._ERROR_WORDS)
