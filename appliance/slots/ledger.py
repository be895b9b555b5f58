"""What is on each device: promised, measured, used by others, free. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from appliance.gpu.reading import Reading
from appliance.protocol.devices import Device, DeviceHealth, DeviceKind, DeviceProcess, Occupant
from appliance.slots.plans import DeviceRoom


@dataclass(frozen=True, kw_only=True)
class Holding:
    """What one engine holds on one device, in bytes. `pids` are its processes."""

    occupant: Occupant
    device_id: str
    pids: frozenset[int]
    is_starting: bool
    is_going: bool = False
    """It falls asleep, was told to end, or has ended; its memory is not verified back."""


def used_by(holding: Holding, reading: Reading) -> int:
    """Measured bytes: the driver's figure for its processes, else what was sampled.

    In a container the driver may tell nothing about our processes; an engine that has started
    then counts as having taken all that it was promised.
    """
    if reading.kind is not DeviceKind.GPU:
        return holding.occupant.used_bytes
    if holding.is_starting or holding.pids & reading.used_by_pid.keys():
        return sum(reading.used_by_pid.get(pid, 0) for pid in holding.pids)
    return holding.occupant.reserved_bytes


def device_view(
    reading: Reading,
    holdings: Sequence[Holding],
    reserve_bytes: int,
    launcher_bytes: int = 0,
    freeing_bytes: int = 0,
) -> Device:
    """A device as people see it; `freeing_bytes` are still held for engines that have ended."""
    mine = [holding for holding in holdings if holding.device_id == reading.id]
    used = {holding.occupant.engine_id: used_by(holding, reading) for holding in mine}
    ours = sum(used.values())
    reserved = sum(promised_to(holding, reading) for holding in mine)
    launchers = launcher_bytes if reading.kind is DeviceKind.CPU else 0
    other = _used_by_others(reading, ours + launchers)
    return Device(
        id=reading.id,
        index=reading.index,
        name=reading.name,
        kind=reading.kind,
        total_bytes=reading.total_bytes,
        used_bytes=ours + launchers + other,
        other_bytes=other,
        reserved_bytes=reserved,
        launcher_bytes=launchers,
        free_bytes=max(_free(reading, mine, reserve_bytes, launchers), 0),
        freeing_bytes=freeing_bytes,
        occupants=[_measured(holding, used) for holding in mine],
        processes=_others(reading, holdings),
        utilization_ratio=reading.utilization_ratio,
        temperature_c=reading.temperature_c,
        power_w=reading.power_w,
        health=reading.condition.health,
        cause=reading.condition.cause,
        problem=reading.problem,
        note=reading.condition.text if reading.condition.health is DeviceHealth.DEGRADED else None,
        remedy=reading.condition.remedy or None,
        links=dict(reading.links),
        numa_node=reading.numa_node,
    )


def device_room(
    reading: Reading, holdings: Sequence[Holding], reserve_bytes: int, launcher_bytes: int = 0
) -> DeviceRoom:
    """A device as the planner sees it; warm launchers live in the RAM that a CPU's engines use."""
    launchers = launcher_bytes if reading.kind is DeviceKind.CPU else 0
    mine = [holding for holding in holdings if holding.device_id == reading.id]
    return DeviceRoom(
        id=reading.id,
        index=reading.index,
        total_bytes=max(reading.total_bytes - launchers - reserve_bytes, 0),
        free_bytes=_free(reading, mine, reserve_bytes, launchers),
        is_usable=reading.problem is None,
        is_starting=any(holding.is_starting for holding in mine),
        is_freeing=reading.kind is DeviceKind.GPU and any(holding.is_going for holding in mine),
        links=reading.links,
        visible_as=reading.visible_as,
        is_partition=reading.is_partition,
    )


def promised_to(holding: Holding, reading: Reading) -> int:
    """Bytes that count as taken: the promise, or what the engine took beyond it."""
    return max(holding.occupant.reserved_bytes, used_by(holding, reading))


def _free(reading: Reading, mine: Sequence[Holding], reserve_bytes: int, launchers: int) -> int:
    """The smaller of ledger and reading.

    What is available now will still shrink by what our engines were promised and have not taken.
    """
    promised = sum(promised_to(holding, reading) for holding in mine)
    by_ledger = reading.total_bytes - launchers - promised
    if reading.available_bytes is None:
        return by_ledger - reserve_bytes
    outstanding = sum(promised_to(holding, reading) - used_by(holding, reading) for holding in mine)
    return min(by_ledger, reading.available_bytes - outstanding) - reserve_bytes


def _used_by_others(reading: Reading, ours: int) -> int:
    """Memory that is neither ours nor available; on the CPU only what cuts into our budget."""
    if reading.available_bytes is None:
        return 0
    return min(
        max(reading.total_bytes - reading.available_bytes - ours, 0),
        max(reading.total_bytes - ours, 0),
    )


def _others(reading: Reading, holdings: Sequence[Holding]) -> list[DeviceProcess]:
    """Processes on the device that belong to no engine of ours, largest first."""
    ours = frozenset[int]().union(*(holding.pids for holding in holdings))
    found = [
        DeviceProcess(pid=pid, name=reading.process_names.get(pid, ""), bytes=used)
        for pid, used in reading.used_by_pid.items()
        if pid not in ours
    ]
    return sorted(found, key=lambda each: (-each.bytes, each.pid))


def _measured(holding: Holding, used: dict[str, int]) -> Occupant:
    occupant = holding.occupant
    return Occupant(
        model=occupant.model,
        engine_id=occupant.engine_id,
        reserved_bytes=occupant.reserved_bytes,
        used_bytes=used[occupant.engine_id],
        weights_bytes=occupant.weights_bytes,
        kv_cache_bytes=occupant.kv_cache_bytes,
        rank=occupant.rank,
    )
