"""What people are told of batches: a change of state at once, the rest once a second."""

import asyncio
import logging
from collections.abc import Callable

from appliance.batch.run import BatchRun
from appliance.protocol.batches import ENDED_SHOWN, BatchProgress, without_old
from appliance.protocol.events import BatchChanged, Event
from appliance.store.batches import StoredBatch, recent_batches
from appliance.store.database import Database

logger = logging.getLogger(__name__)

_COUNTS_EVERY_S = 1.0


class BatchNews:
    """Owner of what was told last, which is what snapshots hold, and of the task that tells."""

    def __init__(self, database: Database, publish: Callable[[Event], None]) -> None:
        self._database = database
        self._publish = publish
        self._told: dict[str, BatchProgress] = {}
        self._followed: dict[str, BatchRun] = {}
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Know what earlier servers have left."""
        for stored in await self._database.read(lambda: recent_batches(ENDED_SHOWN)):
            self._told[stored.batch.id] = progress_of(stored)
        self._told = without_old(self._told)

    def start(self) -> None:
        """Begin to tell how far the open ones are."""
        self._task = asyncio.create_task(self._run(), name="batch news")

    async def stop(self) -> None:
        """End the task."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def told(self) -> list[BatchProgress]:
        """The open batches and the newest of those that are over, the oldest first."""
        return list(self._told.values())

    def tell(self, run: BatchRun) -> None:
        """Something may have changed: of that, a new state is told now."""
        if not run.batch.status.is_final:
            self._followed[run.id] = run
        before = self._told.get(run.id)
        if before is None or _state(before) != _state(run.progress()):
            self._tell(run)

    def tell_counts(self) -> None:
        """Whatever else has changed."""
        for run in list(self._followed.values()):
            self._tell(run)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_COUNTS_EVERY_S)
            try:
                self.tell_counts()
            except Exception:  # one batch that cannot be shown must not hide all others
                logger.exception("batch.news_failed")

    def _tell(self, run: BatchRun) -> None:
        progress = run.progress()
        if progress.batch.status.is_final:
            self._followed.pop(run.id, None)
            progress = progress_of(run.stored)
        if self._told.get(run.id) != progress:
            self._told[run.id] = progress
            self._told = without_old(self._told)
            self._publish(BatchChanged(batch=progress))


def progress_of(stored: StoredBatch) -> BatchProgress:
    """What is known of a batch that nothing works on."""
    return BatchProgress(
        batch=stored.batch,
        models=stored.models,
        is_paused=stored.is_paused and not stored.batch.status.is_final,
        retried=stored.retried,
        waited_s=round(stored.waited_s, 1),
    )


def _state(progress: BatchProgress) -> tuple[object, ...]:
    return progress.batch.status, progress.is_paused, progress.problem
