from collections.abc import Mapping

from appliance.gpu.condition import gpu_lost
from appliance.gpu.reading import Reading
from appliance.protocol.devices import DeviceCause, DeviceKind
from appliance.slots.freeing import Footprint, MemoryWatch, missing
from appliance.units import MIB

GIB = 1024 * MIB
ENGINE, OTHER = 70, 90


def reading(
    available: int,
    used: Mapping[int, int] | None = None,
    kind: DeviceKind = DeviceKind.GPU,
    names: Mapping[int, str] | None = None,
) -> Reading:
    return Reading(
        id="gpu",
        index=0,
        name="GPU",
        kind=kind,
        total_bytes=24 * GIB,
        available_bytes=available,
        used_by_pid=dict(used or {}),
        process_names=dict(names or {}),
    )


def footprint(held: int, available: int, **changes: object) -> Footprint:
    values: dict[str, object] = {
        "device_id": "gpu",
        "pids": frozenset(),
        "held_bytes": held,
        "available_bytes": available,
    }
    return Footprint(**(values | changes))  # type: ignore[arg-type]


def test_a_process_that_is_still_listed_holds_what_it_has() -> None:
    of_engine = footprint(4 * GIB, 10 * GIB, pids=frozenset({ENGINE}), names={ENGINE: "vllm"})
    left = missing(of_engine, reading(10 * GIB, {ENGINE: 4 * GIB, OTHER: GIB}))
    assert left is not None
    assert (left.held_bytes, left.holders) == (4 * GIB, ((ENGINE, "vllm"),))
    assert missing(of_engine, reading(14 * GIB)) is None


def test_memory_that_nobody_is_listed_for_is_missing_too() -> None:
    of_engine = footprint(4 * GIB, 10 * GIB, pids=frozenset({ENGINE}))
    left = missing(of_engine, reading(11 * GIB))
    assert left is not None
    assert (left.held_bytes, left.holders) == (3 * GIB, ())


def test_a_tenth_may_lack() -> None:
    assert missing(footprint(10 * GIB, 0), reading(9 * GIB)) is None
    assert missing(footprint(10 * GIB, 0), reading(9 * GIB - 1)) is not None
    assert missing(footprint(GIB, 0), reading(GIB - 256 * MIB)) is None


def test_what_others_took_meanwhile_is_not_missing() -> None:
    of_engine = footprint(4 * GIB, 10 * GIB, others={OTHER: GIB})
    assert missing(of_engine, reading(12 * GIB, {OTHER: 3 * GIB})) is None
    assert missing(of_engine, reading(12 * GIB, {OTHER: GIB, 91: 2 * GIB})) is None


def test_what_others_gave_back_meanwhile_hides_nothing() -> None:
    of_engine = footprint(4 * GIB, 10 * GIB, is_named=True, others={OTHER: 4 * GIB})
    left = missing(of_engine, reading(14 * GIB))
    assert left is not None
    assert left.held_bytes == 4 * GIB


def test_an_engine_that_is_told_by_a_strange_pid_is_not_waited_for_twice() -> None:
    of_engine = footprint(4 * GIB, 10 * GIB, others={70_070: 4 * GIB})
    assert missing(of_engine, reading(14 * GIB)) is None


def test_an_engine_that_starts_meanwhile_may_take_what_it_was_promised() -> None:
    of_engine = footprint(4 * GIB, 10 * GIB)
    assert missing(of_engine, reading(11 * GIB)) is not None
    assert missing(of_engine, reading(11 * GIB), promised_bytes=3 * GIB) is None


class Watched:
    """An engine with a promise of 5 GiB, sampled as the tests say."""

    def __init__(self, before: Reading) -> None:
        self.watch = MemoryWatch()
        self.last = before

    def sample(
        self, now: Reading, *, pids: frozenset[int], is_ready: bool, is_asleep: bool = False
    ) -> None:
        self.watch.note(
            "eng",
            pids,
            {"gpu": 5 * GIB},
            is_ready=is_ready,
            is_asleep=is_asleep,
            before={"gpu": self.last},
            now={"gpu": now},
        )
        self.last = now


def test_what_an_engine_took_is_known_by_its_processes() -> None:
    pids = frozenset({ENGINE})
    engine = Watched(reading(20 * GIB))
    engine.sample(reading(16 * GIB, {ENGINE: 4 * GIB}), pids=pids, is_ready=True)
    (left,) = engine.watch.ended("eng", pids)
    assert (left.held_bytes, left.pids, left.available_bytes) == (4 * GIB, pids, 16 * GIB)
    assert engine.watch.ended("eng", pids) == []


def test_what_an_engine_took_is_known_by_what_was_free_before_it_where_it_is_not_named() -> None:
    engine = Watched(reading(20 * GIB))
    engine.sample(reading(19 * GIB), pids=frozenset({ENGINE}), is_ready=False)
    engine.sample(reading(16 * GIB), pids=frozenset({ENGINE}), is_ready=True)
    # What others take later is not the engine's.
    engine.sample(reading(12 * GIB), pids=frozenset({ENGINE}), is_ready=True)
    (left,) = engine.watch.ended("eng", frozenset({ENGINE}))
    assert (left.held_bytes, left.available_bytes) == (4 * GIB, 12 * GIB)


def test_memory_that_is_back_before_the_engine_counts_as_ended_is_not_missing() -> None:
    engine = Watched(reading(20 * GIB))
    engine.sample(reading(16 * GIB), pids=frozenset(), is_ready=True)
    engine.sample(reading(20 * GIB), pids=frozenset(), is_ready=True)
    (left,) = engine.watch.ended("eng", frozenset())
    assert missing(left, reading(20 * GIB)) is None
    assert missing(left, reading(16 * GIB)) is not None


def test_an_engine_that_dies_while_it_loads_has_what_it_took_so_far() -> None:
    engine = Watched(reading(20 * GIB))
    engine.sample(reading(18 * GIB), pids=frozenset(), is_ready=False)
    (left,) = engine.watch.ended("eng", frozenset())
    assert left.held_bytes == 2 * GIB


def test_no_more_than_its_promise_is_expected_of_an_engine_that_is_not_named() -> None:
    engine = Watched(reading(20 * GIB))
    engine.sample(reading(2 * GIB), pids=frozenset(), is_ready=True)
    (left,) = engine.watch.ended("eng", frozenset())
    assert left.held_bytes == 5 * GIB


def test_nothing_is_expected_of_an_engine_that_is_asleep_and_not_named() -> None:
    engine = Watched(reading(20 * GIB))
    engine.sample(reading(16 * GIB), pids=frozenset(), is_ready=True)
    engine.sample(reading(19 * GIB), pids=frozenset(), is_ready=True, is_asleep=True)
    (left,) = engine.watch.ended("eng", frozenset())
    assert missing(left, reading(19 * GIB)) is None


def test_nothing_is_expected_of_devices_without_a_driver() -> None:
    engine = Watched(reading(20 * GIB, kind=DeviceKind.CPU))
    engine.sample(reading(16 * GIB, kind=DeviceKind.CPU), pids=frozenset(), is_ready=True)
    assert engine.watch.ended("eng", frozenset()) == []


def quarantined(of_engine: Footprint, now: Reading) -> MemoryWatch:
    watch = MemoryWatch()
    left = missing(of_engine, now)
    assert left is not None
    watch.quarantine(of_engine, left, 30.0, 100.0)
    return watch


def test_a_quarantine_names_the_holder_and_lasts_until_the_memory_is_back() -> None:
    of_engine = footprint(4 * GIB, 10 * GIB, pids=frozenset({ENGINE}), names={ENGINE: "vllm"})
    still = reading(10 * GIB, {ENGINE: 4 * GIB})
    watch = quarantined(of_engine, still)
    condition = watch.condition("gpu")
    assert condition is not None
    assert condition.cause is DeviceCause.MEMORY_HELD
    assert f"process {ENGINE} (vllm)" in condition.text
    assert f"kill -9 {ENGINE}" in condition.remedy
    watch.lift({"gpu": still}, 10_000.0)
    assert watch.condition("gpu") is not None
    watch.lift({"gpu": reading(14 * GIB)}, 10_001.0)
    assert watch.condition("gpu") is None


def test_a_quarantine_stays_while_the_device_cannot_be_read() -> None:
    of_engine = footprint(4 * GIB, 10 * GIB, pids=frozenset({ENGINE}))
    watch = quarantined(of_engine, reading(10 * GIB, {ENGINE: 4 * GIB}))
    lost = Reading(
        id="gpu",
        index=0,
        name="GPU",
        kind=DeviceKind.GPU,
        total_bytes=0,
        available_bytes=0,
        condition=gpu_lost(),
    )
    watch.lift({"gpu": lost}, 101.0)
    assert watch.condition("gpu") is not None


def test_memory_that_nobody_is_named_for_is_taken_for_somebody_elses_after_a_while() -> None:
    watch = quarantined(footprint(4 * GIB, 10 * GIB), reading(10 * GIB))
    watch.lift({"gpu": reading(10 * GIB)}, 200.0)
    assert watch.condition("gpu") is not None
    watch.lift({"gpu": reading(10 * GIB)}, 220.0)
    assert watch.condition("gpu") is None


def test_engines_that_are_gone_are_forgotten() -> None:
    engine = Watched(reading(20 * GIB))
    engine.sample(reading(16 * GIB), pids=frozenset(), is_ready=True)
    engine.watch.forget_all_but(["another"])
    assert engine.watch.ended("eng", frozenset()) == []
