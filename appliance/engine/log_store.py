"""The kept lines of one engine's log: files of limited size, and where in them the lines are.

The first file stays: it holds the start and the first failure. Of the others the newest ones stay.
A line keeps its number when lines before it go. The index holds one entry for 64 KiB, so that it
stays small with millions of lines. One thread appends; any thread reads.
"""

import contextlib
import logging
import os
import threading
from array import array
from bisect import bisect_left, bisect_right
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, NamedTuple

from appliance.units import KIB

logger = logging.getLogger(__name__)

_PARTS = 8
_MOST_SEGMENTS = 64
# A mark is set at the first line that begins this far behind the mark before.
_MARK_BYTES = 64 * KIB
_MARK_LINES = 1024


class Block:
    """Consecutive lines as bytes, each with its line end."""

    def __init__(self, first_line: int, end_line: int, data: bytes) -> None:
        self.first_line = first_line
        self.end_line = end_line
        self.data = data

    @cached_property
    def lowered(self) -> bytes:
        """The data in lower case (of ASCII letters), of the same length."""
        return self.data.lower()

    def lines(self, first_line: int, end_line: int) -> list[bytes]:
        """Those of its lines that are in the range."""
        skip = max(first_line - self.first_line, 0)
        count = min(end_line, self.end_line) - self.first_line - skip
        if count <= 0:
            return []
        return self.data.split(b"\n", skip + count)[skip : skip + count]


class _Segment:
    """Consecutive lines in one file. Guarded by the lock of its store."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.first_line = 0
        self.end_line = 0
        self.size = 0
        self.mark_lines = array("Q")
        self.mark_offsets = array("Q")

    def grow(self, first_line: int, ends: list[int]) -> None:
        """Take in lines that end at these offsets behind its end."""
        if not self.mark_lines:
            self.first_line = self.end_line = first_line
            self._mark(first_line, 0)
        at = self._next_mark(ends)
        while at < len(ends):
            self._mark(self.end_line + at, self.size + (ends[at - 1] if at else 0))
            at = self._next_mark(ends)
        self.end_line += len(ends)
        self.size += ends[-1]

    def _mark(self, line: int, offset: int) -> None:
        self.mark_lines.append(line)
        self.mark_offsets.append(offset)

    def _next_mark(self, ends: list[int]) -> int:
        by_lines = self.mark_lines[-1] + _MARK_LINES - self.end_line
        target = self.mark_offsets[-1] + _MARK_BYTES - self.size
        by_bytes = bisect_left(ends, target) + 1 if target > 0 else 0
        return min(by_lines, by_bytes)


class _Place(NamedTuple):
    segment: _Segment
    start: int
    end: int
    first_line: int
    end_line: int


class LogStore:
    """Appends lines and finds them again by their numbers."""

    def __init__(self, file: Path, limit_bytes: int) -> None:
        self._file = file
        self._limit_bytes = limit_bytes
        self._segment_bytes = max(limit_bytes // _PARTS, 1)
        self._lock = threading.Lock()
        self._segments: list[_Segment] = []
        self._total = 0
        # Of the thread that appends.
        self._current: _Segment | None = None
        self._output: BinaryIO | None = None
        self._files = 0
        self._is_failing = False

    @property
    def total_lines(self) -> int:
        """Lines so far, with those that are no longer kept."""
        return self._total

    @property
    def index_bytes(self) -> int:
        """Memory that the index takes."""
        with self._lock:
            return sum(
                segment.mark_lines.itemsize * 2 * len(segment.mark_lines)
                for segment in self._segments
            )

    def append(self, lines: list[bytes]) -> int:
        """Write lines; returns the number of the first one. Never raises for the disk.

        Lines that the disk does not take have their numbers, but are not kept.
        """
        first = self._total + 1
        ends = list(accumulate(len(line) + 1 for line in lines))
        at = 0
        while at < len(lines):
            before = ends[at - 1] if at else 0
            room = self._room(ends[at] - before)
            to = max(bisect_right(ends, before + room, at), at + 1)
            self._write(lines[at:to], [end - before for end in ends[at:to]])
            at = to
        return first

    def close(self) -> None:
        """No more lines will come (thread that appends)."""
        if self._output is not None:
            with contextlib.suppress(OSError):
                self._output.close()
        self._output = None

    def block_from(self, line: int, marks: int = 1) -> Block | None:
        """The lines around `line`, or the first ones kept after it; None: there are none."""
        while True:
            with self._lock:
                place = self._place_from(line, marks)
            if place is None:
                return None
            if block := self._read(place):
                return block

    def block_before(self, line: int, marks: int = 1) -> Block | None:
        """The lines around the one before `line`, or the last ones kept before it."""
        while True:
            with self._lock:
                place = self._place_before(line, marks)
            if place is None:
                return None
            if block := self._read(place):
                return block

    def _place_from(self, line: int, marks: int) -> _Place | None:
        index = bisect_right(self._segments, line, key=lambda segment: segment.end_line)
        if index == len(self._segments):
            return None
        segment = self._segments[index]
        at = max(bisect_right(segment.mark_lines, line) - 1, 0)
        return _place(segment, at, at + marks)

    def _place_before(self, line: int, marks: int) -> _Place | None:
        index = bisect_left(self._segments, line, key=lambda segment: segment.first_line) - 1
        if index < 0:
            return None
        segment = self._segments[index]
        to = bisect_left(segment.mark_lines, line)
        return _place(segment, max(to - marks, 0), to)

    def _read(self, place: _Place) -> Block | None:
        """None where the file is gone: it was dropped or removed in the meantime."""
        size = place.end - place.start
        try:
            with place.segment.file.open("rb", buffering=0) as source:
                data = os.pread(source.fileno(), size, place.start)
        except FileNotFoundError:
            data = b""
        if len(data) == size:
            return Block(place.first_line, place.end_line, data)
        with self._lock:
            if place.segment in self._segments:
                self._segments.remove(place.segment)
        return None

    def _room(self, need: int) -> int:
        """Bytes that fit into the file that is written, which is a new one if need be."""
        current = self._current
        if current is not None and current.size:
            fits = current.size + need <= self._segment_bytes
            if fits and self._output is not None and current in self._segments:
                return self._segment_bytes - current.size
            self.close()
            self._current = None
        if self._current is None:
            self._make_room()
            name = f"{self._file.name}.{self._files}" if self._files else self._file.name
            self._current = _Segment(self._file.with_name(name))
            self._files += 1
        if self._output is None:
            try:
                self._output = self._current.file.open("wb", buffering=0)
            except OSError as error:
                self._note_failure(error)
        return self._segment_bytes

    def _make_room(self) -> None:
        dropped = []
        with self._lock:
            room = self._limit_bytes - self._segment_bytes
            while len(self._segments) > 1 and (
                sum(segment.size for segment in self._segments) > room
                or len(self._segments) >= _MOST_SEGMENTS
            ):
                dropped.append(self._segments.pop(1))
        for segment in dropped:
            with contextlib.suppress(OSError):
                segment.file.unlink(missing_ok=True)

    def _write(self, lines: list[bytes], ends: list[int]) -> None:
        is_written = self._current is not None and self._put(b"\n".join([*lines, b""]))
        with self._lock:
            if is_written and self._current is not None:
                self._current.grow(self._total + 1, ends)
                if self._current.size == ends[-1]:
                    self._segments.append(self._current)
            self._total += len(lines)

    def _put(self, data: bytes) -> bool:
        """Whether the disk took all of it. If not, the file is not written to again."""
        if self._output is None or self._current is None:
            return False
        try:
            if self._output.write(data) == len(data):
                self._is_failing = False
                return True
            self._note_failure("no space left")
        except OSError as error:
            self._note_failure(error)
        with contextlib.suppress(OSError):
            os.ftruncate(self._output.fileno(), self._current.size)
        self.close()
        return False

    def _note_failure(self, error: OSError | str) -> None:
        if not self._is_failing:
            logger.error("engine.log_unwritable file=%s error=%s", self._file.name, error)
        self._is_failing = True


def _place(segment: _Segment, at: int, to: int) -> _Place:
    is_last = to >= len(segment.mark_lines)
    return _Place(
        segment,
        segment.mark_offsets[at],
        segment.size if is_last else segment.mark_offsets[to],
        segment.mark_lines[at],
        segment.end_line if is_last else segment.mark_lines[to],
    )
