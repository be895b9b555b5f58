"""What others do: FIFO and LRU, and a stronger form of each.

The stronger forms grant at once what is loaded, and drain at once what is busy; so the product is
compared with them in when it swaps and whom it evicts, and in nothing else. In all but the strict
FIFO those who wait for the same model share one load.
"""

from itertools import combinations

from tests.bench.slots.parts import Request
from tests.bench.slots.world import Engine, Order, State, World


class LeastRecentlyUsed:
    """Each missing model is loaded as soon as idle engines make room; the oldest of them go.

    Busy engines are waited for until they are idle.
    """

    name = "lru-join"
    order = Order.BY_MODEL
    drains = False
    at_once = 10_000
    """Missing models that are looked at, the one that waited longest first."""

    def again_at(self) -> float | None:
        """It looks when something happens."""
        return None

    def watch(self, request: Request) -> None:
        """It does not look at the arrivals."""

    def serves(self, world: World, model: str) -> None:
        """It keeps no account of who waits."""

    def act(self, world: World) -> bool:
        """Serve the wishes by age; no two want the same device."""
        if self.order is not Order.BY_MODEL and world.head() in world.engines:
            return False
        has_acted = False
        promised: set[str] = set()
        wished = world.wished()
        if not wished:
            for model, engine in list(world.engines.items()):
                if engine.is_draining and engine.state is State.READY:
                    world.undrain(model)
                    has_acted = True
        for model in wished[: self.at_once]:
            group, acted = self._serve(world, model, promised)
            has_acted = has_acted or acted
            promised |= group
        return has_acted

    def _serve(self, world: World, model: str, promised: set[str]) -> tuple[set[str], bool]:
        groups = self._groups(world, model, promised)
        if not groups:
            return set(), False
        for group in groups:
            if not _lacking(world, model, group, ()):
                if any(world.is_starting_on(device) for device in group):
                    continue
                world.start(model, group)
                return set(), True
        victims, group = min(
            ((_victims(world, model, group), group) for group in groups),
            key=lambda each: _loss(each[0], each[1]),
        )
        return set(group), self._make_room(world, model, victims)

    def _groups(self, world: World, model: str, promised: set[str]) -> list[tuple[str, ...]]:
        """Devices that could have room for it, if all that may go went."""
        spec = world.specs[model]
        free = [device.id for device in world.trace.devices if device.id not in promised]
        return [
            group
            for group in combinations(free, spec.tp_size)
            if _victims(world, model, group) is not None
        ]

    def _make_room(self, world: World, model: str, victims: list[Engine] | None) -> bool:
        has_acted = False
        for victim in victims or ():
            if victim.is_leaving or victim.state is not State.READY:
                continue
            if victim.in_flight == 0:
                world.stop(victim.spec.name)
                has_acted = True
            elif self.drains:
                world.drain(victim.spec.name, model)
                has_acted = True
        return has_acted


class LeastRecentlyUsedDraining(LeastRecentlyUsed):
    """The same; if no idle ones make room, busy ones take no further requests and go when idle."""

    name = "lru-drain"
    drains = True


class LeastRecentlyUsedInOrder(LeastRecentlyUsed):
    """LRU with one queue: its head waits for an idle victim, and all others behind it.

    A load does not hold the queue up: those behind the head are looked at as soon as it began, and
    who wants the same model joins.
    """

    name = "lru"
    order = Order.DISPATCHED
    at_once = 1


class FirstComeFirstServed(LeastRecentlyUsed):
    """One queue: the head gets its model loaded, and nobody overtakes it, loaded or not."""

    name = "fifo"
    order = Order.STRICT
    at_once = 1


class FirstComeFirstLoaded(LeastRecentlyUsed):
    """Swaps in the order of arrival, one at a time; what is loaded is granted at once."""

    name = "fifo-swap"
    at_once = 1
    drains = True

    def act(self, world: World) -> bool:
        """While the head's model loads, nobody else's turn has come."""
        if any(engine.state is State.STARTING for engine in world.engines.values()):
            return False
        return super().act(world)


def _victims(world: World, model: str, group: tuple[str, ...]) -> list[Engine] | None:
    """Those that leave already, idle ones, then busy ones, until it fits; None if it cannot."""
    there = [
        engine
        for engine in world.engines.values()
        if set(engine.devices) & set(group) and engine.spec.name not in world.trace.pinned
    ]
    there.sort(key=lambda each: (not each.is_leaving, each.is_busy, each.last_used, each.id))
    chosen: list[Engine] = []
    for engine in there:
        if not (lacking := _lacking(world, model, group, chosen)):
            break
        if lacking & set(engine.devices):
            chosen.append(engine)
    return None if _lacking(world, model, group, chosen) else chosen


def _loss(victims: list[Engine] | None, group: tuple[str, ...]) -> tuple[object, ...]:
    chosen = [victim for victim in victims or () if not victim.is_leaving]
    return (
        any(victim.state is State.STARTING for victim in chosen),
        any(victim.is_busy for victim in chosen),
        max((victim.last_used for victim in chosen), default=0.0),
        group,
    )


def _lacking(
    world: World, model: str, group: tuple[str, ...], gone: list[Engine] | tuple[Engine, ...]
) -> set[str]:
    need = world.specs[model].need_bytes
    return {
        device
        for device in group
        if world.free_bytes(device)
        + sum(engine.spec.need_bytes for engine in gone if device in engine.devices)
        < need
    }
