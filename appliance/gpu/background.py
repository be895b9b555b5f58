"""Device readings off the event loop, with a limit: a broken driver may never answer."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from appliance.config.settings import DeviceSettings
from appliance.errors import DeviceError
from appliance.gpu import condition
from appliance.gpu.condition import Condition
from appliance.gpu.inventory import DeviceReader, open_reader
from appliance.gpu.nvml_reader import NvmlReader
from appliance.gpu.reading import Reading

T = TypeVar("T")

logger = logging.getLogger(__name__)

_CLOSE_S = 5.0


class DriverHangsError(DeviceError):
    """A question to the driver has not come back in time."""

    def __init__(self, seconds: float) -> None:
        self.condition: Condition = condition.nvml_hangs(seconds)
        super().__init__(self.condition.text, hint=self.condition.remedy)


class BackgroundReader:
    """One question to the driver at a time, each in a thread that no exit waits for."""

    def __init__(self, reader: DeviceReader, *, limit_s: float) -> None:
        self.source = reader.source
        self._reader = reader
        self._limit_s = limit_s
        self._asked: asyncio.Future[list[Reading]] | None = None
        self._asked_at = 0.0

    async def read(self) -> list[Reading]:
        """The devices; callers at the same time get the same answer.

        Raises DeviceError, and DriverHangsError after `limit_s` and for as long as that lasts.
        """
        if self._asked is None or self._asked.done():
            self._asked = in_daemon_thread(self._reader.read)
            self._asked_at = time.monotonic()
        left = self._asked_at + self._limit_s - time.monotonic()
        if left <= 0 and not self._asked.done():
            raise DriverHangsError(self._limit_s)
        try:
            async with asyncio.timeout(left):
                return await asyncio.shield(self._asked)
        except TimeoutError:
            raise DriverHangsError(self._limit_s) from None
        except DeviceError:
            raise
        except Exception as error:
            logger.exception("devices.read_failed")
            raise DeviceError(f"The devices cannot be read: {error}.") from error

    async def close(self) -> None:
        """Give the source back, unless the driver hangs."""
        try:
            async with asyncio.timeout(_CLOSE_S):
                if self._asked is not None:
                    await asyncio.wait({self._asked})
                await asyncio.shield(in_daemon_thread(self._reader.close))
        except TimeoutError:
            return


async def open_in_time(settings: DeviceSettings) -> DeviceReader:
    """As `open_reader`; where the driver hangs over that, the machine is one with GPUs.

    Raises ConfigError.
    """
    opening = in_daemon_thread(lambda: open_reader(settings))
    try:
        async with asyncio.timeout(settings.answer_timeout_s):
            return await asyncio.shield(opening)
    except TimeoutError:
        return NvmlReader()


def in_daemon_thread(work: Callable[[], T]) -> "asyncio.Future[T]":
    """The result of blocking work, in a thread that dies with the process."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    # Nobody may be left to ask what became of it.
    future.add_done_callback(lambda done: done.cancelled() or done.exception())

    def settle(result: T | None, error: Exception | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except Exception as raised:  # noqa: BLE001 - handed to whoever waits for it
            error = raised
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="devices", daemon=True).start()
    return future
