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
from appliance.batch.clock import Clock
from appliance.batch.feed import ModelFeed
from appliance.batch.files import FileStore
from appliance.batch.index import Limits, LineIndex, index_file
from appliance.batch.lines import ENDPOINTS, ModelCheck
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
_LONGEST_PAUSE_S = 60.0
# For files that were found sound before.
_NO_LIMITS = Limits(lines=2**62, line_bytes=2**62)


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
        clock: Clock,
        on_change: Callable[[BatchRun], None],
    ) -> None:
        self._database = database
        self._files = files
        self._slots = slots
        self._directory = directory
        self._task_of = task_of
        self._limits = limits
        self._concurrency = concurrency
        self._clock = clock
        self._on_change = on_change
        self._feeds: dict[str, tuple[ModelFeed, asyncio.Task[None]]] = {}
        self._drives: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Event()
        self._started = asyncio.Event()
        self.runs: dict[str, BatchRun] = {}
        """Those that are open, oldest first."""

    async def start(self) -> None:
        """Go on with what the last server left."""
        while not self._closing.is_set():
            try:
                found = await self._database.read(open_batches)
                await asyncio.to_thread(
                    _make_directory, self._directory, {stored.batch.id for stored in found}
                )
            except OSError as error:
                logger.warning("batch.start_failed error=%s", error)
                await _wait(self._closing, _DISK_PAUSE_S)
            else:
                for stored in found:
                    self.add(stored)
                break
        self._started.set()

    async def started(self) -> None:
        """Wait until `runs` has all that are open."""
        await self._started.wait()

    async def stop(self) -> None:
        """Feed nothing any more; what was answered is written."""
        self._closing.set()
        for run in self.runs.values():
            run.is_stopping = True
        for _, task in self._feeds.values():
            task.cancel()
        await asyncio.gather(*(task for _, task in self._feeds.values()), return_exceptions=True)
        for run in self.runs.values():
            run.changed.set()
        await asyncio.gather(*self._drives, return_exceptions=True)

    def add(self, stored: StoredBatch) -> BatchRun:
        """Take a batch up, once."""
        run = self.runs.get(stored.batch.id)
        if run is not None:
            return run
        left_s = (stored.batch.expires_at or 0) - self._clock.wall()
        run = BatchRun(
            stored, self._directory / stored.batch.id, deadline=self._clock.steady() + left_s
        )
        self.runs[run.id] = run
        self._on_change(run)
        if not self._closing.is_set():
            task = asyncio.create_task(self._drive(run), name=f"batch {run.id}")
            self._drives.add(task)
            task.add_done_callback(self._drives.discard)
        return run

    async def store(self, run: BatchRun) -> None:
        """The store knows it as it is now."""
        stored = run.stored
        await self._database.write(lambda: put_batch(stored))
        self._on_change(run)

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
            if model not in self._feeds and not self._closing.is_set():
                feed = ModelFeed(
                    model, self._slots, lambda: list(self.runs.values()), self._concurrency
                )
                task = asyncio.create_task(self._feed(model, feed), name=f"feed {model}")
                self._feeds[model] = (feed, task)
            elif model in self._feeds:
                self._feeds[model][0].wake()

    async def _feed(self, model: str, feed: ModelFeed) -> None:
        try:
            with self._slots.batches.ahead(model):
                await feed.run()
        except Exception:
            logger.exception("batch.feed_failed model=%s", model)
            await asyncio.sleep(1.0)
        finally:
            del self._feeds[model]
            if not self._closing.is_set():
                self.wake()

    async def _drive(self, run: BatchRun) -> None:
        pause_s = _DISK_PAUSE_S
        while True:
            try:
                await self._take_through(run)
                break
            except OSError as error:
                # A full or broken disk: nothing is lost, it goes on when it can.
                run.trouble = f"the disk fails: {error.strerror or error}"
                logger.warning("batch.disk id=%s error=%s", run.id, error)
                pause_s = _DISK_PAUSE_S
            except Exception:
                logger.exception("batch.failed id=%s", run.id)
                run.trouble = "the server failed to handle it; its log says more"
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
            if self._closing.is_set():
                break
            await _wait(self._closing, pause_s)
        await asyncio.to_thread(run.close)
        if run.batch.status.is_final:
            self.runs.pop(run.id, None)

    async def _take_through(self, run: BatchRun) -> None:
        """All that is left to do; after a failure it is begun again."""
        if run.batch.status is BatchStatus.VALIDATING:
            await self._validate(run)
        if run.batch.status.is_final:
            await self.store(run)
            return
        if run.stored.has_all_results:
            await self._keep_results(run)
            return
        if not run.is_open:
            await self._open(run)
        if run.batch.errors is None:
            if run.batch.status is BatchStatus.IN_PROGRESS:
                await self._work(run)
            if self._closing.is_set():
                return
            await self._finish(run)
        await self._settle_files(run)
        await self._keep_results(run)

    async def _index(
        self, run: BatchRun, task_of: ModelCheck, limits: Limits
    ) -> LineIndex | list[BatchError]:
        """The batch is opened with it, if its file is sound."""
        file = self._files.path(run.batch.input_file_id)
        try:
            found = await asyncio.to_thread(index_file, file, run.batch.endpoint, task_of, limits)
            if isinstance(found, LineIndex):
                await asyncio.to_thread(run.open, file, found)
        except FileNotFoundError:
            message = f"Cannot find file {run.batch.input_file_id}."
            return [BatchError(code="invalid_request", message=message, param="file_id")]
        return found

    async def _validate(self, run: BatchRun) -> None:
        found = await self._index(run, self._task_of, self._limits)
        # It may have been cancelled meanwhile.
        if run.batch.status is not BatchStatus.VALIDATING:
            if run.is_open:
                run.count()
            return
        if isinstance(found, list):
            run.batch = state.failed(run.batch, found, self._clock.now())
            return
        run.stored = msgspec.structs.replace(run.stored, models=found.models)
        run.batch = state.started(run.batch, len(found), found.models, self._clock.now())
        await self.store(run)

    async def _open(self, run: BatchRun) -> None:
        """After a start of the server; what was sound once is not judged again."""
        task = next(iter(ENDPOINTS[run.batch.endpoint]))
        found = await self._index(run, lambda _: task, _NO_LIMITS)
        if isinstance(found, LineIndex):
            run.count()
            return
        await asyncio.to_thread(run.recover)
        # Cancelled before it was found to be wrong: nothing of it can have run.
        if run.batch.in_progress_at is not None:
            run.count()
            run.batch = state.broken(run.batch, found)

    async def _work(self, run: BatchRun) -> None:
        """Until every line has a result, or somebody ends it."""
        checked_at = stored_at = time.monotonic()
        await self._check_disk(run)
        while not self._closing.is_set() and run.batch.status is BatchStatus.IN_PROGRESS:
            self.wake()
            if run.left == 0 and not run.in_flight:
                break
            if self._clock.steady() >= run.deadline:
                run.batch = state.expired(run.batch, self._clock.now())
                break
            run.changed.clear()
            await _wait(run.changed, _WRITE_EVERY_S)
            # Results of a quarter of a second share one fsync.
            await asyncio.sleep(_WRITE_EVERY_S if run.has_unwritten else 0)
            await self._write(run)
            if run.trouble or time.monotonic() - checked_at > _STORE_EVERY_S:
                checked_at = time.monotonic()
                await self._check_disk(run)
            if time.monotonic() - stored_at > _STORE_EVERY_S:
                stored_at = time.monotonic()
                await self.store(run)
        run.is_stopping = True
        await self._end_in_flight(run)
        await self._write(run)
        await self.store(run)

    async def _write(self, run: BatchRun) -> None:
        if run.has_unwritten:
            await run.write()

    async def _check_disk(self, run: BatchRun) -> None:
        """It pauses before the disk is full: other parts of the machine need room, too."""
        has_space = await asyncio.to_thread(self._files.has_space)
        run.trouble = None if has_space else "the disk has less free than batches.disk_reserve"

    async def _end_in_flight(self, run: BatchRun) -> None:
        """Short answers may still come; the rest is given up."""
        if run.in_flight and not self._closing.is_set():
            await asyncio.wait(run.in_flight, timeout=_GRACE_S)
        for task in list(run.in_flight):
            task.cancel()
        if run.in_flight:
            await asyncio.wait(run.in_flight)

    async def _finish(self, run: BatchRun) -> None:
        """Every line is in one of the files."""
        run.is_stopping = True
        await self._end_in_flight(run)
        await self._write(run)
        run.batch = state.finalizing(run.batch, self._clock.now())
        await self.store(run)
        is_cancelled = run.batch.status is BatchStatus.CANCELLING
        code, message = state.CANCELLED if is_cancelled else state.EXPIRED
        await asyncio.to_thread(run.write_rest, code, message)

    async def _settle_files(self, run: BatchRun) -> None:
        """From here on the journal is only moved; it would look empty to who reads it again."""
        await asyncio.to_thread(run.journal.close)
        run.stored = msgspec.structs.replace(run.stored, has_all_results=True)
        try:
            await self.store(run)
        except Exception:
            run.stored = msgspec.structs.replace(run.stored, has_all_results=False)
            raise

    async def _keep_results(self, run: BatchRun) -> None:
        """The journal's files become files of the Files API; may be done more than once."""
        output_file_id = await self._keep(run, run.stored.output_file_id, "output")
        error_file_id = await self._keep(run, run.stored.error_file_id, "errors")
        run.batch = state.ended(
            run.batch,
            output_file_id=output_file_id,
            error_file_id=error_file_id,
            now=self._clock.now(),
        )
        run.problem = run.trouble = None
        await self.store(run)
        await asyncio.to_thread(shutil.rmtree, run.directory, ignore_errors=True)
        logger.info("batch.ended id=%s status=%s", run.id, run.batch.status.value)

    async def _keep(self, run: BatchRun, file_id: str, name: str) -> str | None:
        part = run.directory / f"{name}.jsonl"
        if not await asyncio.to_thread(_has_content, part, self._files.path(file_id)):
            return None
        await self._files.keep(
            part,
            filename=f"{run.id}_{name.removesuffix('s')}.jsonl",
            purpose="batch_output",
            expires_after_s=run.stored.output_expires_after_s,
            file_id=file_id,
        )
        return file_id


def _has_content(*files: Path) -> bool:
    return any(file.exists() and file.stat().st_size for file in files)


def _make_directory(directory: Path, open_ids: set[str]) -> None:
    """What batches that are over have left in it goes."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    for each in directory.iterdir():
        if each.name.startswith("batch_") and each.name not in open_ids:
            shutil.rmtree(each, ignore_errors=True)


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
