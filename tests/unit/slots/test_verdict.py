import pytest

from appliance.cli.plan import plan_lines
from appliance.estimate.estimator import Estimate
from appliance.protocol.placement import PlanVerdict
from appliance.slots.planner import plan
from appliance.slots.plans import (
    DeviceRoom,
    Evict,
    Option,
    Place,
    Plan,
    PlanRequest,
    Refuse,
    Resident,
    Variant,
    Wait,
)
from appliance.slots.verdict import verdict
from appliance.units import GIB

WANTED = Estimate(weights_bytes=10, kv_cache_bytes=5, context_bytes=2)
ROOMS = tuple(
    DeviceRoom(id=f"GPU-{index}", index=index, total_bytes=100, free_bytes=50) for index in range(2)
)


def resident(model: str) -> Resident:
    return Resident(engine_id=f"eng_{model}", model=model, bytes_by_device={}, last_used=0.0)


@pytest.mark.parametrize(
    ("decision", "name", "message", "evicts"),
    [
        (None, "loaded", "m is loaded already.", []),
        (Place(ROOMS), "place", "m fits on devices 0, 1 as things are, with 17 B on each.", []),
        (
            Evict((resident("b"), resident("a")), ROOMS[:1]),
            "evict",
            "a, b would be unloaded from device 0.",
            ["a", "b"],
        ),
        (
            Wait("waits for the requests of a", (resident("a"),), ROOMS[1:]),
            "wait",
            "m waits for the requests of a, then it goes to device 1.",
            ["a"],
        ),
        (Refuse("m needs more.", "Use less."), "refuse", "m needs more.", []),
    ],
)
def test_plans_are_told_in_words(
    decision: Place | Evict | Wait | Refuse | None, name: str, message: str, evicts: list[str]
) -> None:
    told = verdict(decision, WANTED, model="m", placement=None, load_s=4.5, loads=2)
    assert (told.verdict, told.message, told.evicts) == (name, message, evicts)
    assert (told.need_bytes, told.load_s, told.loads) == (17, 4.5, 2)
    assert (told.placement is None) == (name in {"loaded", "refuse"})


def told(decision: Plan | None, need: int = 20, **more: object) -> PlanVerdict:
    return verdict(
        decision,
        Estimate(weights_bytes=need * GIB),
        model="m",
        placement=None,
        load_s=more.get("load_s"),  # type: ignore[arg-type]
        loads=3,
    )


def gpu(free: int, index: int = 0) -> DeviceRoom:
    return DeviceRoom(id=f"GPU-{index}", index=index, total_bytes=24 * GIB, free_bytes=free * GIB)


def holding(model: str, size: int, **more: object) -> Resident:
    return Resident(
        engine_id=f"eng_{model}",
        model=model,
        bytes_by_device={"GPU-0": size * GIB},
        last_used=0.0,
        **more,  # type: ignore[arg-type]
    )


WISH = PlanRequest(
    model="m",
    options=(Option(1, 20 * GIB),),
    variants=(
        Variant(
            kind="context_length",
            text="a context of 8192 tokens",
            command="appliance set m --context 8192",
            options=(Option(1, 10 * GIB),),
        ),
    ),
)


def test_eviction_says_what_it_costs() -> None:
    idle = holding("a", 24, reload_s=60.0, cost_s=15.0)
    answer = told(plan([gpu(0)], [idle], WISH), load_s=90.0)
    (eviction,) = answer.evictions
    assert (eviction.model, eviction.memory_bytes) == ("a", 24 * GIB)
    assert (eviction.reload_s, eviction.reuse_ratio, eviction.cost_s) == (60.0, 0.25, 15.0)
    assert plan_lines(answer) == [
        "a would be unloaded from device 0.",
        "  where       device 0, 20.0 GiB",
        "  evicts      a, 24.0 GiB; 1:00 to load again, wanted again soon with 25%: about 15 s of"
        " waiting",
        "  time        about 1:30 to load (median of 3 loads here)",
    ]


def test_group_is_listed_device_by_device() -> None:
    rooms = [gpu(24), gpu(24, 1)]
    request = PlanRequest(model="m", options=(Option(2, 20 * GIB),))
    assert plan_lines(told(plan(rooms, [], request))) == [
        "m fits on devices 0, 1 as things are, with 20.0 GiB on each.",
        "  where       device 0, 20.0 GiB",
        "              device 1, 20.0 GiB",
        "  time        not known: it was not loaded here before",
    ]


def test_refusal_says_what_is_there_who_holds_it_and_what_would_fit() -> None:
    there = [holding("mine", 9, is_pinned=True), holding("other", 3)]
    answer = told(plan([gpu(10)], there, WISH))
    assert answer.verdict == "refuse"
    assert [(each.free_bytes, each.most_bytes) for each in answer.have] == [(10 * GIB, 13 * GIB)]
    assert [(each.model, each.reason) for each in answer.holders] == [
        ("mine", "pinned"),
        (None, "other processes"),
    ]
    assert [each.command for each in answer.suggestions] == [
        "appliance set m --context 8192",
        "appliance stop mine",
    ]
    lines = plan_lines(answer)
    assert lines[1:] == [
        "  has         device 0: 10.0 GiB free, 13.0 GiB once all are unloaded that may be, of"
        " 24.0 GiB",
        "  held by     mine (pinned): 9.0 GiB on device 0",
        "              other processes: 2.0 GiB on device 0",
        "  would fit   a context of 8192 tokens: appliance set m --context 8192",
        "              unloading mine: appliance stop mine",
    ]
    assert "appliance set m --context 8192" in answer.hint


def test_refusal_that_nothing_helps_says_what_to_do() -> None:
    request = PlanRequest(model="m", options=(Option(1, 99 * GIB),))
    assert "smaller model" in plan_lines(told(plan([gpu(24)], [], request), need=99))[-1]


def test_many_holders_are_counted() -> None:
    there = [holding(f"m{number:02}", 1, is_pinned=True) for number in range(20)]
    lines = plan_lines(told(plan([gpu(4)], there, WISH)))
    assert any("and 8 more" in line for line in lines)


def test_names_of_others_cannot_steer_the_terminal() -> None:
    there = [holding("a\x1b[2J", 24, reload_s=1.0)]
    assert all("\x1b" not in line for line in plan_lines(told(plan([gpu(0)], there, WISH))))
