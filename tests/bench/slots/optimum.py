"""What nobody could do better, who knew the whole trace: bounds, not schedules.

`most_served_s`: an upper bound on the seconds of work that clients in sessions can be served until
the horizon, by any policy, also one that starves whom it likes. The places in memory that models
share are the only thing that ties them together; with a price for a place at each time (Lagrange
multipliers) each model decides alone when it pays to be loaded, by dynamic programming over time.
For any prices, what all models gain together plus the places' worth is an upper bound (weak
duality: Everett, Operations Research 11, 1963); the prices are then bettered by subgradient steps
(Held, Wolfe, Crowder, Mathematical Programming 6, 1974).

`fewest_loads`: the least number of loads that serves requests in the order in which they come,
with as many places as the smallest models leave (Belady, IBM Systems Journal 5, 1966). Who makes
requests wait and serves them together may need fewer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench.slots.parts import ModelSpec, Trace

STEP_S = 5.0
"""Sessions and loads are multiples of it, so that nothing is lost by looking at these times."""
_STEPS = 60
_NEVER = float("-inf")


def places(trace: Trace) -> int:
    """How many ranks of models fit at the same time, at most."""
    smallest = min(model.need_bytes for model in trace.models)
    return sum(device.total_bytes // smallest for device in trace.devices)


def fewest_loads(models: Sequence[str], count: int) -> int:
    """Loads of requests for these models, in this order, with places for `count` of them."""
    next_use: dict[str, list[int]] = {}
    for index in reversed(range(len(models))):
        next_use.setdefault(models[index], []).append(index)
    loaded: set[str] = set()
    loads = 0
    for model in models:
        next_use[model].pop()
        if model in loaded:
            continue
        loads += 1
        if len(loaded) == count:
            loaded.remove(max(loaded, key=lambda each: (next_use[each] or [len(models)])[-1]))
        loaded.add(model)
    return loads


def most_served_s(trace: Trace, steps: int = _STEPS) -> float:
    """Upper bound on the work served in the trace's sessions. Raises ValueError off the grid."""
    count = places(trace)
    chatted_with = {session.model for session in trace.sessions}
    gains = [_gain(model, trace) for model in trace.models if model.name in chatted_with]
    # The last request of a session is answered whole, also after its client would have left.
    whole_s = sum(session.service_s for session in trace.sessions)
    prices = [0.0] * round(trace.horizon_s / STEP_S)
    best = float("inf")
    scale = 1.0
    since_best = 0
    for _ in range(steps):
        used = [0] * len(prices)
        total = whole_s + count * sum(prices)
        for gain in gains:
            value, held = gain.best(prices)
            total += value
            for first, last in held:
                for step in range(first, last):
                    used[step] += gain.ranks
        since_best = 0 if total < best - 1e-9 else since_best + 1
        best = min(best, total)
        if since_best >= 10:
            scale, since_best = scale / 2, 0
        excess = [now - count for now in used]
        prices = [
            max(price + scale * over, 0.0) for price, over in zip(prices, excess, strict=True)
        ]
    return best


@dataclass(frozen=True)
class _Gain:
    """What one model's sessions gain, in seconds of work, by the steps in which it is ready."""

    ranks: int
    load_steps: int
    on: list[float]
    """By step in which it is ready."""
    away: list[list[float]]
    """In an absence that begins with the step, by its length, up to the longest that counts."""

    def best(self, prices: list[float]) -> tuple[float, list[tuple[int, int]]]:
        """The largest gain less the price of its places; the steps in which it held them."""
        count, longest = len(prices), len(self.away[0]) - 1
        paid = [0.0]
        for price in prices:
            paid.append(paid[-1] + price * self.ranks)
        # value[step]: the best that ends with it ready (at 0: never loaded) at that step.
        value = [0.0] + [_NEVER] * count
        loaded_at, gone_at = [0] * (count + 1), [-1] * (count + 1)
        settled, settled_at = _NEVER, 0
        for step in range(1, count + 1):
            if step > 1:
                value[step] = value[step - 1] + self.on[step - 1] - prices[step - 1] * self.ranks
                loaded_at[step] = loaded_at[step - 1]
            far = step - max(longest, self.load_steps)
            if far >= 0 and value[far] + self.away[far][longest] > settled:
                settled, settled_at = value[far] + self.away[far][longest], far
            best, best_at = settled, settled_at
            for gone in range(max(far + 1, 0), step - self.load_steps + 1):
                fresh = value[gone] + self.away[gone][step - gone]
                if fresh > best:
                    best, best_at = fresh, gone
            if best > _NEVER:
                best -= paid[step] - paid[step - self.load_steps]
                if best > value[step]:
                    value[step], loaded_at[step], gone_at[step] = best, step, best_at
        ends = [
            value[step] + self.away[step][min(longest, count - step)] for step in range(count + 1)
        ]
        last = max(range(count + 1), key=ends.__getitem__)
        held, step = [], last
        while step > 0:
            ready = loaded_at[step]
            held.append((ready - self.load_steps, step))
            step = gone_at[ready]
        return ends[last], held


def _gain(model: ModelSpec, trace: Trace) -> _Gain:
    """A client's work is its share of a turn (an answer, then a pause), times the turns it makes.

    It goes on with its turn while the model is ready, and while it thinks also when it is not.
    """
    count = round(trace.horizon_s / STEP_S)
    sessions = [session for session in trace.sessions if session.model == model.name]
    longest = max((_ceil(session.think_s) for session in sessions), default=0)
    on = [0.0] * count
    away = [[0.0] * (longest + 1) for _ in range(count + 1)]
    for session in sessions:
        duty = session.service_s / (session.service_s + session.think_s)
        first, last = _steps(session.start), _steps(session.end)
        for step in range(first, last):
            on[step] += duty * STEP_S
        for step in range(first + 1, last):
            most = min(_ceil(session.think_s), last - step)
            for length in range(1, longest + 1):
                away[step][length] += duty * STEP_S * min(length, most)
    return _Gain(model.tp_size, _steps(model.load_s), on, away)


def _ceil(seconds: float) -> int:
    return math.ceil(seconds / STEP_S - 1e-9)


def _steps(seconds: float) -> int:
    steps = round(seconds / STEP_S)
    if abs(steps * STEP_S - seconds) > 1e-6:
        raise ValueError(f"{seconds} s is no multiple of {STEP_S} s")
    return steps
