"""Reads the devices and our engines' memory once a second, and tells what changed."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from appliance.errors import DeviceError
from appliance.gpu import condition
from appliance.gpu.background import BackgroundReader, DriverHangsError
from appliance.gpu.condition import Condition
from appliance.gpu.inventory import DeviceReader
from appliance.gpu.reading import Reading
from appliance.protocol.devices import Device, DeviceKind, DeviceSource, Occupant
from appliance.protocol.engines import EngineState
from appliance.slots.engine_samples import is_worth_scraping, measure, scrape
from appliance.slots.freeing import Footprint, MemoryWatch, Missing, missing
from appliance.slots.ledger import Holding, device_room, device_view, promised_to
from appliance.slots.plans import DeviceRoom
from appliance.slots.slot import Running
from appliance.units import MIB

logger = logging.getLogger(__name__)

# The kernel walks all pages of a process to tell its share of them.
_MEASURE_IDLE_EVERY_S = 10.0
_FREED_EVERY_S = 0.25
_KINDS = {
    DeviceSource.NVML: DeviceKind.GPU,
    DeviceSource.CPU: DeviceKind.CPU,
    DeviceSource.SIMULATED: DeviceKind.SIMULATED,
}


class DeviceMonitor:
    """Owner of the device source."""

    def __init__(
        self,
        reader: DeviceReader,
        *,
        reserve_bytes: int,
        running: Callable[[], list[Running]],
        measure_launchers: Callable[[], Awaitable[int]],
        freeing_s: float = 30.0,
        answer_s: float = 20.0,
    ) -> None:
        self.source = reader.source
        self._reader = BackgroundReader(reader, limit_s=answer_s)
        self._reserve_bytes = reserve_bytes
        self._running = running
        self._measure_launchers = measure_launchers
        self._freeing_s = freeing_s
        self._launcher_bytes = 0
        self._launchers_at = float("-inf")
        self._readings: list[Reading] = []
        self._fault: Condition | None = None
        """Why the source cannot be read at all."""
        self._memory = MemoryWatch()
        self._is_closing = False
        self._freeing: dict[str, list[tuple[str, int]]] = {}
        """By engine that has ended: device and bytes that are not back yet."""

    @property
    def kind(self) -> DeviceKind:
        """Kind of all devices of this machine."""
        if self._readings:
            return self._readings[0].kind
        return _KINDS[self.source]

    @property
    def smallest_device_bytes(self) -> int | None:
        """Size of the smallest device of this machine; None while none can be read."""
        known = (reading.total_bytes for reading in self._readings if reading.total_bytes)
        return min(known, default=None)

    async def open(self) -> None:
        """First reading. Raises DeviceError, but not for GPUs whose driver is broken."""
        try:
            await self.refresh()
        except DriverHangsError as error:
            logger.warning("devices.unreadable message=%s", error)

    async def close(self) -> None:
        """Give the source back."""
        await self._reader.close()

    def stop_waiting(self) -> None:
        """Nothing will be started any more, so no memory has to be waited for."""
        self._is_closing = True

    async def refresh(self) -> None:
        """Read the devices again. Raises DeviceError; the last readings stay."""
        try:
            self._readings = await self._reader.read()
        except DriverHangsError as error:
            self._fault = error.condition
            raise
        except DeviceError as error:
            self._fault = condition.nvml_lost(error.message)
            raise
        self._fault = None

    async def sample(self) -> None:
        """Devices, memory and rates of the engines; a source that fails marks its devices."""
        running = self._running()
        before = self._by_id()
        is_read = True
        try:
            await self.refresh()
        except DeviceError as error:
            is_read = False
            logger.debug("devices.unreadable message=%s", error)
        now = time.monotonic()
        for each in running:
            if each.is_at_work or now - each.measured_at > _MEASURE_IDLE_EVERY_S:
                each.measured_at = now
                await asyncio.to_thread(measure, each)
        if is_read:
            self._note_memory(running, before)
            self._memory.lift(self._by_id(), now)
        if now - self._launchers_at > _MEASURE_IDLE_EVERY_S:
            self._launchers_at = now
            self._launcher_bytes = await self._measure_launchers()
        await asyncio.gather(*(scrape(each) for each in running if is_worth_scraping(each)))

    async def used_by(self, running: Running, pids: set[int]) -> list[int]:
        """Bytes of these processes on each device of the engine; 0 where no driver tells."""
        try:
            await self.refresh()
        except DeviceError as error:
            logger.warning("devices.unreadable message=%s", error)
            return []
        ids = {share.device_id for share in running.supervisor.placement.shares}
        return [
            sum(each.used_by_pid.get(pid, 0) for pid in pids)
            for each in self._readings
            if each.id in ids
        ]

    async def wait_freed(self, running: Running) -> bool:
        """Until the devices have the engine's memory back; False if one of them has not in time.

        Such a device is quarantined until it has.
        """
        engine_id = running.supervisor.id
        footprints = self._memory.ended(engine_id, running.pids)
        if self.kind is DeviceKind.CPU:
            # It is back with the processes, but the last sample is of before.
            await self._refresh_or_warn()
        deadline = time.monotonic() + self._freeing_s
        try:
            while footprints:
                left = await self._missing(footprints)
                self._freeing[engine_id] = [
                    (footprint.device_id, each.held_bytes) for footprint, each in left
                ]
                if not left or self._is_closing:
                    break
                if time.monotonic() > deadline:
                    self._quarantine(running.supervisor.model, left)
                    return False
                footprints = [footprint for footprint, _ in left]
                await asyncio.sleep(_FREED_EVERY_S)
        finally:
            self._freeing.pop(engine_id, None)
        return True

    async def _refresh_or_warn(self) -> None:
        try:
            await self.refresh()
        except DeviceError as error:
            logger.warning("devices.unreadable message=%s", error)

    async def _missing(self, footprints: list[Footprint]) -> list[tuple[Footprint, Missing]]:
        await self._refresh_or_warn()
        readings, starting = self._by_id(), self._starting_bytes()
        found = []
        for footprint in footprints:
            reading = readings.get(footprint.device_id)
            if reading is None:
                continue
            if self._fault is not None or reading.problem:
                # Nothing starts there now; it is looked at again once the device is back.
                unknown = Missing(held_bytes=footprint.held_bytes)
                self._memory.quarantine(footprint, unknown, self._freeing_s, time.monotonic())
                continue
            left = missing(footprint, reading, starting.get(reading.id, 0))
            if left is not None:
                found.append((footprint, left))
        return found

    def _quarantine(self, model: str, left: list[tuple[Footprint, Missing]]) -> None:
        for footprint, each in left:
            self._memory.quarantine(footprint, each, self._freeing_s, time.monotonic())
            logger.error(
                "devices.memory_held device=%s model=%s bytes=%s holders=%s",
                footprint.device_id, model, each.held_bytes, each.holders,
            )  # fmt: skip

    def _starting_bytes(self) -> dict[str, int]:
        """What engines that start may take meanwhile, where the driver does not name them."""
        found: dict[str, int] = {}
        for holding in self._holdings():
            if holding.is_starting:
                promised = holding.occupant.reserved_bytes
                found[holding.device_id] = found.get(holding.device_id, 0) + promised
        return found

    def _note_memory(self, running: list[Running], before: dict[str, Reading]) -> None:
        now = self._by_id()
        for each in running:
            if each.supervisor.has_ended or each.supervisor.is_stopping:
                continue
            self._memory.note(
                each.supervisor.id,
                each.pids,
                {share.device_id: share.memory_bytes for share in each.supervisor.placement.shares},
                is_ready=each.ready_since is not None,
                is_asleep=each.supervisor.state is EngineState.ASLEEP,
                before=before,
                now=now,
            )
        self._memory.forget_all_but(each.supervisor.id for each in self._running())

    def _by_id(self) -> dict[str, Reading]:
        return {reading.id: reading for reading in self._readings}

    def meter(self, running: Running) -> Callable[[], Awaitable[int]]:
        """A measure of what an engine holds on its devices, all ranks together, in bytes.

        In a container the driver may tell nothing about our processes: then what the devices have
        less in use than at the first call is taken off what the engine was promised. The measure
        raises DeviceError.
        """
        supervisor = running.supervisor
        promised = sum(share.memory_bytes for share in supervisor.placement.shares)
        first: list[int] = []

        async def measure() -> int:
            if self.kind is not DeviceKind.GPU:
                return await asyncio.to_thread(supervisor.measure)
            pids = await asyncio.to_thread(supervisor.pids)
            await self.refresh()
            mine = {share.device_id for share in supervisor.placement.shares}
            readings = [reading for reading in self._readings if reading.id in mine]
            own = sum(each.used_by_pid.get(pid, 0) for each in readings for pid in pids)
            if own:
                return own
            used = sum(each.total_bytes - (each.available_bytes or 0) for each in readings)
            first.append(used)
            return max(promised - max(first[0] - used, 0), 0)

        return measure

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
        freeing: dict[str, int] = {}
        for left in self._freeing.values():
            for device_id, held_bytes in left:
                freeing[device_id] = freeing.get(device_id, 0) + held_bytes
        return [
            device_view(
                reading,
                holdings,
                self._reserve_bytes,
                self._launcher_bytes,
                freeing.get(reading.id, 0),
            )
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

    def _marked(self) -> list[Reading]:
        readings = self._readings
        if not readings and self._fault is not None:
            readings = [unknown_device(self.kind, self._fault)]
        return [replace(reading, condition=self._condition_of(reading)) for reading in readings]

    def _condition_of(self, reading: Reading) -> Condition:
        held = self._memory.condition(reading.id)
        return condition.worst(
            each for each in (self._fault, reading.condition, held) if each is not None
        )

    def _holdings(self) -> list[Holding]:
        return [holding for each in self._running() for holding in holdings_of(each)]


def holdings_of(running: Running) -> list[Holding]:
    """What an engine holds on each of its devices; measured memory is split evenly over ranks."""
    supervisor, estimate = running.supervisor, running.estimate
    ranks = len(supervisor.placement.shares)
    residue = supervisor.sleeper.residue_bytes // ranks if running.is_asleep else None
    return [
        Holding(
            occupant=Occupant(
                model=supervisor.model,
                engine_id=supervisor.id,
                reserved_bytes=share.memory_bytes if residue is None else residue,
                used_bytes=supervisor.memory_bytes // ranks,
                weights_bytes=estimate.weights_bytes,
                kv_cache_bytes=estimate.kv_cache_bytes,
                rank=rank,
            ),
            device_id=share.device_id,
            pids=running.pids,
            is_starting=running.is_starting and not supervisor.has_ended,
            is_going=(supervisor.is_stopping or supervisor.has_ended or running.is_falling_asleep),
        )
        for rank, share in enumerate(supervisor.placement.shares)
    ]


def unknown_device(kind: DeviceKind, why: Condition) -> Reading:
    """Stands for devices that could not even be counted."""
    return Reading(
        id="unknown",
        index=0,
        name="unknown",
        kind=kind,
        total_bytes=0,
        available_bytes=0,
        condition=why,
    )


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
        (device.health, device.problem, device.note, device.freeing_bytes // (16 * MIB)),
        [(each.pid, each.bytes // (16 * MIB)) for each in device.processes],
        [(each.engine_id, each.used_bytes // (16 * MIB)) for each in device.occupants],
    )
