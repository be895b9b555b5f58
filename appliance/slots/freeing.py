"""Whether the memory of an engine that has ended is back. Pure, but for what it remembers.

By process where the driver names the engine's, and by what could be allocated: in a container the
driver names nobody, and a driver may forget a process before it has its memory back.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from appliance.gpu.condition import Condition, memory_held
from appliance.gpu.reading import Reading
from appliance.protocol.devices import DeviceKind
from appliance.units import MIB

_TOLERANCE_BYTES = 256 * MIB
_TOLERANCE_RATIO = 0.1
# Missing memory whose holder the driver does not name is taken for somebody else's after this.
_FORGET_UNNAMED_S = 120.0
# A process may be gone, and its memory back, some samples before its engine counts as ended.
_RECENT = 3


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What an engine holds on one device, as last seen; all sizes are bytes."""

    device_id: str
    pids: frozenset[int]
    is_named: bool = False
    """Whether the driver told these pids; in a container it may tell others for them."""
    names: Mapping[int, str] = field(default_factory=dict)
    held_bytes: int = 0
    """What has to come back."""
    available_bytes: int | None = None
    """What could be allocated while it was held."""
    others: Mapping[int, int] = field(default_factory=dict)
    """Memory of other processes then."""


@dataclass(frozen=True, kw_only=True)
class Missing:
    """Memory that is not back; no pids: the driver does not say who has it."""

    held_bytes: int
    holders: tuple[tuple[int, str], ...] = ()


def missing(footprint: Footprint, reading: Reading, promised_bytes: int = 0) -> Missing | None:
    """What is not back yet; `promised_bytes` may have been taken by engines that start there."""
    left = sorted(footprint.pids & reading.used_by_pid.keys())
    if left:
        names = {**footprint.names, **reading.process_names}
        return Missing(
            held_bytes=sum(reading.used_by_pid[pid] for pid in left),
            holders=tuple((pid, names.get(pid, "")) for pid in left),
        )
    if reading.available_bytes is None or footprint.available_bytes is None:
        return None
    now = {pid: used for pid, used in reading.used_by_pid.items() if pid not in footprint.pids}
    grown = sum(max(used - footprint.others.get(pid, 0), 0) for pid, used in now.items())
    shrunk = sum(max(used - now.get(pid, 0), 0) for pid, used in footprint.others.items())
    if not footprint.is_named:
        # The engine itself may be among them.
        shrunk = 0
    expected = footprint.available_bytes + footprint.held_bytes + shrunk - grown - promised_bytes
    tolerance = max(_TOLERANCE_BYTES, int(footprint.held_bytes * _TOLERANCE_RATIO))
    short = expected - reading.available_bytes
    return Missing(held_bytes=short) if short > tolerance else None


@dataclass(frozen=True, kw_only=True)
class _Trace:
    """What is remembered of an engine on one device while it lives."""

    before_bytes: int | None
    """What could be allocated before it started."""
    seen: Footprint
    taken_bytes: int | None = None
    """What it took until it was ready, where the driver does not name its processes."""
    recent_bytes: tuple[int, ...] = ()
    """What could be allocated at the last samples."""


@dataclass(frozen=True, kw_only=True)
class _Held:
    footprint: Footprint
    since: float
    condition: Condition


class MemoryWatch:
    """Remembers what each engine holds, and on which devices memory did not come back."""

    def __init__(self) -> None:
        self._traces: dict[str, dict[str, _Trace]] = {}
        self._held: dict[str, list[_Held]] = {}

    def note(
        self,
        engine_id: str,
        pids: frozenset[int],
        promised: Mapping[str, int],
        *,
        is_ready: bool,
        is_asleep: bool,
        before: Mapping[str, Reading],
        now: Mapping[str, Reading],
    ) -> None:
        """The engine lives; `promised` are its bytes by device, `before` the readings before."""
        traces = self._traces.setdefault(engine_id, {})
        for device_id, promised_bytes in promised.items():
            reading = now.get(device_id)
            if reading is None or reading.kind is not DeviceKind.GPU or reading.problem:
                continue
            trace = traces.get(device_id)
            if trace is None:
                first = before.get(device_id, reading)
                seen = Footprint(device_id=device_id, pids=frozenset())
                trace = _Trace(before_bytes=first.available_bytes, seen=seen)
            traces[device_id] = _updated(
                trace, reading, pids, promised_bytes, is_ready=is_ready, is_asleep=is_asleep
            )

    def ended(self, engine_id: str, pids: frozenset[int]) -> list[Footprint]:
        """What has to come back, now that it has ended."""
        return [
            replace(trace.seen, pids=trace.seen.pids | pids)
            for trace in self._traces.pop(engine_id, {}).values()
        ]

    def forget_all_but(self, engine_ids: Iterable[str]) -> None:
        """Others than these do not live any more."""
        known = set(engine_ids)
        self._traces = {each: traces for each, traces in self._traces.items() if each in known}

    def quarantine(self, footprint: Footprint, left: Missing, bound_s: float, now: float) -> None:
        """It did not come back in time."""
        condition = memory_held(left.held_bytes, left.holders, bound_s)
        held = _Held(footprint=footprint, since=now, condition=condition)
        self._held.setdefault(footprint.device_id, []).append(held)

    def lift(self, readings: Mapping[str, Reading], now: float) -> None:
        """Forget what is back by now."""
        for device_id, all_held in list(self._held.items()):
            reading = readings.get(device_id)
            if reading is None or reading.problem:
                continue
            left = [each for each in all_held if _is_still_held(each, reading, now)]
            self._held[device_id] = left
            if not left:
                del self._held[device_id]

    def condition(self, device_id: str) -> Condition | None:
        """Why nothing may start there, or None."""
        held = self._held.get(device_id)
        return held[0].condition if held else None


def _is_still_held(held: _Held, reading: Reading, now: float) -> bool:
    left = missing(held.footprint, reading)
    return left is not None and (bool(left.holders) or now - held.since < _FORGET_UNNAMED_S)


def _updated(
    trace: _Trace,
    reading: Reading,
    pids: frozenset[int],
    promised_bytes: int,
    *,
    is_ready: bool,
    is_asleep: bool,
) -> _Trace:
    named = trace.seen.pids | (pids & reading.used_by_pid.keys())
    taken = trace.taken_bytes
    if taken is None and trace.before_bytes is not None and reading.available_bytes is not None:
        so_far = min(max(trace.before_bytes - reading.available_bytes, 0), promised_bytes)
        taken, held = (so_far if is_ready else None), so_far
    else:
        held = taken or 0
    if named:
        held = sum(reading.used_by_pid.get(pid, 0) for pid in named)
    elif is_asleep:
        # Nothing tells how much of what it took it has given back.
        held = 0
    recent = trace.recent_bytes
    if reading.available_bytes is not None:
        recent = (*recent, reading.available_bytes)[-_RECENT:]
    names = {pid: reading.process_names[pid] for pid in named if pid in reading.process_names}
    return replace(
        trace,
        taken_bytes=taken,
        recent_bytes=recent,
        seen=Footprint(
            device_id=reading.id,
            pids=named,
            is_named=bool(named),
            names={**trace.seen.names, **names},
            held_bytes=held,
            available_bytes=reading.available_bytes if named else min(recent, default=None),
            others={pid: used for pid, used in reading.used_by_pid.items() if pid not in named},
        ),
    )
