"""Drives every open batch from its file to its results, through any number of restarts."""

import asyncio
import contextlib
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from appliance.batch import state
from appliance.batch.feed import ModelFeed
from appliance.batch.files import FileStore
from appliance.batch.index import Limits, LineIndex, index_file
from appliance.batch.lines import ENDPOINTS
from appliance.batch.run import BatchRun
from appliance.protocol.batches import BatchError, BatchStatus
from appliance.protocol.models import Task
from appliance.slots.scheduler import SlotScheduler
from appliance.store.batches import StoredBatch, open_batches, put_batch
from appliance.store.database import Database

logger = logging.getLogger(__name__)

_WRITE_EVERY_S = 0.25
_STORE_EVERY_S = 5.0
_GRACE_S = 10.0
_DISK_PAUSE_S = 2.0
_REST_AT_ONCE = 500


class BatchRunner:
    """Owner of all open batches."""

    def __init__(
        self,
        *,
        database: Database,
        files: FileStore,
        slots: SlotScheduler,
        directory: Path,
        task_of: Callable[[str], Task | None],
        limits: Limits,
        concurrency: int,
    ) -> None:
        self._database = database
        self._files = files
        self._slots = slots
        self._directory = directory
        self._task_of = task_of
        self._limits = limits
        self._concurrency = concurrency
        self._feeds: dict[str, tuple[ModelFeed, asyncio.Task[None]]] = {}
        self._drives: set[asyncio.Task[None]] = set()
        self._is_closing = False
        self.runs: dict[str, BatchRun] = {}
        """Those that are open, oldest first."""

    async def start(self) -> None:
        """Go on with what the last server left."""
        await asyncio.to_thread(self._directory.mkdir, parents=True, exist_ok=True, mode=0o700)
        for stored in await self._database.read(open_batches):
            self.add(stored)

    async def stop(self) -> None:
        """Feed nothing any more; what was answered is written."""
        self._is_closing = True
        for run in self.runs.values():
            run.is_stopping = True
        for _, task in self._feeds.values():
            task.cancel()
        await asyncio.gather(*(task for _, task in self._feeds.values()), return_exceptions=True)
        for run in self.runs.values():
            run.changed.set()
        await asyncio.gather(*self._drives, return_exceptions=True)

    def add(self, stored: StoredBatch) -> BatchRun:
        """Take a batch up."""
        run = BatchRun(stored, self._directory / stored.batch.id)
        self.runs[run.id] = run
        task = asyncio.create_task(self._drive(run), name=f"batch {run.id}")
        self._drives.add(task)
        task.add_done_callback(self._drives.discard)
        return run

    async def store(self, run: BatchRun) -> None:
        """The store knows it as it is now."""
        stored = run.stored
        await self._database.write(lambda: put_batch(stored))

    def wake(self) -> None:
        """Lines may have become free to go."""
        wanted = {
            model
            for run in self.runs.values()
            if run.may_feed
            for queues in (run.pending, run.suspects)
            for model, numbers in queues.items()
            if numbers
        }
        for model in wanted:
            if model not in self._feeds and not self._is_closing:
                feed = ModelFeed(
                    model, self._slots, lambda: list(self.runs.values()), self._concurrency
                )
                task = asyncio.create_task(self._feed(model, feed), name=f"feed {model}")
                self._feeds[model] = (feed, task)
            elif model in self._feeds:
                self._feeds[model][0].wake()

    async def _feed(self, model: str, feed: ModelFeed) -> None:
        try:
            await feed.run()
        except Exception:
            logger.exception("batch.feed_failed model=%s", model)
            await asyncio.sleep(1.0)
        finally:
            del self._feeds[model]
            if not self._is_closing:
                self.wake()

    async def _drive(self, run: BatchRun) -> None:
        while True:
            try:
                await self._take_through(run)
                break
            except OSError as error:
                # A full or broken disk: nothing is lost, it goes on when it can.
                run.problem = f"the disk fails: {error.strerror}"
                logger.warning("batch.disk id=%s error=%s", run.id, error)
                if self._is_closing:
                    break
                await asyncio.sleep(_DISK_PAUSE_S)
            except Exception:
                logger.exception("batch.failed id=%s", run.id)
                run.problem = "the server failed to handle it; its log says more"
                break
        await asyncio.to_thread(run.close)
        if run.batch.status.is_final:
            self.runs.pop(run.id, None)

    async def _take_through(self, run: BatchRun) -> None:
        """All that is left to do; after a failure it is begun again."""
        if run.batch.status is BatchStatus.VALIDATING:
            await self._validate(run)
        if run.batch.status.is_final:
            return
        if run.stored.has_all_results:
            await self._keep_results(run)
            return
        if not len(run.index):
            await self._open(run)
        if run.batch.status is BatchStatus.IN_PROGRESS:
            await self._work(run)
        if self._is_closing:
            return
        await self._finish(run)

    async def _index(self, run: BatchRun) -> LineIndex | list[BatchError]:
        file = self._files.path(run.batch.input_file_id)
        try:
            return await asyncio.to_thread(
                index_file, file, run.batch.endpoint, self._task_of, self._limits
            )
        except FileNotFoundError:
            message = f"Cannot find file {run.batch.input_file_id}."
            return [BatchError(code="invalid_request", message=message, param="file_id")]

    async def _validate(self, run: BatchRun) -> None:
        found = await self._index(run)
        now = int(time.time())
        if run.batch.status is not BatchStatus.VALIDATING:
            return
        if isinstance(found, list):
            run.batch = state.failed(run.batch, found, now)
        else:
            file = self._files.path(run.batch.input_file_id)
            await asyncio.to_thread(run.open, file, found)
            run.stored = msgspec.structs.replace(run.stored, models=found.models)
            run.batch = state.started(run.batch, len(found), found.models, now)
        await self.store(run)

    async def _open(self, run: BatchRun) -> None:
        """After a start of the server; what was sound once is not judged again."""
        file = self._files.path(run.batch.input_file_id)
        anything = Limits(lines=2**31, line_bytes=self._limits.line_bytes)
        index = await asyncio.to_thread(
            index_file, file, run.batch.endpoint, lambda _: _any_task(run.batch.endpoint), anything
        )
        if isinstance(index, list):
            index = LineIndex()
        await asyncio.to_thread(run.open, file, index)
        run.count()

    async def _work(self, run: BatchRun) -> None:
        """Until every line has a result, or somebody ends it."""
        self.wake()
        stored_at = time.monotonic()
        while not self._is_closing and run.batch.status is BatchStatus.IN_PROGRESS:
            if run.left == 0 and not run.in_flight:
                break
            if state.is_late(run.batch, int(time.time())):
                run.batch = state.expired(run.batch, int(time.time()))
                break
            run.changed.clear()
            await _wait(run.changed, _WRITE_EVERY_S)
            # Results of a quarter of a second share one fsync.
            await asyncio.sleep(_WRITE_EVERY_S if run.has_unwritten else 0)
            await self._write(run)
            if time.monotonic() - stored_at > _STORE_EVERY_S:
                stored_at = time.monotonic()
                await self._check_disk(run)
                await self.store(run)
            self.wake()
        run.is_stopping = True
        await self._end_in_flight(run)
        await self._write(run)
        await self.store(run)

    async def _write(self, run: BatchRun) -> None:
        if run.has_unwritten:
            await asyncio.to_thread(run.write)
            run.count()

    async def _check_disk(self, run: BatchRun) -> None:
        """It pauses before the disk is full: other parts of the machine need room, too."""
        has_space = await asyncio.to_thread(self._files.has_space)
        if not has_space:
            run.problem = "the disk has less free than batches.disk_reserve"
        elif run.is_short_of_disk:
            run.problem = None
        run.is_short_of_disk = not has_space

    async def _end_in_flight(self, run: BatchRun) -> None:
        """Short answers may still come; the rest is given up."""
        if run.in_flight and not self._is_closing:
            await asyncio.wait(run.in_flight, timeout=_GRACE_S)
        for task in list(run.in_flight):
            task.cancel()
        if run.in_flight:
            await asyncio.wait(run.in_flight)

    async def _finish(self, run: BatchRun) -> None:
        run.is_stopping = True
        await self._end_in_flight(run)
        await self._write(run)
        run.batch = state.finalizing(run.batch, int(time.time()))
        await self.store(run)
        await self._write_rest(run)
        await asyncio.to_thread(run.journal.close)
        run.stored = msgspec.structs.replace(run.stored, has_all_results=True)
        await self.store(run)
        await self._keep_results(run)

    async def _keep_results(self, run: BatchRun) -> None:
        """The journal's files become files of the Files API; may be done more than once."""
        kept = []
        for file_id, name in (
            (run.stored.output_file_id, "output"),
            (run.stored.error_file_id, "error"),
        ):
            part = run.directory / ("output.jsonl" if name == "output" else "errors.jsonl")
            is_there = part.exists() or self._files.path(file_id).exists()
            if is_there:
                await self._files.keep(
                    part,
                    filename=f"{run.id}_{name}.jsonl",
                    purpose="batch_output",
                    expires_after_s=run.stored.output_expires_after_s,
                    file_id=file_id,
                )
            kept.append(file_id if is_there else None)
        run.batch = state.ended(
            run.batch, output_file_id=kept[0], error_file_id=kept[1], now=int(time.time())
        )
        run.problem = None
        await self.store(run)
        await asyncio.to_thread(shutil.rmtree, run.directory, ignore_errors=True)
        logger.info("batch.ended id=%s status=%s", run.id, run.batch.status.value)

    async def _write_rest(self, run: BatchRun) -> None:
        """Every line is in one of the files at the end."""
        rest = [number for number, is_done in enumerate(run.done.lines) if not is_done]
        is_cancelled = run.batch.status is BatchStatus.CANCELLING
        code, message = state.CANCELLED if is_cancelled else state.EXPIRED
        for start in range(0, len(rest), _REST_AT_ONCE):
            numbers = rest[start : start + _REST_AT_ONCE]
            await asyncio.to_thread(run.write_rest, numbers, code, message)


def _any_task(endpoint: str) -> Task | None:
    return next(iter(ENDPOINTS[endpoint]), None)


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
