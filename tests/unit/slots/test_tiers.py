from datetime import UTC, datetime

import pytest

from appliance.protocol.sleep import SleepLevel, SleepVerdict
from appliance.slots.tiers import Sleep, Sleepy, choose_tier
from appliance.units import GIB


def verdict(level: SleepLevel, *, works: bool) -> SleepVerdict:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return SleepVerdict(level=level, works=works, vllm_version="0", at=at)


def sleepy(name: str = "a", **changes: object) -> Sleepy:
    fields: dict[str, object] = {
        "engine_id": name,
        "setting": "auto",
        "verdicts": {},
        "weights_bytes": 10 * GIB,
        "host_bytes": 0,
        "is_asleep": False,
        "last_used": 0.0,
    }
    return Sleepy(**{**fields, **changes})  # type: ignore[arg-type]


def asleep(name: str, last_used: float, gib: int = 10) -> Sleepy:
    return sleepy(name, host_bytes=gib * GIB, is_asleep=True, last_used=last_used)


@pytest.mark.parametrize(
    ("changes", "limit_gib", "expected"),
    [
        ({}, 10, Sleep(1)),
        ({}, 9, Sleep(2)),
        ({"setting": "off"}, 10, None),
        ({"setting": 1}, 9, None),
        ({"setting": 2}, 100, Sleep(2)),
        ({"verdicts": {1: verdict(1, works=False)}}, 100, Sleep(2)),
        ({"verdicts": {1: verdict(1, works=True), 2: verdict(2, works=False)}}, 9, None),
        ({"setting": 2, "verdicts": {2: verdict(2, works=False)}}, 100, None),
        # Its own pages are still there from an earlier sleep.
        ({"host_bytes": 10 * GIB}, 10, Sleep(1)),
    ],
)
def test_an_engine_sleeps_at_the_best_level_that_works_and_that_ram_has_room_for(
    changes: dict[str, object], limit_gib: int, expected: Sleep | None
) -> None:
    assert choose_tier(sleepy(**changes), [], limit_gib * GIB, may_stop=True) == expected


def test_those_who_slept_longest_give_their_ram_to_the_next_one() -> None:
    others = [asleep("new", 3.0), asleep("old", 1.0), asleep("older", 0.5, gib=5)]
    engine = sleepy(last_used=5.0)
    assert choose_tier(engine, others, 35 * GIB, may_stop=True) == Sleep(1)
    assert choose_tier(engine, others, 30 * GIB, may_stop=True) == Sleep(1, ("older",))
    assert choose_tier(engine, others, 20 * GIB, may_stop=True) == Sleep(1, ("older", "old"))
    # Somebody waits for its memory: others are not waited for.
    assert choose_tier(engine, others, 20 * GIB, may_stop=False) == Sleep(2)


def test_nobody_who_is_awake_or_was_used_later_ends_for_it() -> None:
    awake = sleepy("awake", host_bytes=10 * GIB)
    engine = sleepy(setting=1, last_used=2.0)
    assert choose_tier(engine, [awake], 10 * GIB, may_stop=True) is None
    assert choose_tier(engine, [asleep("later", 3.0)], 10 * GIB, may_stop=True) is None
