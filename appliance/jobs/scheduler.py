"""Periodic jobs; the only importer of apscheduler."""

from collections.abc import Awaitable, Callable

from apscheduler.schedulers.asyncio import AsyncIOScheduler

_IDLE_EVERY_S = 1
_LAUNCHERS_EVERY_S = 60
_FILES_EVERY_S = 300


class Jobs:
    """Owner of the APScheduler instance. A run that was missed is skipped, not repeated."""

    def __init__(
        self,
        *,
        unload_idle: Callable[[], None],
        retire_launchers: Callable[[], Awaitable[None]],
        delete_expired_files: Callable[[], Awaitable[None]],
    ) -> None:
        self._scheduler = AsyncIOScheduler(
            timezone="UTC",
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": 30},
        )

        async def idle() -> None:
            # A coroutine runs on the event loop, which owns the slots; a function would run in a
            # thread.
            unload_idle()

        self._scheduler.add_job(idle, "interval", seconds=_IDLE_EVERY_S, id="idle")
        self._scheduler.add_job(
            retire_launchers, "interval", seconds=_LAUNCHERS_EVERY_S, id="launchers"
        )
        self._scheduler.add_job(
            delete_expired_files, "interval", seconds=_FILES_EVERY_S, id="files"
        )

    def start(self) -> None:
        """Begin to run jobs on the running event loop."""
        self._scheduler.start()

    def stop(self) -> None:
        """Run no further jobs."""
        self._scheduler.shutdown(wait=False)
