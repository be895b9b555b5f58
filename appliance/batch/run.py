"""One open batch in memory: what is left of it, and what waits to be written."""

import asyncio
import errno
import os
import time
from collections import deque
from pathlib import Path

import msgspec

from appliance.batch.index import LineIndex
from appliance.batch.journal import Done, Journal, JournalFile, result_id
from appliance.batch.lines import request_of
from appliance.batch.state import counted
from appliance.batch.usage import UsageCounter
from appliance.protocol.batches import Batch, BatchProgress, BatchUsage
from appliance.store.batches import StoredBatch

_RATE_WINDOW_S = 30.0
_PIECE_BYTES = 1024 * 1024


class Outbox:
    """Results that wait to be written to one file."""

    def __init__(self, file: JournalFile) -> None:
        self._file = file
        self._lines: list[bytes] = []
        self.size = 0
        """Bytes."""

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, line: bytes) -> None:
        """Behind the others. Event loop only."""
        self._lines.append(line)
        self.size += len(line)

    def write(self, count: int) -> None:
        """Put the first ones on the disk. Blocks, changes nothing here; raises OSError."""
        self._file.append(b"".join(self._lines[:count]))

    def forget(self, count: int) -> None:
        """The first ones are on the disk. Event loop only."""
        self.size -= sum(len(line) for line in self._lines[:count])
        del self._lines[:count]


class BatchRun:
    """Owner: the runner. Event loop only, but for what says that it blocks."""

    def __init__(self, stored: StoredBatch, directory: Path, deadline: float = 0.0) -> None:
        self.stored = stored
        self.deadline = deadline
        """When its window is over, by the steady clock."""
        self.journal = Journal(directory, stored.batch.id)
        self.directory = directory
        self.changed = asyncio.Event()
        self.index = LineIndex()
        self.done = Done(bytearray())
        self.usage = UsageCounter()
        self.pending: dict[str, deque[int]] = {}
        self.suspects: dict[str, deque[int]] = {}
        """Lines in whose company an engine died: each is tried alone."""
        self.attempts: dict[int, int] = {}
        self.in_flight: set[asyncio.Task[None]] = set()
        self.problem: str | None = None
        """Why no engine answers."""
        self.trouble: str | None = None
        """Why nothing can be written, or why the server fails to handle it."""
        self.is_stopping = False
        """No further lines: it is cancelled, late, or the server stops."""
        self._output = Outbox(self.journal.output)
        self._errors = Outbox(self.journal.errors)
        self._rates: deque[tuple[float, int, int]] = deque()
        self._descriptor: int | None = None

    @property
    def id(self) -> str:
        """Of the batch."""
        return self.stored.batch.id

    @property
    def batch(self) -> Batch:
        """As clients see it."""
        return self.stored.batch

    @batch.setter
    def batch(self, batch: Batch) -> None:
        self.stored = msgspec.structs.replace(self.stored, batch=batch)
        self.changed.set()

    @property
    def left(self) -> int:
        """Lines without a result that was written or waits to be."""
        return self.done.lines.count(0)

    @property
    def has_unwritten(self) -> bool:
        """Whether results are in memory alone."""
        return bool(len(self._output) or len(self._errors))

    @property
    def unwritten_bytes(self) -> int:
        """Size of those."""
        return self._output.size + self._errors.size

    @property
    def may_feed(self) -> bool:
        """Whether its lines may go to engines now."""
        return not (self.is_stopping or self.stored.is_paused or self.trouble)

    @property
    def is_open(self) -> bool:
        """Whether it was taken up."""
        return self._descriptor is not None

    def open(self, input_file: Path, index: LineIndex) -> None:
        """Take up work: what has no result yet is pending. Blocks; raises OSError.

        All of it or nothing; may be done again after a failure.
        """
        self.close()
        descriptor = os.open(input_file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            done, usage = self.journal.recover(len(index))
        except OSError:
            os.close(descriptor)
            raise
        pending: dict[str, deque[int]] = {}
        for number, model_number in enumerate(index.model_numbers):
            if not done.lines[number]:
                pending.setdefault(index.models[model_number], deque()).append(number)
        self.done, self.usage = done, UsageCounter(usage)
        self.index, self.pending = index, pending
        self._descriptor = descriptor

    def close(self) -> None:
        """Give the files back. Blocks."""
        self.journal.close()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def read(self, number: int) -> tuple[str, bytes]:
        """custom_id and body of a line. Blocks; raises OSError and ValueError."""
        descriptor = self._descriptor
        if descriptor is None:
            raise OSError(errno.EBADF, "the batch is over")
        return request_of(self.index.read(descriptor, number))

    def model_of(self, number: int) -> str:
        """The model that a line wants."""
        return self.index.models[self.index.model_numbers[number]]

    def put_back(self, number: int, *, is_suspect: bool = False) -> None:
        """It will be tried again."""
        queues = self.suspects if is_suspect else self.pending
        queues.setdefault(self.model_of(number), deque()).appendleft(number)
        self.stored = msgspec.structs.replace(self.stored, retried=self.stored.retried + 1)

    def add_result(
        self, number: int, custom_id: str, status: int, body: bytes, *, is_success: bool
    ) -> None:
        """A line was answered, with JSON in one line; it counts once it is written."""
        line = b'{"id":"%b","custom_id":%b,"response":{"status_code":%d,"request_id":"%b",' % (
            (identity := result_id(self.id, number).encode()),
            msgspec.json.encode(custom_id),
            status,
            identity,
        )
        line += b'"body":' + body + b'},"error":null}\n'
        self.done.lines[number] = 1
        before = self.usage.tokens
        if is_success:
            self._output.add(line)
            self.usage.add(body)
        else:
            self._errors.add(line)
        self._rates.append((time.monotonic(), 1, self.usage.tokens - before))
        self._forget_rates()

    async def write(self) -> None:
        """Put what waits on the disk; then it counts, and the batch shows it. Raises OSError."""
        # Lines that come meanwhile wait for the next time, and so do their tokens.
        completed, failed, usage = len(self._output), len(self._errors), self.usage.total()
        if completed:
            await asyncio.to_thread(self._output.write, completed)
            self._output.forget(completed)
            self.done.completed += completed
        if failed:
            await asyncio.to_thread(self._errors.write, failed)
            self._errors.forget(failed)
            self.done.failed += failed
        self._show(usage)

    def recover(self) -> None:
        """Find what is on the disk, where the input cannot be read any more. Blocks."""
        self.done, usage = self.journal.recover(self.batch.request_counts.total)
        self.usage = UsageCounter(usage)

    def count(self) -> None:
        """The batch shows what was on the disk when it was opened."""
        self._show(self.usage.total())

    def _show(self, usage: BatchUsage) -> None:
        done = self.done
        self.batch = counted(self.batch, len(done.lines), done.completed, done.failed, usage)

    def write_rest(self, code: str, message: str) -> None:
        """Lines that never ran get their error line. Blocks; raises OSError."""
        lines: list[bytes] = []
        numbers: list[int] = []
        size = 0
        for number in [at for at, is_done in enumerate(self.done.lines) if not is_done]:
            custom_id, _ = self.read(number)
            line = _never_run(result_id(self.id, number), custom_id, code, message)
            lines.append(line)
            numbers.append(number)
            size += len(line)
            if size >= _PIECE_BYTES:
                self._write_errors(lines, numbers)
                size = 0
        self._write_errors(lines, numbers)

    def _write_errors(self, lines: list[bytes], numbers: list[int]) -> None:
        if lines:
            self.journal.errors.append(b"".join(lines))
            for number in numbers:
                self.done.lines[number] = 1
        lines.clear()
        numbers.clear()

    def progress(self) -> BatchProgress:
        """For the owner."""
        now = time.monotonic()
        self._forget_rates()
        lines_per_s = tokens_per_s = eta_s = None
        if self._rates:
            over_s = max(now - self._rates[0][0], 1.0)
            lines_per_s = round(sum(each[1] for each in self._rates) / over_s, 2)
            tokens_per_s = round(sum(each[2] for each in self._rates) / over_s, 1)
            eta_s = round(self.left / lines_per_s, 1) if lines_per_s else None
        return BatchProgress(
            batch=self.batch,
            models=self.index.models or self.stored.models,
            is_paused=self.stored.is_paused,
            problem=self.trouble or self.problem,
            in_flight=len(self.in_flight),
            retried=self.stored.retried,
            lines_per_s=lines_per_s,
            tokens_per_s=tokens_per_s,
            eta_s=eta_s,
            waited_s=round(self.stored.waited_s, 1),
        )

    def _forget_rates(self) -> None:
        while self._rates and self._rates[0][0] < time.monotonic() - _RATE_WINDOW_S:
            self._rates.popleft()


def _never_run(identity: str, custom_id: str, code: str, message: str) -> bytes:
    error = {"code": code, "message": message}
    result = {"id": identity, "custom_id": custom_id, "response": None, "error": error}
    return msgspec.json.encode(result) + b"\n"
