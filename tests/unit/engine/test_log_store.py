"""Rotation and index, against a list of all lines."""

import os
import threading
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.engine import log_store
from appliance.engine.log_store import LogStore
from appliance.engine.logs import EngineLog
from appliance.protocol.engines import LogWindow
from appliance.units import MIB

# Lengths of lines, batch by batch; long ones are longer than a segment.
BATCHES = st.lists(
    st.lists(st.sampled_from([1, 5, 20, 90]), min_size=1, max_size=30), min_size=1, max_size=12
)
LIMITS = st.sampled_from([80, 400, 1600, 10_000])


def written_log(folder: Path, batches: list[list[int]], limit: int) -> tuple[EngineLog, list[str]]:
    log = EngineLog(folder / "engine.log", "eng_1", "m", limit_bytes=limit)
    written: list[str] = []
    for lengths in batches:
        more = [str(len(written) + at).rjust(length, ".") for at, length in enumerate(lengths, 1)]
        assert log.append([line.encode() for line in more]) == len(written) + 1
        written += more
    log.end_writing()
    return log, written


def check(window: LogWindow, written: list[str]) -> None:
    first = window.first_line
    assert window.total_lines == len(written)
    assert window.lines == written[first - 1 : first - 1 + len(window.lines)]


def kept_numbers(log: EngineLog) -> list[int]:
    """All numbers that windows from the first line on show, and that gaps are told of."""
    numbers: list[int] = []
    line = 1
    while (window := log.window(line, 7)).lines:
        assert window.first_line == line + window.skipped
        line = window.first_line + len(window.lines)
        numbers.extend(range(window.first_line, line))
    return numbers


@pytest.fixture
def small_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_store, "_MARK_BYTES", 100)
    monkeypatch.setattr(log_store, "_MARK_LINES", 10)


@pytest.mark.usefixtures("small_marks")
class TestModel:
    @settings(deadline=None, max_examples=60)
    @given(batches=BATCHES, limit=LIMITS, first=st.integers(1, 370), count=st.integers(0, 40))
    def test_windows_show_what_was_written(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        batches: list[list[int]],
        limit: int,
        first: int,
        count: int,
    ) -> None:
        log, written = written_log(tmp_path_factory.mktemp("log"), batches, limit)
        kept = kept_numbers(log)
        assert {1, len(written)} <= set(kept)
        window = log.window(first, count)
        check(window, written)
        reachable = [number for number in kept if number >= first]
        if count and reachable:
            assert window.first_line == reachable[0]
            assert window.skipped == reachable[0] - first
            full = min(count, len(reachable))
            whole = list(range(reachable[0], reachable[0] + full))
            ends_at_gap = reachable[:full] != whole
            assert len(window.lines) == full or ends_at_gap
            assert len(window.lines) > 0

    @settings(deadline=None, max_examples=60)
    @given(batches=BATCHES, limit=LIMITS, count=st.integers(1, 60), before=st.integers(1, 370))
    def test_last_lines_are_the_newest_ones_that_hang_together(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        batches: list[list[int]],
        limit: int,
        count: int,
        before: int,
    ) -> None:
        log, written = written_log(tmp_path_factory.mktemp("log"), batches, limit)
        kept = [number for number in kept_numbers(log) if number < before]
        window = log.last(count, before)
        check(window, written)
        newest = [number for number in kept if number > (kept[-1] if kept else 0) - count]
        while newest and newest != list(range(newest[0], newest[-1] + 1)):
            newest = newest[1:]
        assert window.first_line == (newest[0] if newest else 1)
        assert len(window.lines) == len(newest)
        missing = (
            window.first_line
            - 1
            - max((number for number in kept if number < window.first_line), default=0)
        )
        assert window.skipped == (missing if len(newest) < count else 0)

    @settings(deadline=None, max_examples=40)
    @given(batches=BATCHES)
    def test_files_stay_below_the_limit(
        self, tmp_path_factory: pytest.TempPathFactory, batches: list[list[int]]
    ) -> None:
        folder = tmp_path_factory.mktemp("log")
        log, written = written_log(folder, batches, 1600)
        assert sum(file.stat().st_size for file in folder.iterdir()) <= 1600
        assert len(list(folder.iterdir())) <= 8 + 8
        size = sum(len(line) + 1 for line in written)
        if size > 1600:
            # What is kept is worth the room that it was given.
            assert sum(file.stat().st_size for file in folder.iterdir()) > 800
        assert log.window(1, 1).lines == written[:1]


def test_beginning_and_end_stay(tmp_path: Path) -> None:
    log, written = written_log(tmp_path, [[9] * 100] * 10, 800)
    assert sorted(file.name for file in tmp_path.iterdir())[0] == "engine.log"
    kept = kept_numbers(log)
    assert kept[:10] == list(range(1, 11))
    assert kept[10:] == list(range(kept[10], 1001))
    assert 60 <= len(kept) <= 80
    window = log.window(5, 100)
    assert (window.lines, window.skipped) == (written[4:10], 0)
    window = log.window(11, 100)
    assert (window.first_line, window.skipped) == (kept[10], kept[10] - 11)
    window = log.last(100)
    assert (window.first_line, window.skipped) == (kept[10], kept[10] - 11)
    window = log.last(100, before=kept[10])
    assert (window.first_line, window.lines) == (1, written[:10])


def test_index_is_small() -> None:
    segment = log_store._Segment(Path("none"))
    line, batch = 100, 500
    for number in range(20_000):
        segment.grow(number * batch + 1, list(range(line, line * batch + 1, line)))
    assert segment.end_line == 10_000_001
    assert len(segment.mark_lines) * 16 < MIB


def test_window_reads_little_whatever_is_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LogStore(tmp_path / "log", 256 * MIB)
    for first in range(1, 300_001, 1000):
        store.append([b"%0100d" % number for number in range(first, first + 1000)])
    store.close()
    sizes = []
    pread = os.pread

    def counted(file: int, size: int, offset: int) -> bytes:
        sizes.append(size)
        return pread(file, size, offset)

    monkeypatch.setattr(os, "pread", counted)
    for line in (1, 777, 150_000, 299_999):
        block = store.block_from(line)
        assert block is not None
        assert block.lines(line, line + 1) == [b"%0100d" % line]
        block = store.block_before(line + 1)
        assert block is not None
        assert block.lines(line, line + 1) == [b"%0100d" % line]
    assert max(sizes) <= 64 * 1024 + 101
    assert store.index_bytes < 16_384


class ShortDisk:
    """A file on a disk that gets full: it takes a part, then nothing."""

    def __init__(self, output: BinaryIO, room: int) -> None:
        self._output = output
        self._room = room

    def write(self, data: bytes) -> int:
        taken = self._output.write(data[: self._room])
        self._room -= taken
        return taken

    def fileno(self) -> int:
        return self._output.fileno()

    def close(self) -> None:
        self._output.close()


@pytest.mark.parametrize("is_cut", [True, False])
def test_lines_lost_to_a_full_disk_leave_a_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_cut: bool
) -> None:
    log = EngineLog(tmp_path / "engine.log", "eng_1", "m")
    log.append([b"one", b"two"])
    store = log._store
    assert store._output is not None
    store._output = ShortDisk(store._output, 3)  # type: ignore[assignment]
    if not is_cut:

        def refuse(*_: object) -> None:
            raise OSError

        monkeypatch.setattr(os, "ftruncate", refuse)
    assert log.append([b"three", b"four"]) == 3
    assert log.append([b"five"]) == 5
    log.end_writing()
    assert log.line_count == 5
    assert log.window(1, 9).lines == ["one", "two"]
    assert (log.last(9).lines, log.last(9).first_line, log.last(9).skipped) == (["five"], 5, 2)
    window = log.window(3, 9)
    assert (window.first_line, window.skipped, window.lines) == (5, 2, ["five"])
    assert (log.file.read_bytes() == b"one\ntwo\n") == is_cut


def test_segment_that_cannot_be_made_loses_lines_until_it_can(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    log = EngineLog(folder / "engine.log", "eng_1", "m", limit_bytes=80)
    log.append([b"one", b"two"])
    away = tmp_path / "away"
    folder.rename(away)
    assert log.append([b"three", b"four"]) == 3
    away.rename(folder)
    assert log.append([b"five", b"six"]) == 5
    log.end_writing()
    assert kept_numbers(log) == [1, 2, 5, 6]
    assert log.window(1, 1).lines == ["one"]


def test_disk_that_is_full_on_and_off_does_not_make_files_without_end(tmp_path: Path) -> None:
    log = EngineLog(tmp_path / "engine.log", "eng_1", "m")
    for _ in range(200):
        log.append([b"kept"])
        assert log._store._output is not None
        log._store._output = ShortDisk(log._store._output, 0)  # type: ignore[assignment]
        log.append([b"lost"])
    log.end_writing()
    assert len(list(tmp_path.iterdir())) <= 64
    assert {1, 399} <= set(kept_numbers(log))


def test_file_that_somebody_removed_is_a_gap(tmp_path: Path) -> None:
    log, written = written_log(tmp_path, [[9] * 30], 800)
    (tmp_path / "engine.log.1").unlink()
    assert kept_numbers(log) == [*range(1, 11), *range(21, 31)]
    (tmp_path / "engine.log.2").write_bytes(b"")
    assert kept_numbers(log) == [*range(1, 11)]
    assert log.append([b"after"]) == 31
    log.end_writing()
    assert log.last(1).lines == ["after"]
    assert written[9:10] == log.last(1, before=11).lines


def test_readers_see_whole_lines_while_the_log_rotates(tmp_path: Path) -> None:
    log = EngineLog(tmp_path / "engine.log", "eng_1", "m", limit_bytes=20_000)
    errors: list[str] = []
    is_over = threading.Event()

    def read() -> None:
        while not is_over.is_set():
            total = log.line_count
            for window in (log.last(50), log.window(max(total // 2, 1), 50), log.window(1, 50)):
                numbers = range(window.first_line, window.first_line + len(window.lines))
                if window.lines != [f"line {number}" for number in numbers]:
                    errors.append(f"{window}")

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for first in range(1, 30_001, 10):
        log.append([f"line {number}".encode() for number in range(first, first + 10)])
    is_over.set()
    for reader in readers:
        reader.join(10.0)
    log.end_writing()
    assert errors == []
