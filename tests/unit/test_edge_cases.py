"""Edge cases that were wrong once, of small modules."""

import json
from pathlib import Path

import pytest

from appliance.config.load import load_settings
from appliance.errors import ConfigError
from appliance.estimate.estimator import estimate, kv_budget
from appliance.gateway.errors import ErrorEvents
from appliance.gpu.reading import Reading
from appliance.protocol.devices import DeviceKind, Occupant
from appliance.protocol.models import ModelSettings, Task
from appliance.registry.facts import ModelFacts
from appliance.slots.ledger import Holding, device_room
from appliance.slots.planner import plan
from appliance.slots.plans import DeviceRoom, Evict, Option, PlanRequest, Resident
from appliance.slots.views import percentile
from appliance.units import format_duration, format_size


# planner: "the fewest victims, then the least recently used ones".
def test_fewest_victims_within_a_device() -> None:
    def resident(name: str, size: int, used: float) -> Resident:
        return Resident(engine_id=name, model=name, bytes_by_device={"g": size}, last_used=used)

    there = [resident("a", 5, 1.0), resident("b", 5, 2.0), resident("c", 10, 3.0)]
    room = DeviceRoom(id="g", index=0, total_bytes=20, free_bytes=0)
    decision = plan([room], there, PlanRequest(model="m", options=(Option(1, 10),)))
    assert isinstance(decision, Evict)
    assert [victim.model for victim in decision.victims] == ["c"]


def test_device_without_a_start_goes_before_one_with_it_when_evicting() -> None:
    rooms = [
        DeviceRoom(id="g0", index=0, total_bytes=20, free_bytes=0, is_starting=True),
        DeviceRoom(id="g1", index=1, total_bytes=20, free_bytes=0),
    ]
    there = [
        Resident(engine_id="s", model="s", bytes_by_device={"g0": 10}, last_used=0, is_busy=True),
        Resident(engine_id="a", model="a", bytes_by_device={"g0": 10}, last_used=1.0),
        Resident(engine_id="b", model="b", bytes_by_device={"g1": 20}, last_used=2.0),
    ]
    decision = plan(rooms, there, PlanRequest(model="m", options=(Option(1, 10),)))
    assert isinstance(decision, Evict)
    assert [room.id for room in decision.devices] == ["g1"]


# ledger: a driver that does not tell per process (containers, WSL).
def test_memory_that_the_driver_does_not_ascribe_is_not_counted_twice() -> None:
    reading = Reading(
        id="g",
        index=0,
        name="GPU",
        kind=DeviceKind.GPU,
        total_bytes=80,
        available_bytes=60,
        used_by_pid={},
    )
    occupant = Occupant(model="a", engine_id="e", reserved_bytes=20)
    holding = Holding(occupant=occupant, device_id="g", pids=frozenset({1234}), is_starting=False)
    assert device_room(reading, [holding], 0).free_bytes == 60


def test_nearest_rank() -> None:
    assert percentile([float(value) for value in range(1, 101)], 0.95) == 95.0
    assert percentile([float(value) for value in range(1, 21)], 0.95) == 19.0


@pytest.mark.parametrize(("seconds", "expected"), [(59.7, "1:00"), (9.97, "10 s")])
def test_rounded_durations(seconds: float, expected: str) -> None:
    assert format_duration(seconds) == expected


@pytest.mark.parametrize(("size", "expected"), [(1024**3 - 1, "1.0 GiB"), (1024**2 - 1, "1 MiB")])
def test_rounded_sizes(size: int, expected: str) -> None:
    assert format_size(size) == expected


def test_source_of_a_wrong_variable_is_written_as_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^environment variable APPLIANCE_SERVER_PORT"):
        load_settings(tmp_path / "none", environ={"APPLIANCE_SERVER_PORT": "x"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("devices.reserve", -5),
        ("server.max_body", -1),
        ("server.heartbeat", "never"),
        ("devices.sample_interval", "never"),
        ("devices.sample_interval", 0),
        ("engines.stop_timeout", -3.0),
        ("server.drain_timeout", float("nan")),
    ],
)
def test_values_that_mean_nothing_are_refused(tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=key):
        load_settings(tmp_path / "none", environ={}, flags={key: value})


def settings(**changes: object) -> ModelSettings:
    return ModelSettings(path="/models/x", task=Task.GENERATE, **changes)  # type: ignore[arg-type]


QWEN = ModelFacts(
    architecture="Qwen2ForCausalLM",
    task=Task.GENERATE,
    max_context=32768,
    weights_bytes=3 * 10**9,
    layers=28,
    heads=12,
    kv_heads=2,
    head_size=128,
    vocabulary=151_936,
    dtype="bfloat16",
    has_chat_template=True,
)


# vLLM: max(1, kv_heads // tp_size) heads on each rank.
def test_kv_heads_are_repeated_where_there_are_more_ranks() -> None:
    one_head = 2 * 28 * 1 * 128 * 2
    assert kv_budget(QWEN, settings(tp_size=4), 8192) == one_head * (8192 * 4 + 256)


def test_memory_that_the_owner_names_is_what_is_reserved() -> None:
    wanted = estimate(QWEN, settings(memory_bytes=10**9), 2048, DeviceKind.CPU)
    assert wanted.total_bytes == 10**9


@pytest.mark.parametrize("cut", [3, 20, 40, 60, 81])
def test_error_event_that_comes_in_two_pieces_stays_whole(cut: int) -> None:
    event = b'data: {"error": {"message": "it broke", "type": "x", "param": null, "code": 500}}\n\n'
    events = ErrorEvents()
    pieces = events.feed(event[:cut]) + events.feed(event[cut:]) + events.rest()
    json.loads(pieces.removeprefix(b"data: "))
