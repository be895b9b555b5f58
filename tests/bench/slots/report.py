"""Numbers of one run, how they compare, and the table."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from tests.bench.slots.least_wait import least_p95_s
from tests.bench.slots.optimum import fewest_loads, most_served_s, places
from tests.bench.slots.parts import Trace
from tests.bench.slots.product import Appliance
from tests.bench.slots.world import Account, Policy

OURS = Appliance.name
PEERS = ("fifo", "lru")
SERVING_AT_LEAST = 0.85


@dataclass(frozen=True, kw_only=True)
class Result:
    """One policy on one trace. Waits of people, until the lease, in seconds."""

    policy: str
    loads: int
    requests: int
    """Asked; clients who wait for answers ask less where they wait longer."""
    answered: int
    loads_per_100: float
    """Per 100 requests that were answered."""
    wait_p50_s: float
    wait_p95_s: float
    wait_p99_s: float
    wait_max_s: float
    serving: float
    """Share of the devices' time until the horizon with an engine at work on them."""
    served_s: float
    """Seconds of work that requests got until the horizon."""
    refused: int
    never_served: int
    bound_checked: int = 0
    """Wishes that fell due."""
    bound_broken: int = 0
    bound_share: float = 0.0
    """The worst wait of a wish that fell due, as a share of its limit."""


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """What nobody could do better who knew the trace."""

    served_s: float | None
    """Upper bound; None where batches would take all that people do not."""
    loads_in_order: int
    """Of anyone who serves in the order of arrival."""
    wait_p95_s: float | None
    """Lower bound for whoever loads for somebody who waits; None where answers make questions."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How the product compares."""

    loads_by_peer: dict[str, float]
    """Its loads per answered request, as a share of the peer's."""
    p95_by_peer: dict[str, float]
    serving: float | None
    """Work that it served as a share of the upper bound."""
    equal: list[str]
    """Where it is no better than a peer, and no worse."""
    broken: list[str]
    """What must hold and does not."""


def result(trace: Trace, policy: Policy, account: Account) -> Result:
    """What a run gave."""
    bound = policy.bound if isinstance(policy, Appliance) else None
    answered = len(account.waits) - account.never_served
    waits = sorted(wait for wait, request in account.waits if not request.is_batch)
    return Result(
        policy=policy.name,
        loads=account.loads,
        requests=len(account.waits) + account.refused,
        answered=answered,
        loads_per_100=round(100 * account.loads / max(answered, 1), 2),
        wait_p50_s=_rank(waits, 0.5),
        wait_p95_s=_rank(waits, 0.95),
        wait_p99_s=_rank(waits, 0.99),
        wait_max_s=_rank(waits, 1.0),
        serving=round(sum(account.busy_s.values()) / (trace.horizon_s * len(trace.devices)), 4),
        served_s=round(account.served_s, 1),
        refused=account.refused,
        never_served=account.never_served,
        bound_checked=bound.checked if bound else 0,
        bound_broken=len(bound.broken) + len(bound.unserved()) if bound else 0,
        bound_share=round(bound.worst_share, 3) if bound else 0.0,
    )


def optimum(trace: Trace) -> Optimum:
    """Bounds on any policy."""
    at_once = sum(
        min(request.service_s, max(trace.horizon_s - request.at, 0.0)) for request in trace.requests
    )
    has_batches = any(session.is_batch for session in trace.sessions)
    served_s = None if has_batches else at_once + most_served_s(trace)
    asked = [(request.at, request.model) for request in trace.requests]
    asked += [
        (session.start + turn * (session.service_s + session.think_s), session.model)
        for session in trace.sessions
        for turn in range(
            math.ceil((session.end - session.start) / (session.service_s + session.think_s))
        )
    ]
    return Optimum(
        served_s=None if served_s is None else round(served_s, 1),
        loads_in_order=fewest_loads([model for _, model in sorted(asked)], places(trace)),
        wait_p95_s=least_p95_s(trace),
    )


def verdict(results: dict[str, Result], best: Optimum) -> Verdict:
    """The product against FIFO, LRU and the optimum; equal to a peer is as good as it."""
    ours = results[OURS]
    broken, equal = [], []
    for peer in PEERS:
        theirs = results[peer]
        if ours.loads_per_100 > theirs.loads_per_100:
            broken.append(f"more loads a request than {peer}")
        elif ours.loads_per_100 == theirs.loads_per_100:
            equal.append(f"as many loads a request as {peer}")
        if ours.wait_p95_s > theirs.wait_p95_s:
            broken.append(f"a longer p95 wait than {peer}")
        elif ours.wait_p95_s == theirs.wait_p95_s:
            equal.append(f"the p95 wait of {peer}")
    if ours.bound_broken:
        broken.append("the bound on waiting")
    if ours.refused or ours.never_served:
        broken.append("everybody served")
    serving = None if best.served_s is None else round(ours.served_s / best.served_s, 4)
    if serving is not None and serving < SERVING_AT_LEAST:
        broken.append(f"{SERVING_AT_LEAST:.0%} of the optimum's serving time")
    return Verdict(
        loads_by_peer={
            peer: _share(ours.loads_per_100, results[peer].loads_per_100) for peer in PEERS
        },
        p95_by_peer={peer: _share(ours.wait_p95_s, results[peer].wait_p95_s) for peer in PEERS},
        serving=serving,
        equal=equal,
        broken=broken,
    )


HEAD = (
    f"  {'policy':<10}{'loads':>6}{'per 100':>9}{'answered':>9}"
    + "".join(f"{name:>9}" for name in ("p50", "p95", "p99", "max", "serving", "work"))
    + f"{'requests':>9}{'lost':>6}"
)


def row(each: Result) -> str:
    """A line of the table."""
    waits = (each.wait_p50_s, each.wait_p95_s, each.wait_p99_s, each.wait_max_s)
    return (
        f"  {each.policy:<10}{each.loads:>6}{each.loads_per_100:>9.1f}{each.answered:>9}"
        + "".join(f"{wait:>9.1f}" for wait in waits)
        + f"{each.serving:>9.1%}{each.served_s:>9.0f}{each.requests:>9}"
        + f"{each.refused + each.never_served:>6}"
    )


def summary(ours: Result, best: Optimum, judged: Verdict) -> str:
    """What follows from the table."""
    peers = "; ".join(
        f"{judged.loads_by_peer[peer]:.0%} of {peer}'s loads a request,"
        f" {judged.p95_by_peer[peer]:.0%} of its p95"
        for peer in PEERS
    )
    lines = [f"  {OURS}: {peers}"]
    if judged.serving is not None:
        lines.append(f"  work served: {judged.serving:.1%} of what the optimum could at most")
    lines.append(f"  loads of the optimum in the order of arrival: {best.loads_in_order}")
    if best.wait_p95_s is not None:
        lines.append(f"  p95 of whoever loads for who waits: {best.wait_p95_s:.1f} s at least")
    lines.append(
        f"  bound on waiting: {ours.bound_checked} fell due, {ours.bound_broken} broke it,"
        f" at most {ours.bound_share:.0%} of it was used"
    )
    if judged.equal:
        lines.append(f"  equal: {', '.join(judged.equal)}")
    if judged.broken:
        lines.append(f"  DOES NOT HOLD: {', '.join(judged.broken)}")
    return "\n".join(lines)


def as_json(results: dict[str, Result], best: Optimum, judged: Verdict) -> dict[str, Any]:
    """One trace for `--json`."""
    return {
        "policies": {name: asdict(each) for name, each in results.items()},
        "optimum": asdict(best),
        "verdict": asdict(judged),
    }


def _rank(ordered: list[float], share: float) -> float:
    """Nearest rank of ascending values."""
    if not ordered:
        return 0.0
    return round(ordered[max(math.ceil(len(ordered) * share), 1) - 1], 2)


def _share(ours: float, theirs: float) -> float:
    if theirs == 0:
        return 1.0 if ours == 0 else math.inf
    return round(ours / theirs, 3)
