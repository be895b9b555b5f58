"""The waiting bound, computed for each wish when it falls due, and checked when it is served.

A wish is due once its oldest request has waited `max_wait_s` (batches: `batch_max_wait_s`). Due
wishes are served by age, so what may still come before are one turn of each model that had waited
longer then, or that was just being loaded, and its own turn:

    wait <= max_wait + residence now + turn(itself) + sum of turn(model) over those before
    turn(model) = drain + release + load(model) + residence

with `drain` the longest that a request takes, `release` until memory is back, `residence` the time
for which nobody takes a fresh engine's place, and a second for the clock of the decision. If its
own engine was on its way out when it fell due, that has one more drain and release to go.
"""

from dataclasses import dataclass, field

from appliance.slots.decision import Policy
from tests.bench.slots.world import TICK_S, State, World


@dataclass
class BoundWatch:
    """Limits of the wishes that are due, and how near they were come."""

    policy: Policy
    checked: int = 0
    broken: list[str] = field(default_factory=list)
    worst_share: float = 0.0
    """The largest wait, as a share of its limit, of those that fell due."""
    _limits: dict[str, tuple[float, float]] = field(default_factory=dict)
    """By model: when its oldest request came, and how long that may wait."""

    def look(self, world: World) -> None:
        """Note the limit of each wish that has just fallen due."""
        for model, queue in world.queues.items():
            if not queue or model in self._limits:
                continue
            oldest = queue[0]
            due_s = self._due_s(all(request.is_batch for request in queue))
            if oldest.is_batch and not all(request.is_batch for request in queue):
                due_s = self.policy.batch_max_wait_s + self.policy.max_wait_s
            if world.now - oldest.at >= due_s:
                self._limits[model] = (oldest.at, due_s + self._turns_s(world, model))

    def served(self, world: World, model: str) -> None:
        """All who wait for the model are granted its engine now."""
        since, limit_s = self._limits.pop(model, (world.now, 0.0))
        if limit_s == 0.0:
            return
        waited_s = world.now - since
        self.checked += 1
        self.worst_share = max(self.worst_share, waited_s / limit_s)
        if waited_s > limit_s:
            self.broken.append(
                f"{model} waited {waited_s:.1f} s at {world.now:.1f}, more than {limit_s:.1f} s"
            )

    def unserved(self) -> list[str]:
        """Wishes that fell due and were never served."""
        return sorted(self._limits)

    def _due_s(self, is_batch: bool) -> float:
        return self.policy.batch_max_wait_s if is_batch else self.policy.max_wait_s

    def _turns_s(self, world: World, model: str) -> float:
        since = world.queues[model][0].at
        before = {
            name
            for name, queue in world.queues.items()
            if queue and name != model and queue[0].at <= since
        }
        before |= {
            name
            for name, engine in world.engines.items()
            if engine.state is State.STARTING and name != model
        }
        own = world.engines.get(model)
        leaving_s = 0.0
        if own is not None and own.is_leaving:
            leaving_s = world.trace.longest_service_s + world.trace.release_s
        residence_s = self._residence_s(world)
        turns = (self._turn_s(world, name, residence_s) for name in (*before, model))
        return residence_s + leaving_s + sum(turns)

    def _turn_s(self, world: World, model: str, residence_s: float) -> float:
        trace = world.trace
        load_s = world.specs[model].load_s
        return trace.longest_service_s + trace.release_s + load_s + residence_s + TICK_S

    def _residence_s(self, world: World) -> float:
        has_batches = any(session.is_batch for session in world.trace.sessions) or any(
            request.is_batch for request in world.trace.requests
        )
        if has_batches:
            return max(self.policy.min_loaded_s, self.policy.batch_turn_s)
        return self.policy.min_loaded_s
