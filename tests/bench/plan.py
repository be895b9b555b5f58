"""One decision of the planner on a large machine: 64 GPUs with 1,000 engines.

Eight islands of eight GPUs with NVLink. For each kind of answer and several models: milliseconds
of one call to `plan`, median, 99th percentile and worst, and the ratio of the median to that of a
plain pass over all engines, which any planner has to make at least.
Run by `scripts/bench plan [--calls N] [--json]`; the last line of `--json` is one object.
"""

import argparse
import gc
import json
import random
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from appliance.slots.planner import plan
from appliance.slots.plans import (
    DeviceRoom,
    Option,
    Plan,
    PlanRequest,
    Refuse,
    Resident,
    Variant,
)
from appliance.units import GIB, MIB

GPUS = 64
ENGINES = 1000
ISLAND = 8
GPU_BYTES = 80 * GIB
CALLS = 300


@dataclass(frozen=True)
class Case:
    name: str
    answer: str
    rooms: list[DeviceRoom]
    residents: list[Resident]
    request: PlanRequest
    lists_holders: bool = False
    """Reads who holds the memory of each device, as `load --dry-run` does."""

    def answer_it(self) -> Plan:
        """What is measured."""
        decision = plan(self.rooms, self.residents, self.request)
        if self.lists_holders and isinstance(decision, Refuse):
            deque(decision.holders, maxlen=0)
        return decision


def engines(dice: random.Random, *, spanning: float, idle_cost: bool) -> list[Resident]:
    """Sixteen on each GPU; some span two of an island, and take 1 to 5 GiB on each."""
    found = []
    for number in range(ENGINES):
        gpu = number % GPUS
        devices = {gpu}
        if dice.random() < spanning:
            devices.add(gpu // ISLAND * ISLAND + dice.randrange(ISLAND))
        size = dice.randrange(1 * GIB, 5 * GIB, 16 * MIB)
        found.append(
            Resident(
                engine_id=f"eng_{number:04}",
                model=f"model-{number}",
                bytes_by_device={f"GPU-{each}": size for each in devices},
                last_used=dice.random() * 3600,
                cost_s=dice.random() * 60 if idle_cost else 0.0,
                reload_s=60.0,
            )
        )
    return found


def gpus(residents: list[Resident], free_bytes: int) -> list[DeviceRoom]:
    """With exactly so much free on each."""
    held = dict.fromkeys((f"GPU-{index}" for index in range(GPUS)), 0)
    for resident in residents:
        for device, size in resident.bytes_by_device.items():
            held[device] += size
    rooms = []
    for index in range(GPUS):
        first = index // ISLAND * ISLAND
        peers = range(first, first + ISLAND)
        links = {f"GPU-{peer}": 0 for peer in peers if peer != index}
        links |= {f"GPU-{peer}": 3 for peer in range(GPUS) if peer not in peers}
        device = f"GPU-{index}"
        total = max(GPU_BYTES, held[device] + free_bytes)
        rooms.append(
            DeviceRoom(
                id=device, index=index, total_bytes=total, free_bytes=free_bytes, links=links
            )
        )
    return rooms


def request(*options: tuple[int, int], **more: object) -> PlanRequest:
    return PlanRequest(
        model="wanted",
        options=tuple(Option(tp_size, need * GIB) for tp_size, need in options),
        **more,  # type: ignore[arg-type]
    )


def variants() -> tuple[Variant, ...]:
    """As many as a model with a long context has."""
    return tuple(
        Variant(
            kind=kind,
            text=f"with {kind} {step}",
            command=f"appliance set wanted --{kind} {step}",
            options=(Option(1, 70 * GIB - step * GIB // 2), Option(2, 40 * GIB)),
        )
        for kind in ("context", "kv-cache-dtype", "tp")
        for step in range(8)
    )


def cases() -> list[Case]:
    """Each kind of answer, for one GPU, for four, and for as many as it takes."""
    dice = random.Random(7)
    apart = engines(dice, spanning=0.0, idle_cost=True)
    linked = engines(dice, spanning=0.2, idle_cost=True)
    unused = engines(dice, spanning=0.2, idle_cost=False)
    busy = [replace(each, is_busy=True) for each in linked]
    pinned = [replace(each, is_pinned=True) for each in linked]
    one, four = request((1, 20)), request((4, 20))
    auto = request((1, 30), (2, 24), (4, 20), (8, 16))
    alone = request((2, 20), is_exclusive=True)
    whole = request((1, 70), (2, 40), variants=variants())
    roomy, full = 30 * GIB, 2 * GIB
    return [
        Case("1 GPU", "Place", gpus(linked, roomy), linked, one),
        Case("4 GPUs", "Place", gpus(linked, roomy), linked, four),
        Case("as many as it takes", "Place", gpus(linked, 18 * GIB), linked, auto),
        Case("1 GPU", "Evict", gpus(apart, full), apart, one),
        Case("1 GPU, engines that span GPUs", "Evict", gpus(linked, full), linked, one),
        Case("1 GPU, nobody asks for any", "Evict", gpus(unused, full), unused, one),
        Case("4 GPUs", "Evict", gpus(apart, full), apart, four),
        Case("4 GPUs, engines that span GPUs", "Evict", gpus(linked, full), linked, four),
        Case("4 GPUs, nobody asks for any", "Evict", gpus(unused, full), unused, four),
        Case("as many as it takes", "Evict", gpus(linked, full), linked, auto),
        Case("2 GPUs for itself", "Evict", gpus(linked, full), linked, alone),
        Case("1 GPU, all busy", "Wait", gpus(busy, full), busy, one),
        Case("as many as it takes, all busy", "Wait", gpus(busy, full), busy, auto),
        Case("1 GPU, all pinned", "Refuse", gpus(pinned, full), pinned, one),
        Case("24 changes tried", "Refuse", gpus(pinned, full), pinned, whole),
        Case("1 GPU, all pinned, all listed", "Refuse", gpus(pinned, full), pinned, one, True),
    ]


def one_pass(residents: list[Resident]) -> dict[str, int]:
    """What is held on each device, and nothing else."""
    held: dict[str, int] = {}
    for resident in residents:
        for device, size in resident.bytes_by_device.items():
            held[device] = held.get(device, 0) + size
    return held


def times_ms(call: Callable[[], object], calls: int) -> list[float]:
    """Of each call, ascending; processor time, which other programs do not lengthen."""
    times = []
    gc.collect()
    for _ in range(calls):
        started = time.thread_time()
        call()
        times.append((time.thread_time() - started) * 1000)
    return sorted(times)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench plan")
    parser.add_argument("--calls", type=int, default=CALLS)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    report = []
    measured = cases()
    # As the server does; the other cases' engines are nothing that it has.
    gc.collect()
    gc.freeze()
    print(f"{'answer':<8}{'model':<32}{'median':>9}{'p99':>9}{'worst':>9}   ratio to one pass")
    for case in measured:
        answer = type(case.answer_it()).__name__
        if answer != case.answer:
            raise RuntimeError(f"{case.name}: {answer} instead of {case.answer}")
        base = statistics.median(times_ms(lambda each=case: one_pass(each.residents), args.calls))
        times = times_ms(case.answer_it, args.calls)
        row = {
            "answer": answer,
            "model": case.name,
            "median_ms": round(statistics.median(times), 2),
            "p99_ms": round(times[int(len(times) * 0.99)], 2),
            "worst_ms": round(times[-1], 2),
            "ratio": round(statistics.median(times) / base, 1),
        }
        report.append(row)
        print(
            f"{answer:<8}{case.name:<32}{row['median_ms']:>6} ms{row['p99_ms']:>6} ms"
            f"{row['worst_ms']:>6} ms{row['ratio']:>8}",
            flush=True,
        )
    if args.json:
        worst = max(float(row["p99_ms"]) for row in report)
        facts = {"gpus": GPUS, "engines": ENGINES, "worst_p99_ms": worst}
        print(json.dumps({**facts, "cases": report}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
