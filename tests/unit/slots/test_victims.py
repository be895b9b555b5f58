"""Sets of victims that are hard to find: many engines, some of them on both devices of a group."""

import random
from itertools import product

from appliance.slots.planner import plan
from appliance.slots.plans import DeviceRoom, Evict, Option, PlanRequest, Resident

DEVICES = ("gpu-0", "gpu-1")


def engines(dice: random.Random, *, spanning: float) -> list[Resident]:
    found = []
    for number in range(9):
        devices = DEVICES if dice.random() < spanning else (DEVICES[number % 2],)
        found.append(
            Resident(
                engine_id=f"eng_{number}",
                model=f"model-{number}",
                bytes_by_device={device: dice.randint(3, 30) for device in devices},
                last_used=float(number),
                cost_s=dice.choice((0.0, 1.0, dice.randint(1, 40))),
            )
        )
    return found


def least(residents: list[Resident], request: PlanRequest) -> tuple[float, int]:
    """Cost and number over all sets and all groups."""
    option = request.options[0]
    groups = [DEVICES] if option.tp_size == 2 else [(device,) for device in DEVICES]
    best = (float("inf"), 0)
    for choice in product((False, True), repeat=len(residents)):
        gone = [each for each, goes in zip(residents, choice, strict=True) if goes]
        cost = (sum(each.cost_s for each in gone), len(gone))
        if cost < best and any(
            all(
                sum(each.bytes_by_device.get(device, 0) for each in gone) >= option.need_bytes
                for device in group
            )
            for group in groups
        ):
            best = cost
    return best


def check(dice: random.Random, tp_size: int, *, spanning: float) -> None:
    residents = engines(dice, spanning=spanning)
    held = {
        device: sum(each.bytes_by_device.get(device, 0) for each in residents) for device in DEVICES
    }
    rooms = [
        DeviceRoom(id=device, index=index, total_bytes=held[device], free_bytes=0)
        for index, device in enumerate(DEVICES)
    ]
    need = dice.randint(1, min(held.values()))
    request = PlanRequest(model="wanted", options=(Option(tp_size, need),))
    decision = plan(rooms, residents, request)
    assert isinstance(decision, Evict)
    cost = (sum(each.cost_s for each in decision.victims), len(decision.victims))
    assert cost == least(residents, request)


def test_no_set_on_one_device_costs_less() -> None:
    for seed in range(120):
        check(random.Random(seed), 1, spanning=0.0)


def test_no_set_for_a_group_costs_less() -> None:
    for seed in range(120):
        check(random.Random(seed), 2, spanning=0.0)


def test_no_set_costs_less_where_engines_span_the_group() -> None:
    for seed in range(120):
        check(random.Random(seed), 2, spanning=0.4)


def test_search_ends_where_sets_are_too_many_to_try() -> None:
    """Sizes that hardly differ and costs that follow them are the hardest case of a knapsack."""
    dice = random.Random(11)
    residents = []
    for number in range(60):
        size = 10_000 + dice.randint(0, 99)
        residents.append(
            Resident(
                engine_id=f"eng_{number}",
                model=f"model-{number}",
                bytes_by_device={"gpu-0": size},
                last_used=float(number),
                cost_s=size / 1000,
            )
        )
    total = sum(each.bytes_by_device["gpu-0"] for each in residents)
    room = DeviceRoom(id="gpu-0", index=0, total_bytes=total, free_bytes=0)
    request = PlanRequest(model="wanted", options=(Option(1, total // 2),))
    decision = plan([room], residents, request)
    assert isinstance(decision, Evict)
    gone = sum(each.bytes_by_device["gpu-0"] for each in decision.victims)
    assert total // 2 <= gone < total // 2 + 10_100
