"""Results of a batch, appended to files that survive any end of the process.

A result counts when it is on the disk (fsync). After a crash the torn end of a file is cut off, and
what is left says which lines are done: each result's id holds the number of its line.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from appliance.batch.usage import UsageCounter
from appliance.protocol.batches import BatchUsage

_PIECE_BYTES = 1024 * 1024
_DIGITS = 6


class _Answer(msgspec.Struct):
    status_code: int = 0
    body: msgspec.Raw = msgspec.Raw(b"null")


class _Result(msgspec.Struct):
    id: str
    custom_id: str
    response: _Answer | None


_decode_result = msgspec.json.Decoder(_Result).decode


def result_id(batch_id: str, number: int) -> str:
    """The id of a line's result; unique, and the line can be told from it."""
    return f"batch_req_{batch_id.removeprefix('batch_')}{number:0{_DIGITS}x}"


def line_number(given: str) -> int:
    """The line that a result's id stands for. Raises ValueError."""
    return int(given[-_DIGITS:], 16)


@dataclass
class Done:
    """What the files of a batch hold."""

    lines: bytearray
    """1 for each line that has a result."""
    completed: int = 0
    failed: int = 0


class JournalFile:
    """One file that grows by whole lines. All methods block."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._descriptor: int | None = None
        self.size = 0

    def repair(self) -> Iterator[tuple[int, bytes]]:
        """Number and body's bytes of each result that is whole; the rest of the file is cut off.

        To be read to its end before anything is appended. Raises OSError.
        """
        self.size = 0
        if not self._file.exists():
            return
        with self._file.open("r+b") as file:
            for line in file:
                found = _whole(line)
                if found is None:
                    break
                self.size += len(line)
                yield found
            file.truncate(self.size)
            os.fsync(file.fileno())

    def append(self, lines: bytes) -> None:
        """Add whole lines and wait until they are on the disk.

        If that fails, nothing of them is left in the file. Raises OSError.
        """
        if self._descriptor is None:
            is_new = not self._file.exists()
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
            self._descriptor = os.open(self._file, flags, 0o600)
            if is_new:
                sync_directory(self._file.parent)
        try:
            view, at = memoryview(lines), self.size
            while view:
                written = os.pwrite(self._descriptor, view, at)
                view, at = view[written:], at + written
            os.fdatasync(self._descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self.size)
            raise
        self.size = at

    def close(self) -> None:
        """Append nothing any more."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class Journal:
    """Output and error file of one batch. All methods block."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.output = JournalFile(directory / "output.jsonl")
        self.errors = JournalFile(directory / "errors.jsonl")

    def recover(self, lines: int) -> tuple[Done, BatchUsage]:
        """What is done already, after a cut of what is not whole. Raises OSError."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        done, usage = Done(bytearray(lines)), UsageCounter()
        for number, body in self.output.repair():
            if number < lines and not done.lines[number]:
                done.lines[number] = 1
                done.completed += 1
                usage.add(body)
        for number, _ in self.errors.repair():
            if number < lines and not done.lines[number]:
                done.lines[number] = 1
                done.failed += 1
        return done, usage.total()

    def close(self) -> None:
        """Append nothing any more."""
        self.output.close()
        self.errors.close()


def sync_directory(directory: Path) -> None:
    """A new name in a directory survives a power cut only after this (fsync(2))."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _whole(line: bytes) -> tuple[int, bytes] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        result = _decode_result(line)
        body = b"" if result.response is None else bytes(result.response.body)
        return line_number(result.id), body
    except (msgspec.MsgspecError, ValueError):
        return None
