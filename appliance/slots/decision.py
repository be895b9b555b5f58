"""Who gets devices next, who gives them up, who waits and why. Pure.

All models at once, over plain data: the scheduler carries the actions out, the simulator too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from appliance.slots.planner import plan
from appliance.slots.plans import DeviceRoom, Evict, Place, PlanRequest, Refuse, Resident, Wait

# Requests of people that a batch may make wait, as expected.
_BATCH_MAY_DISTURB = 0.1


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The owner's bounds, in seconds."""

    max_wait_s: float = 30.0
    """After this a wish of people is due: busy engines are drained for it."""
    batch_max_wait_s: float = 900.0
    """The same for a wish that only batches have."""
    min_loaded_s: float = 2.0
    """An engine with work keeps its place for so long."""
    batch_turn_s: float = 60.0
    """The same for one that a batch has waited for until it was due."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """A model that somebody wants and whose engine is not there, or sleeps.

    Times are of one monotonic clock.
    """

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
    turn_s: float = 0.0
    """For how long, once it is ready and has work, nobody takes its place."""


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
    round_ = _Round(rooms, residents, policy, now)
    for wish in sorted(wishes, key=round_.turn):
        round_.serve(wish)
    return Decision(tuple(round_.actions), min(round_.again, default=None))


class _Round:
    """One pass over all wishes; what earlier ones were promised is not there for later ones."""

    def __init__(
        self,
        rooms: Sequence[DeviceRoom],
        residents: Sequence[Resident],
        policy: Policy,
        now: float,
    ) -> None:
        self._rooms = list(rooms)
        self._residents = list(residents)
        self._policy = policy
        self._now = now
        self._promised: dict[str, str] = {}
        """Devices that a model of this round is to get."""
        self.actions: list[Action] = []
        self.again: list[float] = []

    def turn(self, wish: Wish) -> tuple[bool, bool, float, str]:
        """Who is due comes first, by age; then people, by age; then batches."""
        is_due = self._is_due(wish)
        return (not is_due, not (is_due or wish.is_for_people), wish.since, wish.model)

    def serve(self, wish: Wish) -> None:
        """Act on one wish."""
        # Its own engine, which sleeps, is no victim of its own wish.
        others = [each for each in self._residents if each.model != wish.model]
        seen = [self._as_seen_by(wish, each) for each in others]
        decision = plan(self._rooms, seen, wish.request)
        match decision:
            case Place(devices):
                self._promise(wish, devices)
                self.actions.append(Start(wish.model, devices, self._turn_s(wish)))
            case Refuse():
                self.actions.append(GiveUp(wish.model, decision))
            case Evict(victims, devices):
                self._take_from(wish, victims, devices, "")
            case Wait(reason, residents, devices):
                movable = tuple(each for each in residents if not each.is_leaving)
                if movable:
                    self._take_from(wish, movable, devices, reason)
                else:
                    self._hold(wish, reason)
                    # Nobody knows when a broken device is back: the others go on serving.
                    if all(room.is_usable for room in devices):
                        self._promise(wish, devices)

    def _take_from(
        self,
        wish: Wish,
        victims: tuple[Resident, ...],
        devices: tuple[DeviceRoom, ...],
        reason: str,
    ) -> None:
        """Others would have to go for it: now, later, or not for this one."""
        before = next(
            (self._promised[room.id] for room in devices if room.id in self._promised), ""
        )
        if before:
            self._hold(wish, f"waits for its turn behind {before}")
            return
        own = {each.engine_id: each for each in self._residents}
        victims = tuple(own[victim.engine_id] for victim in victims)
        names = ", ".join(sorted({victim.model for victim in victims}))
        is_due = self._is_due(wish)
        if not is_due:
            self._look_again(wish.since + self._bound_s(wish))
        kept_until = max(victim.kept_until for victim in victims)
        if not is_due and not self._outweighs(wish, victims):
            self._hold(wish, reason or f"waits while {names} is in use")
            return
        self._promise(wish, devices)
        if kept_until > self._now:
            self._look_again(kept_until)
            self._hold(wish, reason or f"waits while {names} is in use")
            return
        busy = tuple(victim for victim in victims if victim.is_busy)
        idle = tuple(victim for victim in victims if not victim.is_busy)
        self._hold(
            wish,
            f"waits for the last requests of {_names(busy)}"
            if busy
            else f"waits until {names} has given its memory back",
        )
        if busy:
            self.actions.append(Drain(wish.model, busy))
        if idle:
            self.actions.append(Stop(wish.model, idle))
        gone = {victim.engine_id for victim in victims}
        self._residents = [
            replace(each, is_leaving=True) if each.engine_id in gone else each
            for each in self._residents
        ]

    def _outweighs(self, wish: Wish, victims: Sequence[Resident]) -> bool:
        """Whether those who wait count for more than those whom the swap would make wait.

        While the wish is loaded, and then the victim again, requests come for the victim: they
        would wait. A queue of polling theory is changed in the same way: by what each side loses
        per second ("Polling Systems", Takagi, 1986).
        """
        if not wish.is_for_people:
            turn_s = self._policy.batch_turn_s
            coming = sum(
                victim.rate_per_s * (wish.switch_s + turn_s + victim.reload_s) for victim in victims
            )
            return coming < _BATCH_MAY_DISTURB and not any(v.is_busy for v in victims)
        people = [victim for victim in victims if not victim.is_batch_only]
        if any(victim.is_busy for victim in people):
            # An idle moment comes sooner than its end: draining it would make others wait, too.
            return False
        coming = sum(victim.rate_per_s * (wish.switch_s + victim.reload_s) for victim in people)
        pressure = wish.waiting + wish.waited_s / max(wish.switch_s, 1.0)
        if pressure >= coming:
            return True
        # The time of those who wait passes for each of them.
        left = (coming - pressure) * max(wish.switch_s, 1.0) / wish.waiting
        self._look_again(self._now + left)
        return False

    def _as_seen_by(self, wish: Wish, resident: Resident) -> Resident:
        """For people, an engine that works for batches alone is not in the way."""
        if wish.is_for_people and resident.is_batch_only and resident.ready_since is not None:
            return replace(resident, is_busy=False, cost_s=0.0)
        return resident

    def _turn_s(self, wish: Wish) -> float:
        is_batch_due = self._is_due(wish) and not wish.is_for_people
        return self._policy.batch_turn_s if is_batch_due else self._policy.min_loaded_s

    def _is_due(self, wish: Wish) -> bool:
        return self._now - wish.since >= self._bound_s(wish)

    def _bound_s(self, wish: Wish) -> float:
        return self._policy.max_wait_s if wish.is_for_people else self._policy.batch_max_wait_s

    def _promise(self, wish: Wish, devices: tuple[DeviceRoom, ...]) -> None:
        """No other start there in this round."""
        ids = {room.id for room in devices}
        self._promised.update(dict.fromkeys(ids, wish.model))
        self._rooms = [
            replace(room, is_starting=True) if room.id in ids else room for room in self._rooms
        ]

    def _hold(self, wish: Wish, reason: str) -> None:
        self.actions.append(Hold(wish.model, reason))

    def _look_again(self, at: float) -> None:
        if at > self._now:
            self.again.append(at)


def _names(residents: Sequence[Resident]) -> str:
    return ", ".join(sorted({resident.model for resident in residents}))
