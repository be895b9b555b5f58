"""The product's own decision in the simulated world: the real `decide` and the real planner.

What is around them here does what the server's scheduler does: gates are taken back when nobody
wants the memory any more, and drained engines go when their last request is over.
"""

from appliance.slots.arrivals import ArrivalRate
from appliance.slots.decision import Drain, GiveUp, Policy, Start, Stop, Wish, decide
from appliance.slots.eviction import expected_cost_s
from appliance.slots.plans import DeviceRoom, Option, PlanRequest, Resident
from tests.bench.slots.bound import BoundWatch
from tests.bench.slots.parts import ModelSpec, Request
from tests.bench.slots.world import Engine, Order, State, World


class Appliance:
    """Carries out what `decide` says."""

    name = "appliance"
    order = Order.BY_MODEL

    def __init__(self, policy: Policy | None = None) -> None:
        self.policy = policy or Policy()
        self._rates: dict[str, ArrivalRate] = {}
        self.bound = BoundWatch(self.policy)
        self._again_at: float | None = None

    def watch(self, request: Request) -> None:
        """A request came; how often people ask for its model is measured."""
        if not request.is_batch:
            self._rates.setdefault(request.model, ArrivalRate()).add(request.at)

    def serves(self, world: World, model: str) -> None:
        """Those who wait are granted their engine."""
        self.bound.served(world, model)

    def again_at(self) -> float | None:
        """What the last decision said."""
        return self._again_at

    def act(self, world: World) -> bool:
        """One step of the scheduler."""
        self.bound.look(world)
        has_acted = self._take_back_gates(world)
        decision = decide(
            [self.wish(world, model) for model in world.wished()],
            rooms(world),
            [self.resident(world, engine) for engine in world.engines.values()],
            self.policy,
            world.now,
        )
        self._again_at = decision.again_at
        for action in decision.actions:
            match action:
                case Start(model, devices, turn_s):
                    world.start(model, [device.id for device in devices], turn_s)
                    has_acted = True
                case Stop(_, victims):
                    for victim in victims:
                        world.stop(victim.model)
                    has_acted = True
                case Drain(model, residents):
                    for resident in residents:
                        engine = world.engines.get(resident.model)
                        if engine is not None and engine.takes_requests:
                            world.drain(resident.model, model)
                            has_acted = True
                case GiveUp(model, _):
                    world.give_up(model)
                    has_acted = True
        return has_acted

    def wish(self, world: World, model: str) -> Wish:
        """Who waits for a model that has no engine."""
        queue = world.queues[model]
        people = [request.at for request in queue if not request.is_batch]
        return Wish(
            request=plan_request(world.specs[model]),
            since=people[0] if people else queue[0].at,
            waiting=len(people),
            waited_s=sum(world.now - at for at in people),
            switch_s=world.specs[model].load_s,
        )

    def resident(self, world: World, engine: Engine) -> Resident:
        """An engine as the board shows it to the decision."""
        model = engine.spec.name
        rates = self._rates.setdefault(model, ArrivalRate())
        rate = rates.per_second(world.now)
        is_in_turn = engine.in_flight > 0 or engine.turn_s > self.policy.min_loaded_s
        kept_s = engine.turn_s if is_in_turn else 0.0
        return Resident(
            engine_id=engine.id,
            model=model,
            bytes_by_device=dict.fromkeys(engine.devices, engine.spec.need_bytes),
            last_used=engine.last_used,
            is_busy=engine.is_busy,
            is_pinned=model in world.trace.pinned,
            is_leaving=engine.is_leaving,
            cost_s=expected_cost_s(
                engine.spec.load_s,
                rate,
                world.now - engine.last_used,
                next_in_s=rates.next_in_s(world.now),
            ),
            rate_per_s=rate,
            reload_s=engine.spec.load_s,
            ready_since=engine.ready_at,
            kept_until=(engine.ready_at or world.now) + kept_s,
            is_batch_only=0 < engine.in_flight == engine.batch_in_flight,
        )

    def _take_back_gates(self, world: World) -> bool:
        wished = {model for model, queue in world.queues.items() if queue}
        nobodys = [
            model
            for model, engine in world.engines.items()
            if engine.is_draining
            and engine.state is State.READY
            and engine.drained_for not in wished
        ]
        for model in nobodys:
            world.undrain(model)
        return bool(nobodys)


def rooms(world: World) -> list[DeviceRoom]:
    """The devices for the planner."""
    return [
        DeviceRoom(
            id=device.id,
            index=device.index,
            total_bytes=device.total_bytes,
            free_bytes=world.free_bytes(device.id),
            is_starting=world.is_starting_on(device.id),
        )
        for device in world.trace.devices
    ]


def plan_request(spec: ModelSpec) -> PlanRequest:
    """What the planner is asked."""
    return PlanRequest(model=spec.name, options=(Option(spec.tp_size, spec.need_bytes),))
