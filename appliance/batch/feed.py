"""Feeds one model with the lines of all batches that want it, a window at a time."""

import asyncio
import heapq
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count

import msgspec

from appliance.batch.metrics import engine_load
from appliance.batch.request import Fate, Outcome, attempt
from appliance.batch.run import BatchRun
from appliance.batch.trial import Trial
from appliance.batch.window import Window
from appliance.engine.connection import EngineConnections
from appliance.errors import ApplianceError
from appliance.gateway.errors import encode_error, openai_error, unexpected
from appliance.slots.scheduler import SlotScheduler
from appliance.store.batches import StoredBatch

logger = logging.getLogger(__name__)

_LOOK_S = 0.5
_MOST_ATTEMPTS = 3
_READ_AT_ONCE = 64
_MOST_READ_BYTES = 4 * 1024**2
_MOST_UNWRITTEN_BYTES = 8 * 1024**2
_MOST_IN_FLIGHT_BYTES = 32 * 1024**2
_LONGEST_PAUSE_S = 30.0
_SERVER_ERROR_PAUSE_S = 1.0
_BROKEN_AT_MOST = 16

_Item = tuple[BatchRun, int, str, bytes]


class ModelFeed:
    """Its task runs while lines want the model; a line that failed is tried again in here."""

    def __init__(
        self,
        model: str,
        slots: SlotScheduler,
        runs: Callable[[], Sequence[BatchRun]],
        most: int,
    ) -> None:
        self._model = model
        self._slots = slots
        self._runs = runs
        self._window = Window(most)
        self._looking: asyncio.Task[None] | None = None
        self._in_flight_bytes = 0
        self._ready_lines: deque[_Item] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._paused_until = 0.0
        self._is_alone = False
        self._trial = Trial()
        self._turn = 0
        self._broken_in_row = 0
        self._later: list[tuple[float, int, BatchRun, int]] = []
        """Lines to be tried again at a time; those of the same time by their ticket."""
        self._ticket = count()

    def wake(self) -> None:
        """Something may have changed."""
        self._wake.set()

    async def run(self) -> None:
        """Until no line wants the model."""
        looked_at = 0.0
        try:
            while True:
                self._wake.clear()
                await self._fill()
                if not (self._tasks or self._ready_lines or self._later or self._has_lines()):
                    return
                now = time.monotonic()
                if now - looked_at >= _LOOK_S:
                    looked_at = now
                    self._begin_look()
                try:
                    async with asyncio.timeout(_LOOK_S):
                        await self._wake.wait()
                except TimeoutError:
                    continue
        finally:
            waiting = [(run, number) for run, number, _, _ in self._ready_lines]
            waiting += [(run, number) for _, _, run, number in self._later]
            for run, number in waiting:
                run.pending.setdefault(self._model, deque()).appendleft(number)
            looking = [self._looking] if self._looking is not None else []
            for task in (*self._tasks, *looking):
                task.cancel()
            await asyncio.gather(*self._tasks, *looking, return_exceptions=True)

    async def _fill(self) -> None:
        """Start lines until the window is full."""
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            _, _, run, number = heapq.heappop(self._later)
            run.put_back(number)
        if now < self._paused_until:
            return
        while self._may_start():
            item = await self._next()
            if item is None:
                return
            run = item[0]
            if not run.may_feed:
                run.pending.setdefault(self._model, deque()).appendleft(item[1])
                continue
            task = asyncio.create_task(self._serve(*item))
            self._tasks.add(task)
            self._in_flight_bytes += len(item[3])
            run.in_flight.add(task)
            task.add_done_callback(run.in_flight.discard)
            task.add_done_callback(partial(self._over, run, item[1], len(item[3])))

    def _may_start(self) -> bool:
        """Large lines (pictures) are limited by their bytes; one is always worked on."""
        has_room = self._in_flight_bytes < _MOST_IN_FLIGHT_BYTES or not self._tasks
        return has_room and len(self._tasks) < self._allowed()

    def _allowed(self) -> int:
        """One request is enough to ask for an engine, and one is enough to try a suspect."""
        is_ready = self._slots.is_ready(self._model)
        if self._is_alone or self._suspects() or not is_ready:
            return 1
        return self._window.size

    def _over(self, run: BatchRun, number: int, size: int, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._in_flight_bytes -= size
        if task.cancelled():
            run.pending.setdefault(self._model, deque()).appendleft(number)
        elif (error := task.exception()) is not None:
            logger.error("batch.line_failed model=%s", self._model, exc_info=error)
            run.put_back(number)
            self._paused_until = time.monotonic() + _SERVER_ERROR_PAUSE_S
        self._wake.set()

    def _suspects(self) -> list[BatchRun]:
        return [run for run in self._runs() if run.may_feed and run.suspects.get(self._model)]

    def _has_lines(self) -> bool:
        return any(
            run.pending.get(self._model) or run.suspects.get(self._model)
            for run in self._runs()
            if run.may_feed
        )

    async def _next(self) -> _Item | None:
        self._is_alone = False
        suspects = self._suspects()
        if suspects and self._tasks:
            return None
        self._is_alone = bool(suspects)
        if self._trial.needs_proof and not self._ready_lines:
            await self._read_ahead()
        for run in suspects:
            if self._trial.needs_proof and self._ready_lines:
                break
            queue = run.suspects[self._model]
            number = queue.pop() if self._trial.needs_proof else queue.popleft()
            items, failed = await asyncio.to_thread(_read_all, [(run, number)])
            if failed:
                run.put_back(number, is_suspect=True)
                run.trouble = f"its file cannot be read: {failed[0][2]}"
                return None
            return items[0]
        if not self._ready_lines:
            await self._read_ahead()
        return self._ready_lines.popleft() if self._ready_lines else None

    async def _read_ahead(self) -> None:
        """The next lines, in turn from each batch: none waits for another's last line."""
        chosen: list[tuple[BatchRun, int]] = []
        runs = [
            run
            for run in self._runs()
            if run.may_feed
            and run.pending.get(self._model)
            and run.unwritten_bytes < _MOST_UNWRITTEN_BYTES
        ]
        size = 0
        while runs and len(chosen) < _READ_AT_ONCE and size < _MOST_READ_BYTES:
            self._turn += 1
            run = runs[self._turn % len(runs)]
            number = run.pending[self._model].popleft()
            size += run.index.lengths[number]
            chosen.append((run, number))
            runs = [each for each in runs if each.pending[self._model]]
        if chosen:
            items, failed = await asyncio.to_thread(_read_all, chosen)
            self._ready_lines.extend(items)
            for run, number, why in failed:
                # One batch's file does not hold up the others.
                run.pending[self._model].append(number)
                run.trouble = f"its file cannot be read: {why}"

    async def _serve(self, run: BatchRun, number: int, custom_id: str, body: bytes) -> None:
        began = time.monotonic()
        is_cold = len(self._tasks) == 1 and not self._slots.is_ready(self._model)
        is_suspect = self._is_alone
        try:
            outcome = await attempt(
                self._slots,
                self._model,
                run.batch.endpoint,
                body,
                f"{run.id}-{number}".encode(),
            )
        except Exception as error:  # noqa: BLE001 - a line that breaks us must not do so for ever
            outcome = Outcome(Fate.BROKEN, 500, encode_error(openai_error(unexpected(error))))
        if is_cold:
            waited_s = run.stored.waited_s + time.monotonic() - began
            run.stored = _with_wait(run.stored, waited_s)
        self._settle(run, number, custom_id, outcome, is_suspect=is_suspect)

    def _settle(
        self, run: BatchRun, number: int, custom_id: str, outcome: Outcome, *, is_suspect: bool
    ) -> None:
        match outcome.fate:
            case Fate.ANSWERED | Fate.REFUSED:
                is_success = outcome.fate is Fate.ANSWERED
                run.problem = None
                self._broken_in_row = 0
                if is_success and (deaths := self._trial.answered()):
                    self._slots.batches.excuse(self._model, deaths)
                run.add_result(
                    number, custom_id, outcome.status, outcome.body, is_success=is_success
                )
            case Fate.AGAIN:
                run.put_back(number)
            case Fate.NO_ENGINE:
                assert outcome.error is not None
                run.put_back(number)
                self._pause(run, outcome.error)
            case Fate.BROKEN:
                # Others may well be answered: it waits alone, and only if none is, all wait.
                self._broken_in_row += 1
                if self._broken_in_row % _BROKEN_AT_MOST == 0:
                    doubled = 2 ** (self._broken_in_row // _BROKEN_AT_MOST - 1)
                    pause_s = min(_SERVER_ERROR_PAUSE_S * doubled, _LONGEST_PAUSE_S)
                    self._paused_until = time.monotonic() + pause_s
                attempts = run.attempts[number] = run.attempts.get(number, 0) + 1
                if attempts >= _MOST_ATTEMPTS:
                    run.add_result(
                        number, custom_id, outcome.status, outcome.body, is_success=False
                    )
                else:
                    due = time.monotonic() + _SERVER_ERROR_PAUSE_S * attempts
                    heapq.heappush(self._later, (due, next(self._ticket), run, number))
            case Fate.SUSPECT:
                self._trial.died(outcome.engine_id, alone=is_suspect)
                attempts = run.attempts[number] = run.attempts.get(number, 0) + 1
                if attempts >= _MOST_ATTEMPTS and is_suspect:
                    self._trial.given_up()
                    run.add_result(
                        number, custom_id, outcome.status, outcome.body, is_success=False
                    )
                else:
                    run.put_back(number, is_suspect=True)
                    self._paused_until = time.monotonic() + _SERVER_ERROR_PAUSE_S * attempts
        run.changed.set()

    def _pause(self, run: BatchRun, error: ApplianceError) -> None:
        """There is no engine for it now; the reason is shown."""
        run.problem = f"{self._model}: {error.message}"
        pause_s = min(getattr(error, "retry_after_s", 1.0), _LONGEST_PAUSE_S)
        self._paused_until = time.monotonic() + pause_s

    def _begin_look(self) -> None:
        """Beside the feeding: an engine with much to do takes its time to answer."""
        connections = self._slots.connections(self._model)
        if connections is None:
            self._window.restart()
        elif self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look(connections))

    async def _look(self, connections: EngineConnections) -> None:
        """At the engine's own figures, and at the people beside."""
        load = await engine_load(connections)
        self._window.look(load, people=self._slots.has_people(self._model))


def _read_all(
    chosen: list[tuple[BatchRun, int]],
) -> tuple[list[_Item], list[tuple[BatchRun, int, str]]]:
    """What was read, and what could not be. Blocks."""
    items: list[_Item] = []
    failed: list[tuple[BatchRun, int, str]] = []
    for run, number in chosen:
        try:
            items.append((run, number, *run.read(number)))
        except (OSError, ValueError) as error:
            failed.append((run, number, str(error)))
    return items, failed


def _with_wait(stored: StoredBatch, waited_s: float) -> StoredBatch:
    return msgspec.structs.replace(stored, waited_s=waited_s)
