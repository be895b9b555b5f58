"""The task that samples devices and publishes what people should see, at a bounded rate."""

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

from appliance.protocol.devices import Device
from appliance.protocol.events import AlertRaised, DevicesSampled, Event
from appliance.protocol.system import Totals
from appliance.slots.board import SlotBoard
from appliance.slots.device_alerts import device_alerts
from appliance.slots.monitor import DeviceMonitor, differs
from appliance.units import MIB

logger = logging.getLogger(__name__)

# Models change with each request; people are told at most this often.
_FLUSH_S = 0.25


class Sampling:
    """Owner of the sampling task."""

    def __init__(
        self,
        monitor: DeviceMonitor,
        board: SlotBoard,
        *,
        interval_s: float,
        publish: Callable[[Event], None],
    ) -> None:
        self._monitor = monitor
        self._board = board
        self._interval_s = interval_s
        self._publish = publish
        self._last: tuple[list[Device], Totals] = ([], Totals())
        self._measured: dict[str, object] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to sample."""
        self._tasks = [
            asyncio.create_task(self._sample(), name="sampling"),
            asyncio.create_task(self._flush(), name="flushing"),
        ]

    async def stop(self) -> None:
        """End the task."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _sample(self) -> None:
        while True:
            started = time.monotonic()
            try:
                await self._monitor.sample()
                self._mark_measured()
                self._publish_if_changed()
            except Exception:  # a bad sample must not end the task
                logger.exception("sampling.failed")
            await asyncio.sleep(max(self._interval_s - (time.monotonic() - started), 0.05))

    async def _flush(self) -> None:
        while True:
            await asyncio.sleep(_FLUSH_S)
            try:
                self._board.flush_changes()
            except Exception:  # one model that cannot be shown must not hide all others
                logger.exception("flushing.failed")

    def _mark_measured(self) -> None:
        """Models whose measured figures a person would see change."""
        seen: dict[str, object] = {}
        for each in self._board.running():
            supervisor = each.supervisor
            figures = (supervisor.id, each.tokens_per_s, supervisor.memory_bytes // (16 * MIB))
            seen[supervisor.model] = figures
            if self._measured.get(supervisor.model) != figures:
                self._board.mark_changed(supervisor.model)
        self._measured = seen

    def _publish_if_changed(self) -> None:
        devices, totals = self._board.devices(), self._board.totals()
        before = self._last[0]
        before_health = {device.id: device.health for device in before}
        if differs(before, devices) or totals != self._last[1]:
            self._last = (devices, totals)
            self._publish(DevicesSampled(devices=devices, totals=totals))
            for alert in device_alerts(before, devices, datetime.now(UTC)):
                log = logger.error if alert.severity == "error" else logger.warning
                log("devices.%s %s", alert.severity, alert.message)
                self._publish(AlertRaised(alert=alert))
            if any(each.health != before_health.get(each.id, each.health) for each in devices):
                self._board.wake.set()
