"""One open batch in memory: what is left of it, and what waits to be written."""

import asyncio
import os
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path

import msgspec

from appliance.batch.index import LineIndex
from appliance.batch.journal import Done, Journal, result_id
from appliance.batch.lines import request_of
from appliance.batch.state import counted
from appliance.batch.usage import UsageCounter
from appliance.protocol.batches import Batch, BatchProgress
from appliance.store.batches import StoredBatch

_RATE_WINDOW_S = 30.0


class BatchRun:
    """Owner: the runner. Event loop only, but for what says that it blocks."""

    def __init__(self, stored: StoredBatch, directory: Path) -> None:
        self.stored = stored
        self.journal = Journal(directory)
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
        """Why nothing moves."""
        self.is_stopping = False
        """No further lines: it is cancelled, late, or the server stops."""
        self.is_short_of_disk = False
        self._output: list[bytes] = []
        self._errors: list[bytes] = []
        self._unwritten = Done(bytearray())
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
        return bool(self._output or self._errors)

    @property
    def unwritten_bytes(self) -> int:
        """Size of those."""
        return sum(len(each) for each in (*self._output, *self._errors))

    @property
    def may_feed(self) -> bool:
        """Whether its lines may go to engines now."""
        return not (self.is_stopping or self.stored.is_paused or self.is_short_of_disk)

    def open(self, input_file: Path, index: LineIndex) -> None:
        """Take up work: what has no result yet is pending. Blocks; raises OSError."""
        self.index = index
        self._descriptor = os.open(input_file, os.O_RDONLY | os.O_CLOEXEC)
        self.done, usage = self.journal.recover(len(index))
        self.usage = UsageCounter(usage)
        for number, model_number in enumerate(index.model_numbers):
            if not self.done.lines[number]:
                model = index.models[model_number]
                self.pending.setdefault(model, deque()).append(number)

    def close(self) -> None:
        """Give the files back. Blocks."""
        self.journal.close()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def read(self, number: int) -> tuple[str, bytes]:
        """custom_id and body of a line. Blocks; raises OSError and MsgspecError."""
        assert self._descriptor is not None
        return request_of(self.index.read(self._descriptor, number))

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
        """A line was answered; it counts once it is written."""
        line = b'{"id":"%b","custom_id":%b,"response":{"status_code":%d,"request_id":"%b",' % (
            (identity := result_id(self.id, number).encode()),
            msgspec.json.encode(custom_id),
            status,
            identity,
        )
        line += b'"body":' + body + b'},"error":null}\n'
        self.done.lines[number] = 1
        if is_success:
            self._output.append(line)
            self._unwritten.completed += 1
            before = self.usage.tokens
            self.usage.add(body)
            self._rates.append((time.monotonic(), 1, self.usage.tokens - before))
        else:
            self._errors.append(line)
            self._unwritten.failed += 1
            self._rates.append((time.monotonic(), 1, 0))

    def write(self) -> None:
        """Put what is in memory on the disk; then it counts. Blocks; raises OSError."""
        output, errors = self._output, self._errors
        completed, failed = self._unwritten.completed, self._unwritten.failed
        if output:
            lines = len(output)
            self.journal.output.append(b"".join(output[:lines]))
            del output[:lines]
            self.done.completed += completed
            self._unwritten.completed -= completed
        if errors:
            lines = len(errors)
            self.journal.errors.append(b"".join(errors[:lines]))
            del errors[:lines]
            self.done.failed += failed
            self._unwritten.failed -= failed

    def count(self) -> None:
        """The batch shows what is on the disk."""
        usage = self.usage.total()
        self.batch = counted(self.batch, self.done.completed, self.done.failed, usage)

    def write_rest(self, numbers: Iterable[int], code: str, message: str) -> None:
        """Lines that never ran get their error line. Blocks; raises OSError."""
        lines = []
        for number in numbers:
            custom_id, _ = self.read(number)
            error = {"code": code, "message": message}
            result = {
                "id": result_id(self.id, number),
                "custom_id": custom_id,
                "response": None,
                "error": error,
            }
            lines.append(msgspec.json.encode(result) + b"\n")
        if lines:
            self.journal.errors.append(b"".join(lines))
            for number in numbers:
                self.done.lines[number] = 1

    def progress(self) -> BatchProgress:
        """For the owner."""
        now = time.monotonic()
        while self._rates and self._rates[0][0] < now - _RATE_WINDOW_S:
            self._rates.popleft()
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
            problem=self.problem,
            in_flight=len(self.in_flight),
            retried=self.stored.retried,
            lines_per_s=lines_per_s,
            tokens_per_s=tokens_per_s,
            eta_s=eta_s,
            waited_s=round(self.stored.waited_s, 1),
        )
