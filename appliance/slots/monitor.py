"""Reads the devices and our engines' memory once a second, and tells what changed."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from appliance.engine.connection import ConnectionLostError
from appliance.engine.proctree import proportional_bytes
from appliance.errors import DeviceError
from appliance.gpu.inventory import DeviceReader
from appliance.gpu.reading import Reading
from appliance.protocol.devices import Device, DeviceKind, Occupant
from appliance.slots.ledger import Holding, device_room, device_view, promised_to
from appliance.slots.plans import DeviceRoom
from appliance.slots.slot import Running
from appliance.units import MIB

logger = logging.getLogger(__name__)

_TOKENS = b"vllm:generation_tokens_total"
_SCRAPE_S = 2.0
# The kernel walks all pages of a process to tell its share of them.
_MEASURE_IDLE_EVERY_S = 10.0
_FREED_S = 10.0
_FREED_EVERY_S = 0.25


class DeviceMonitor:
    """Owner of the device source and of its thread (NVML may block)."""

    def __init__(
        self,
        reader: DeviceReader,
        *,
        reserve_bytes: int,
        running: Callable[[], list[Running]],
        measure_launchers: Callable[[], Awaitable[int]],
    ) -> None:
        self.source = reader.source
        self._reader = reader
        self._reserve_bytes = reserve_bytes
        self._running = running
        self._measure_launchers = measure_launchers
        self._launcher_bytes = 0
        self._launchers_at = float("-inf")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="devices")
        self._readings: list[Reading] = []
        self._source_problem: str | None = None
        self._held: dict[str, frozenset[int]] = {}
        """Devices whose memory dead engines still hold, and by which processes."""

    @property
    def kind(self) -> DeviceKind:
        """Kind of all devices of this machine."""
        return self._readings[0].kind

    async def open(self) -> None:
        """First reading. Raises DeviceError."""
        await self.refresh()

    async def close(self) -> None:
        """Give the source back."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._reader.close)
        self._thread.shutdown(wait=False)

    async def refresh(self) -> None:
        """Read the devices again. Raises DeviceError; the last readings stay."""
        loop = asyncio.get_running_loop()
        self._readings = await loop.run_in_executor(self._thread, self._reader.read)

    async def sample(self) -> None:
        """Devices, memory and rates of the engines; a source that fails marks its devices."""
        running = self._running()
        try:
            await self.refresh()
            self._source_problem = None
            self._lift_quarantine()
        except DeviceError as error:
            self._source_problem = str(error)
        now = time.monotonic()
        for each in running:
            if each.is_at_work or now - each.measured_at > _MEASURE_IDLE_EVERY_S:
                each.measured_at = now
                await asyncio.to_thread(_measure, each)
        if now - self._launchers_at > _MEASURE_IDLE_EVERY_S:
            self._launchers_at = now
            self._launcher_bytes = await self._measure_launchers()
        await asyncio.gather(*(_scrape(each) for each in running if _is_worth_scraping(each)))

    async def wait_freed(self, pids: frozenset[int]) -> bool:
        """Until the driver holds no memory for these processes; False if it does not let go."""
        if not self._readings or self.kind is not DeviceKind.GPU:
            return True
        deadline = time.monotonic() + _FREED_S
        while True:
            try:
                await self.refresh()
            except DeviceError as error:
                logger.warning("devices.unreadable message=%s", error)
                return False
            holders = [each for each in self._readings if pids & each.used_by_pid.keys()]
            if not holders:
                return True
            if time.monotonic() > deadline:
                for reading in holders:
                    self._held[reading.id] = pids & reading.used_by_pid.keys()
                return False
            await asyncio.sleep(_FREED_EVERY_S)

    def rooms(self) -> list[DeviceRoom]:
        """The devices for the planner."""
        holdings = self._holdings()
        return [
            device_room(reading, holdings, self._reserve_bytes, self._launcher_bytes)
            for reading in self._marked()
        ]

    def devices(self) -> list[Device]:
        """The devices for people."""
        holdings = self._holdings()
        return [
            device_view(reading, holdings, self._reserve_bytes, self._launcher_bytes)
            for reading in self._marked()
        ]

    def promised(self, running: Running) -> dict[str, int]:
        """Bytes that come back on each device when the engine goes."""
        readings = {reading.id: reading for reading in self._readings}
        return {
            holding.device_id: promised_to(holding, readings[holding.device_id])
            for holding in holdings_of(running)
            if holding.device_id in readings
        }

    def _lift_quarantine(self) -> None:
        for reading in self._readings:
            if not self._held.get(reading.id, frozenset()) & reading.used_by_pid.keys():
                self._held.pop(reading.id, None)

    def _marked(self) -> list[Reading]:
        return [replace(reading, problem=self._problem_of(reading)) for reading in self._readings]

    def _problem_of(self, reading: Reading) -> str | None:
        if reading.problem or self._source_problem:
            return reading.problem or self._source_problem
        held = self._held.get(reading.id)
        if held is None:
            return None
        return f"memory still held by process {', '.join(str(pid) for pid in sorted(held))}"

    def _holdings(self) -> list[Holding]:
        return [holding for each in self._running() for holding in holdings_of(each)]


def holdings_of(running: Running) -> list[Holding]:
    """What an engine holds on each of its devices; measured memory is split evenly over ranks."""
    supervisor, estimate = running.supervisor, running.estimate
    ranks = len(supervisor.placement.shares)
    return [
        Holding(
            occupant=Occupant(
                model=supervisor.model,
                engine_id=supervisor.id,
                reserved_bytes=share.memory_bytes,
                used_bytes=supervisor.memory_bytes // ranks,
                weights_bytes=estimate.weights_bytes,
                kv_cache_bytes=estimate.kv_cache_bytes,
                rank=rank,
            ),
            device_id=share.device_id,
            pids=running.pids,
            is_starting=running.ready_since is None and not supervisor.has_ended,
        )
        for rank, share in enumerate(supervisor.placement.shares)
    ]


def differs(before: Sequence[Device], after: Sequence[Device]) -> bool:
    """Whether a person would see a difference."""
    return [_seen(device) for device in before] != [_seen(device) for device in after]


def _seen(device: Device) -> tuple[object, ...]:
    utilization = device.utilization_ratio
    return (
        device.id,
        device.used_bytes // (16 * MIB),
        device.free_bytes // (16 * MIB),
        None if utilization is None else round(utilization, 2),
        device.temperature_c,
        None if device.power_w is None else round(device.power_w),
        device.problem,
        [(each.engine_id, each.used_bytes // (16 * MIB)) for each in device.occupants],
    )


def _measure(running: Running) -> None:
    running.supervisor.note_oom_kills()
    pids = running.supervisor.pids()
    if pids:
        running.pids = frozenset(pids)
        running.supervisor.memory_bytes = sum(proportional_bytes(pid) for pid in pids)


def _is_worth_scraping(running: Running) -> bool:
    """An engine without requests produces no tokens, once its rate has come down to zero."""
    return running.ready_since is not None and bool(running.in_flight or running.tokens_per_s)


async def _scrape(running: Running) -> None:
    """Tokens per second from the engine's own counter."""
    try:
        async with asyncio.timeout(_SCRAPE_S):
            answer = await running.supervisor.connections.request("GET", "/metrics", is_probe=True)
            text = await answer.read()
    except (OSError, TimeoutError, ConnectionLostError):
        return
    total = sum(
        float(line.rsplit(b" ", 1)[1]) for line in text.splitlines() if line.startswith(_TOKENS)
    )
    now = time.monotonic()
    if running.tokens_total is not None and now > running.tokens_at:
        rate = (total - running.tokens_total) / (now - running.tokens_at)
        running.tokens_per_s = round(max(rate, 0.0), 1)
    running.tokens_total, running.tokens_at = total, now
