"""What the planner is asked and what it answers: plain data."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceRoom:
    """One device as the planner sees it. `free_bytes` is what may be promised now."""

    id: str
    index: int
    total_bytes: int
    """What engines may take at most, the reserve taken off."""
    free_bytes: int
    is_usable: bool = True
    is_starting: bool = False
    """An engine starts on it: no other may start at the same time."""
    is_freeing: bool = False
    """Memory of an engine that goes is not back yet: nothing starts there before, since vLLM gives
    up a start during which free memory grows (0.32: v1/worker/gpu_worker.py)."""
    links: Mapping[str, int] = field(default_factory=dict, hash=False)
    """How close other devices are, by their ids: values of protocol.devices.Link."""
    visible_as: str | None = None
    """Its name for CUDA, where that is not its index."""
    is_partition: bool = False
    """A MIG instance: no engine can use two of them, or one beside a GPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Resident:
    """An engine that holds memory."""

    engine_id: str
    model: str
    bytes_by_device: dict[str, int]
    last_used: float
    is_busy: bool = False
    """Has requests, or starts."""
    is_pinned: bool = False
    is_always_on: bool = False
    """Why it is pinned, for people; alone it says nothing."""
    is_leaving: bool = False
    """On its way out; its memory comes back by itself."""
    is_exclusive: bool = False
    """Shares its devices with nobody."""
    cost_s: float = 0.0
    """Expected cost of losing it, in seconds of somebody's waiting."""
    rate_per_s: float = 0.0
    """Requests for its model, of late."""
    reload_s: float = 0.0
    """To load or wake it again."""
    ready_since: float | None = None
    """None while it starts."""
    kept_until: float = 0.0
    """Nobody takes its place before; on the same clock as `last_used`."""
    is_batch_only: bool = False
    """All its requests are of batches."""


@dataclass(frozen=True)
class Option:
    """A way to run a model: the same number of bytes on each of `tp_size` devices."""

    tp_size: int
    need_bytes: int

    def allows(self, room: DeviceRoom) -> bool:
        """Whether one of its ranks can be there at all."""
        return self.tp_size == 1 or not room.is_partition


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The model with a setting changed, which may fit where the model as it is does not."""

    kind: str
    """The setting, or several joined by `+`; of each kind the first one that fits is suggested."""
    text: str
    """What it would be, in words: `a context of 8192 tokens`."""
    command: str
    """What to type."""
    options: tuple[Option, ...]


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """What is to be placed, and where it may go. Devices are named by id or index."""

    model: str
    options: tuple[Option, ...]
    """In order of preference; each with a `tp_size` of its own."""
    devices: frozenset[str] = frozenset()
    """Those it may use; empty: any."""
    avoid: frozenset[str] = frozenset()
    """Those it may not use."""
    is_exclusive: bool = False
    """Shares its devices with nobody."""
    variants: Iterable[Variant] = ()
    """What could be suggested, of each kind the best first; read only where it does not fit."""

    def allows(self, room: DeviceRoom) -> bool:
        """Whether the model's settings let it use the device."""
        if not (self.devices or self.avoid):
            return True
        names = {room.id, str(room.index)}
        return not names & self.avoid and (not self.devices or bool(names & self.devices))


@dataclass(frozen=True)
class Place:
    """Start it there now; `len(devices)` is the tensor parallel size."""

    devices: tuple[DeviceRoom, ...]


@dataclass(frozen=True)
class Evict:
    """Stop these engines, then it fits there."""

    victims: tuple[Resident, ...]
    devices: tuple[DeviceRoom, ...]


@dataclass(frozen=True)
class Wait:
    """It will fit once these engines are idle or gone, or once a start is over."""

    reason: str
    residents: tuple[Resident, ...]
    devices: tuple[DeviceRoom, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Have:
    """What a device that the model may use has for it."""

    device: DeviceRoom
    most_bytes: int
    """With all gone that may go."""


class Holder(NamedTuple):
    """Memory that stays, on one device."""

    device: DeviceRoom
    model: str | None
    """None: processes that are not ours."""
    held_bytes: int
    reason: str
    """`pinned`, `always on`, `exclusive` or `other processes`."""


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """A change with which the planner does not refuse; it has tried."""

    kind: str
    text: str
    command: str
    request: PlanRequest
    """What it tried."""
    gone: frozenset[str] = frozenset()
    """Engines of other models that would be stopped."""


@dataclass(frozen=True)
class Refuse:
    """It cannot be placed, whatever leaves by itself."""

    message: str
    hint: str
    have: tuple[Have, ...] = ()
    holders: Iterable[Holder] = ()
    suggestions: tuple[Suggestion, ...] = ()


Plan = Place | Evict | Wait | Refuse
