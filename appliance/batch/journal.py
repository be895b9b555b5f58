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
    return f"{_id_prefix(batch_id)}{number:0{_DIGITS}x}"


def line_number(batch_id: str, given: str) -> int:
    """The line of that batch that a result's id stands for. Raises ValueError."""
    number = int(given.removeprefix(_id_prefix(batch_id)), 16)
    if number < 0 or result_id(batch_id, number) != given:
        raise ValueError(given)
    return number


def _id_prefix(batch_id: str) -> str:
    return f"batch_req_{batch_id.removeprefix('batch_')}"


@dataclass
class Done:
    """What the files of a batch hold."""

    lines: bytearray
    """1 for each line that has a result."""
    completed: int = 0
    failed: int = 0
    """Lines that an engine refused; those that never ran are in the error file, but not here."""


@dataclass(frozen=True)
class Result:
    """A whole result, as it stands in a file."""

    number: int
    body: bytes
    """Empty if the line never ran."""
    was_tried: bool


class JournalFile:
    """One file that grows by whole lines. All methods block."""

    def __init__(self, file: Path, batch_id: str) -> None:
        self._file = file
        self._batch_id = batch_id
        self._descriptor: int | None = None
        self.size = 0

    def repair(self) -> Iterator[Result]:
        """Each result that is whole; the rest of the file is cut off.

        To be read to its end before anything is appended. Raises OSError.
        """
        self.close()
        self.size = 0
        if not self._file.exists():
            return
        with self._file.open("r+b") as file:
            for line in file:
                found = read_result(self._batch_id, line)
                if found is None:
                    break
                self.size += len(line)
                yield found
            file.truncate(self.size)
            os.fsync(file.fileno())

    def append(self, lines: bytes) -> None:
        """Add whole lines and wait until they are on the disk.

        If that fails, nothing of them counts. Raises OSError.
        """
        descriptor = self._open()
        try:
            view, at = memoryview(lines), self.size
            while view:
                written = os.pwrite(descriptor, view, at)
                view, at = view[written:], at + written
            os.fdatasync(descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, self.size)
            raise
        self.size = at

    def close(self) -> None:
        """Append nothing for now."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> int:
        if self._descriptor is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
            descriptor = os.open(self._file, flags, 0o600)
            try:
                sync_directory(self._file.parent)
            except OSError:
                os.close(descriptor)
                raise
            self._descriptor = descriptor
        return self._descriptor


class Journal:
    """Output and error file of one batch. All methods block."""

    def __init__(self, directory: Path, batch_id: str) -> None:
        self._directory = directory
        self.output = JournalFile(directory / "output.jsonl", batch_id)
        self.errors = JournalFile(directory / "errors.jsonl", batch_id)

    def recover(self, lines: int) -> tuple[Done, BatchUsage]:
        """What is done already, after a cut of what is not whole. Raises OSError."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        sync_directory(self._directory.parent)
        done, usage = Done(bytearray(lines)), UsageCounter()
        for result in self.output.repair():
            if result.number < lines and not done.lines[result.number]:
                done.lines[result.number] = 1
                done.completed += 1
                usage.add(result.body)
        for result in self.errors.repair():
            if result.number < lines and not done.lines[result.number]:
                done.lines[result.number] = 1
                done.failed += result.was_tried
        return done, usage.total()

    def close(self) -> None:
        """Append nothing any more."""
        self.output.close()
        self.errors.close()


def read_result(batch_id: str, line: bytes) -> Result | None:
    """A result of that batch from its line; None if it is not whole."""
    if not line.endswith(b"\n"):
        return None
    try:
        line.decode()
        result = _decode_result(line)
        number = line_number(batch_id, result.id)
    except (ValueError, RecursionError):
        return None
    answer = result.response
    body = b"" if answer is None else bytes(answer.body)
    return Result(number, body, was_tried=answer is not None)


def sync_directory(directory: Path) -> None:
    """A new name in a directory survives a power cut only after this (fsync(2))."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
