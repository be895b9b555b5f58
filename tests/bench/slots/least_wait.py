"""How low the p95 wait of a trace can be, if models are loaded for somebody who waits.

A bound on every schedule, also one that knows the trace and starves whom it likes, as long as each
load begins while somebody waits for the model. Who loads ahead of the requests is not bounded.

A request is late for `wait_s` if a load of its model takes that long and its own began after it
came. Let there be n requests for such models, u of them late, and r loads. Each load began for a
late request, and no two for the same: r <= u. A request that is not late either is the first after
the beginning of its load, of which there is one for each load, or its engine was there all the time
since the request before it, through the gap between the two. With g the most such gaps that memory
can hold, n - u <= g + r <= g + u, so that u >= (n - g) / 2.

Where all models have one size and no engine goes by itself, the release of memory counts too, for
who unloads an engine only for a model that somebody waits for and that gets the place. Each load
then begins with a release but the first ones, into memory that was free: r <= u + places, and
u >= (n - g - places) / 2.
"""

import math
from collections.abc import Iterable
from itertools import pairwise

from tests.bench.slots.parts import ModelSpec, Trace

_RANK = 0.95


def least_p95_s(trace: Trace) -> float | None:
    """The lower bound; None where clients ask later if they are answered later."""
    if trace.sessions:
        return None
    count = len(trace.requests)
    may_be_late = count - max(math.ceil(count * _RANK), 1)
    waits = {_swap_s(trace, model) for model in trace.models}
    certain = [wait_s for wait_s in waits if fewest_late(trace, wait_s) > may_be_late]
    return max(certain, default=0.0)


def fewest_late(trace: Trace, wait_s: float) -> int:
    """So many requests wait that long at least."""
    slow = {model.name: model for model in trace.models if _swap_s(trace, model) >= wait_s}
    came: dict[str, list[float]] = {name: [] for name in slow}
    for request in trace.requests:
        if request.model in slow:
            came[request.model].append(request.at)
    gaps: list[tuple[float, float]] = []
    for times in came.values():
        times.sort()
        gaps += pairwise(times)
    smallest = min((model.need_bytes for model in slow.values()), default=1)
    places = sum(device.total_bytes // smallest for device in trace.devices)
    free = places if _counts_release(trace) else 0
    asked = sum(len(times) for times in came.values())
    return max(math.ceil((asked - most_held(gaps, places) - free) / 2), 0)


def most_held(gaps: Iterable[tuple[float, float]], places: int) -> int:
    """The most of these that overlap at no more than so many at any time; ends are outside.

    Of too many that overlap the one that ends last goes (Faigle and Nawijn, Discrete Applied
    Mathematics 58, 1995).
    """
    held: list[float] = []
    count = 0
    for start, end in sorted(gaps):
        count += 1
        if end == start:
            continue
        held = [each for each in held if each > start]
        held.append(end)
        if len(held) > places:
            held.remove(max(held))
            count -= 1
    return count


def _swap_s(trace: Trace, model: ModelSpec) -> float:
    return model.load_s + (trace.release_s if _counts_release(trace) else 0.0)


def _counts_release(trace: Trace) -> bool:
    is_one_size = len({(model.need_bytes, model.tp_size) for model in trace.models}) == 1
    return is_one_size and trace.idle_timeout_s is None
