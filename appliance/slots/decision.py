"""Who gets devices next, who gives them up, who waits and why. Pure.

All models at once, over plain data: the scheduler carries the actions out, the simulator too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from appliance.slots.planner import (
    DeviceRoom,
    Evict,
    Place,
    PlanRequest,
    Refuse,
    Resident,
    Wait,
    plan,
)


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The owner's bounds, in seconds."""

    max_wait_s: float = 15.0
    """After this a wish of people is due: busy engines are drained for it."""
    batch_max_wait_s: float = 900.0
    """The same for a wish that only batches have."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """A model that somebody wants and that has no engine. Times are of one monotonic clock."""

    request: PlanRequest
    since: float
    """When the oldest of those who wait came."""
    waiting: int = 1
    """Requests of people; a load by hand counts as one."""
    waited_s: float = 0.0
    """Waiting of all of them together."""
    switch_s: float = 10.0
    """To load or wake it, as far as known."""

    @property
    def model(self) -> str:
        """Its name."""
        return self.request.model

    @property
    def is_for_people(self) -> bool:
        """Whether not only batches want it."""
        return self.waiting > 0


@dataclass(frozen=True)
class Start:
    """Load it there now."""

    model: str
    devices: tuple[DeviceRoom, ...]


@dataclass(frozen=True)
class Stop:
    """These idle engines go, for the model's sake."""

    model: str
    victims: tuple[Resident, ...]


@dataclass(frozen=True)
class Drain:
    """These busy engines take no further requests, for the model's sake."""

    model: str
    residents: tuple[Resident, ...]


@dataclass(frozen=True)
class Hold:
    """It waits, and why."""

    model: str
    reason: str


@dataclass(frozen=True)
class GiveUp:
    """It cannot be placed."""

    model: str
    refusal: Refuse


Action = Start | Stop | Drain | Hold | GiveUp


@dataclass(frozen=True)
class Decision:
    """What to do now; nothing changes by itself before `again_at` (None: never)."""

    actions: tuple[Action, ...]
    again_at: float | None = None


def decide(
    wishes: Sequence[Wish],
    rooms: Sequence[DeviceRoom],
    residents: Sequence[Resident],
    policy: Policy,
    now: float,
) -> Decision:
    """Actions in the order in which they are to be done. Deterministic."""
    actions: list[Action] = []
    for wish in sorted(wishes, key=lambda each: _turn(each, policy, now)):
        decision = plan(rooms, residents, wish.request)
        match decision:
            case Place(devices):
                actions.append(Start(wish.model, devices))
                rooms = _claimed(rooms, devices)
            case Evict(victims, devices):
                actions.append(Stop(wish.model, victims))
                rooms = _claimed(rooms, devices)
                gone = {victim.engine_id for victim in victims}
                residents = [
                    replace(each, is_leaving=each.is_leaving or each.engine_id in gone)
                    for each in residents
                ]
            case Wait(reason, busy, devices):
                actions.append(Hold(wish.model, reason))
                if _is_due(wish, policy, now):
                    actions.append(Drain(wish.model, busy))
                rooms = _claimed(rooms, devices)
            case Refuse():
                actions.append(GiveUp(wish.model, decision))
    return Decision(tuple(actions))


def _turn(wish: Wish, policy: Policy, now: float) -> tuple[bool, bool, float, str]:
    is_due = _is_due(wish, policy, now)
    return (not is_due, not (is_due or wish.is_for_people), wish.since, wish.model)


def _is_due(wish: Wish, policy: Policy, now: float) -> bool:
    bound_s = policy.max_wait_s if wish.is_for_people else policy.batch_max_wait_s
    return now - wish.since >= bound_s


def _claimed(rooms: Sequence[DeviceRoom], devices: tuple[DeviceRoom, ...]) -> list[DeviceRoom]:
    """No other start there in this round."""
    ids = {room.id for room in devices}
    return [replace(room, is_starting=True) if room.id in ids else room for room in rooms]
