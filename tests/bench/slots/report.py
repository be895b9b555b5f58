"""Numbers of one run, and the table."""

import math
from dataclasses import dataclass

from tests.bench.slots.parts import Trace
from tests.bench.slots.product import Appliance
from tests.bench.slots.world import Account, Policy


@dataclass(frozen=True, kw_only=True)
class Result:
    """One policy on one trace. Waits in seconds."""

    policy: str
    loads: int
    requests: int
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


def result(trace: Trace, policy: Policy, account: Account) -> Result:
    """What a run gave."""
    bound = policy.bound if isinstance(policy, Appliance) else None
    waits = sorted(wait for wait, request in account.waits if not request.is_batch)
    return Result(
        policy=policy.name,
        loads=account.loads,
        requests=len(account.waits),
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


def _rank(ordered: list[float], share: float) -> float:
    """Nearest rank of ascending values."""
    if not ordered:
        return 0.0
    return round(ordered[max(math.ceil(len(ordered) * share), 1) - 1], 2)


def row(each: Result) -> str:
    """A line of the table."""
    return (
        f"  {each.policy:<11}{each.loads:>6}{each.wait_p50_s:>9.1f}{each.wait_p95_s:>9.1f}"
        f"{each.wait_p99_s:>9.1f}{each.wait_max_s:>9.1f}{each.serving:>9.1%}"
        f"{each.served_s:>11.0f}{each.requests:>8}{each.refused + each.never_served:>6}"
        + (
            f"  bound: {each.bound_broken} of {each.bound_checked} broken,"
            f" at most {each.bound_share:.0%} of it"
            if each.bound_checked
            else ""
        )
    )


HEAD = (
    f"  {'policy':<11}{'loads':>6}{'p50':>9}{'p95':>9}{'p99':>9}{'max':>9}{'serving':>9}"
    f"{'work s':>11}{'reqs':>8}{'lost':>6}"
)
