"""Who is loaded when: the product's decision against FIFO, LRU and the offline optimum.

Run by `scripts/bench slots [--trace NAME] [--seed N] [--json]`; with `--json` the last line is one
object.
"""

import argparse
import json

from tests.bench.slots.baselines import (
    FirstComeFirstLoaded,
    FirstComeFirstServed,
    LeastRecentlyUsed,
    LeastRecentlyUsedDraining,
    LeastRecentlyUsedInOrder,
)
from tests.bench.slots.parts import Trace
from tests.bench.slots.product import Appliance
from tests.bench.slots.report import (
    HEAD,
    OURS,
    Result,
    as_json,
    optimum,
    result,
    row,
    summary,
    verdict,
)
from tests.bench.slots.traces import SEED, all_traces
from tests.bench.slots.world import Policy, World


def measure(trace: Trace) -> dict[str, Result]:
    """All policies on one trace, the product's first."""
    policies: list[Policy] = [
        Appliance(),
        FirstComeFirstServed(),
        LeastRecentlyUsedInOrder(),
        FirstComeFirstLoaded(),
        LeastRecentlyUsed(),
        LeastRecentlyUsedDraining(),
    ]
    return {policy.name: result(trace, policy, World(trace, policy).run()) for policy in policies}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="scripts/bench slots")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    parser.add_argument("--trace", default="", help="only the traces whose names begin so")
    parser.add_argument("--seed", type=int, default=SEED, help="other requests of the same kind")
    arguments = parser.parse_args()
    report = {}
    for trace in all_traces(arguments.seed):
        if not trace.name.startswith(arguments.trace):
            continue
        print(f"{trace.name}: {trace.about}\n{HEAD}")
        results = measure(trace)
        for each in results.values():
            print(row(each))
        best = optimum(trace)
        judged = verdict(results, best)
        print(summary(results[OURS], best, judged), flush=True)
        report[trace.name] = as_json(results, best, judged)
    if arguments.json:
        print(json.dumps({"traces": report}))


if __name__ == "__main__":
    main()
