"""Edge cases that were wrong once, module by module."""

import asyncio
import contextlib
import json
import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from appliance.config.load import load_settings
from appliance.engine.failure import classify
from appliance.engine.logs import EngineLog, LogTail, start_pump
from appliance.engine.proctree import boot_id, process_info
from appliance.engine.progress import LoadTracker
from appliance.engine.records import EngineRecord, sweep, write_record
from appliance.errors import ConfigError, ConflictError, InvalidRequestError
from appliance.estimate.estimator import estimate, kv_budget
from appliance.gateway.errors import ErrorEvents
from appliance.gpu.reading import Reading
from appliance.protocol.devices import DeviceKind, Occupant
from appliance.protocol.engines import FailureCause, LoadPhase
from appliance.protocol.models import ModelCreate, ModelSettings, Task
from appliance.registry.facts import ModelFacts, read_facts
from appliance.registry.registry import Registry
from appliance.slots.backoff import pause_s
from appliance.slots.ledger import Holding, device_room
from appliance.slots.planner import DeviceRoom, Evict, PlanRequest, Resident, plan
from appliance.slots.views import percentile
from appliance.store.database import Database
from appliance.units import format_duration, format_size
from tests.support.wait import wait_until

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 512,
    "max_position_embeddings": 2048,
    "num_attention_heads": 8,
    "num_hidden_layers": 2,
    "dtype": "bfloat16",
}


def checkpoint(directory: Path, config: object = CONFIG, **files: object) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "model.safetensors").write_bytes(b"\0" * 64)
    for name, content in files.items():
        (directory / name.replace("__", ".")).write_text(json.dumps(content))
    return directory


# planner: "the fewest victims, then the least recently used ones".
def test_fewest_victims_within_a_device() -> None:
    def resident(name: str, size: int, used: float) -> Resident:
        return Resident(engine_id=name, model=name, bytes_by_device={"g": size}, last_used=used)

    there = [resident("a", 5, 1.0), resident("b", 5, 2.0), resident("c", 10, 3.0)]
    room = DeviceRoom(id="g", index=0, total_bytes=20, free_bytes=0)
    decision = plan([room], there, PlanRequest(model="m", need_bytes=10))
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
    decision = plan(rooms, there, PlanRequest(model="m", need_bytes=10))
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


def test_pause_after_very_many_failures() -> None:
    pause = pause_s(2000, was_ready=False, first_s=5.0, most_s=300.0, max_attempts=10_000)
    assert pause == 300.0


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


CORE = "(EngineCore_DP0 pid=4287) INFO 11-21 08:57:34"
# The order on a GPU: torch.compile comes after the weights and before the KV cache.
GPU_LOG = [
    (10.0, f"{CORE} [api_utils.py:286] non-default args: {{}}"),
    (20.0, f"{CORE} [gpu_model_runner.py:3100] Starting to load model /models/x..."),
    (21.0, "Loading safetensors checkpoint shards:   0% Completed | 0/2 [00:00<?, ?it/s]"),
    (25.0, "Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:04<00:04,  4s/it]"),
    (29.0, "Loading safetensors checkpoint shards: 100% Completed | 2/2 [00:08<00:00,  4s/it]"),
    (29.5, f"{CORE} [default_loader.py:314] Loading weights took 8.10 seconds"),
    (30.0, f"{CORE} [gpu_model_runner.py:3338] Model loading took 14.99 GiB and 9.5 seconds"),
    (35.0, f"{CORE} [backends.py:647] Dynamo bytecode transform time: 5.11 s"),
    (45.0, f"{CORE} [backends.py:282] Compiling a graph for dynamic shape takes 10.2 s"),
    (46.0, f"{CORE} [monitor.py:34] torch.compile takes 15.3 s in total"),
    (47.0, f"{CORE} [gpu_worker.py:359] Available KV cache memory: 50.00 GiB"),
    (48.0, f"{CORE} [kv_cache_utils.py:1229] GPU KV cache size: 409,600 tokens"),
    (49.0, "Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):   0%|  | 0/51 [00:00<?"),
    (51.0, "Capturing CUDA graphs (mixed prefill-decode, PIECEWISE): 100%|##| 51/51 [00:02<00"),
    (51.1, "Capturing CUDA graphs (decode, FULL):   3%|  | 1/35 [00:00<?, ?it/s]"),
    (53.0, "Capturing CUDA graphs (decode, FULL): 100%|##| 35/35 [00:02<00:00"),
    (53.5, f"{CORE} [gpu_model_runner.py:4244] Graph capturing finished in 4 secs, took 0.9 GiB"),
    (54.0, f"{CORE} [core.py:250] init engine (profile, create kv cache, warmup) took 24 s"),
]


def test_compiling_is_shown_on_a_gpu() -> None:
    tracker = LoadTracker(0.0, [])
    seen = []
    for now, line in GPU_LOG:
        tracker.feed(line, now)
        seen.append(tracker.progress(now).phase)
    assert list(dict.fromkeys(seen)) == [
        LoadPhase.CONFIGURING,
        LoadPhase.WEIGHTS,
        LoadPhase.COMPILING,
        LoadPhase.KV_CACHE,
        LoadPhase.GRAPHS,
        LoadPhase.WARMING_UP,
    ]


def test_ratio_of_a_gpu_load_never_falls() -> None:
    tracker = LoadTracker(0.0, [])
    lines, falls, last = list(GPU_LOG), [], 0.0
    for tenth in range(600):
        now = tenth / 10
        while lines and lines[0][0] <= now:
            tracker.feed(lines.pop(0)[1], now)
        ratio = tracker.progress(now).ratio or 0.0
        if ratio < last:
            falls.append((now, last, ratio))
        last = ratio
    assert falls == []


@pytest.mark.parametrize(
    "explanation",
    [
        "  Value error, The checkpoint you are trying to load has model type `foo` but Transformers"
        " does not recognize this architecture. This could be because of an issue.",
        "  Value error, Model architectures ['Foo'] are not supported for now.",
    ],
)
def test_unsupported_model_inside_a_validation_error(explanation: str) -> None:
    lines = [
        "(APIServer pid=1) pydantic_core._pydantic_core.ValidationError: 1 validation error for"
        " ModelConfig",
        explanation,
    ]
    failure = classify(
        lines, first_line=1, exit_status=1, at=datetime(2026, 1, 1, tzinfo=UTC), attempts=1
    )
    assert failure.cause is FailureCause.UNSUPPORTED_MODEL


# A batch that begins after a gap has the numbers of its lines, and the gap counts as skipped.
async def test_gap_before_delivered_lines_is_counted() -> None:
    tail = LogTail(1)
    tail.put(6, ["line 6", "line 7"])
    assert await tail.batch(1.0) == (6, ["line 6", "line 7"], 5)


# A full disk must not stop the engine, which blocks once nobody reads its output.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("file", ["/dev/full", "none/engine.log"])
async def test_pump_reads_on_where_the_log_cannot_be_written(tmp_path: Path, file: str) -> None:
    log = EngineLog(tmp_path / file, "eng_1", "m")
    heard: list[str] = []
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    thread = start_pump(
        read_end, log, asyncio.get_running_loop(), lambda _, lines: heard.extend(lines)
    )
    sent = 0

    def send() -> bool:
        nonlocal sent
        with contextlib.suppress(BlockingIOError):
            while sent <= 1_000_000:
                sent += os.write(write_end, b"x" * 4095 + b"\n")
        return sent > 1_000_000

    try:
        await asyncio.to_thread(wait_until, send, 10.0, "the pump takes a megabyte")
    finally:
        os.close(write_end)
        await asyncio.to_thread(thread.join, 5.0)


# A daemon that was started by a session leader which got the pid of an engine long gone.
def test_members_of_a_session_with_a_pid_given_out_again_are_left_alone(tmp_path: Path) -> None:
    leader = subprocess.Popen(
        ["sh", "-c", f"sleep 60 & echo $! > {tmp_path}/pid"], start_new_session=True
    )
    leader.wait(10)
    member = int((tmp_path / "pid").read_text())
    records = tmp_path / "records"
    records.mkdir()
    write_record(
        records,
        EngineRecord(
            id="eng_1",
            model="m",
            argv_digest="x",
            devices=[],
            socket="",
            boot_id=boot_id(),
            created_at=datetime(2026, 1, 1, tzinfo=UTC),
            pid=leader.pid,
            start_ticks=1,
        ),
    )
    try:
        assert sweep(records) == []
        info = process_info(member)
        assert info is not None
        assert not info.is_zombie
    finally:
        subprocess.run(["kill", "-9", str(member)], check=False)


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


@pytest.mark.parametrize(
    "change",
    [
        {"text_config": None},
        {"num_attention_heads": None},
        {"hidden_size": None},
        {"num_hidden_layers": "two"},
        {"max_position_embeddings": [1]},
        {"architectures": {"a": 1}},
    ],
)
def test_odd_config_is_read_or_refused(tmp_path: Path, change: dict[str, object]) -> None:
    with contextlib.suppress(InvalidRequestError):
        read_facts(checkpoint(tmp_path / "m", {**CONFIG, **change}))


@pytest.mark.parametrize("name", ["tokenizer_config__json", "sentence_bert_config__json"])
def test_odd_side_files_are_read_or_refused(tmp_path: Path, name: str) -> None:
    with contextlib.suppress(InvalidRequestError):
        read_facts(checkpoint(tmp_path / "m", **{name: []}))


async def test_odd_config_of_one_model_does_not_keep_the_server_from_starting(
    tmp_path: Path,
) -> None:
    database = Database(tmp_path / "a.db")
    await database.open()
    try:
        path = checkpoint(tmp_path / "m")
        body = ModelCreate(id="chat", path=str(path))
        await Registry(database).create(body)
        checkpoint(path, {**CONFIG, "num_attention_heads": None})
        await Registry(database).load()
    finally:
        await database.close()


@pytest.mark.parametrize(
    "extra_args",
    [
        ["--served_model_name", "x"],
        ["--gpu_memory_utilization=0.9"],
        ["--tensor-parallel", "2"],
        ["-tp2"],
        ["--data-parallel-size", "2"],
        ["--pipeline-parallel-size", "2"],
    ],
)
async def test_owned_options_in_other_spellings_are_refused(
    tmp_path: Path, extra_args: list[str]
) -> None:
    await refused(tmp_path, "extra_args", extra_args=extra_args)


async def test_mark_of_an_engine_cannot_be_changed(tmp_path: Path) -> None:
    await refused(tmp_path, "env", env={"VLLM_APPLIANCE_ENGINE": "x"})


async def test_id_with_a_line_end_is_refused(tmp_path: Path) -> None:
    await refused(tmp_path, "id", id="chat\n")


async def refused(tmp_path: Path, param: str, **fields: object) -> None:
    database = Database(tmp_path / "a.db")
    await database.open()
    try:
        body = {"id": "chat", "path": str(checkpoint(tmp_path / "m")), **fields}
        with pytest.raises(InvalidRequestError) as caught:
            await Registry(database).create(msgspec.convert(body, ModelCreate))
        assert caught.value.param == param
    finally:
        await database.close()


async def test_id_is_given_once_to_requests_at_the_same_time(tmp_path: Path) -> None:
    database = Database(tmp_path / "a.db")
    await database.open()
    try:
        registry = Registry(database)
        body = ModelCreate(id="chat", path=str(checkpoint(tmp_path / "m")))
        results = await asyncio.gather(
            registry.create(body), registry.create(body), return_exceptions=True
        )
        assert [isinstance(each, ConflictError) for each in results].count(True) == 1
    finally:
        await database.close()


@pytest.mark.parametrize("cut", [3, 20, 40, 60, 81])
def test_error_event_that_comes_in_two_pieces_stays_whole(cut: int) -> None:
    event = b'data: {"error": {"message": "it broke", "type": "x", "param": null, "code": 500}}\n\n'
    events = ErrorEvents()
    pieces = events.feed(event[:cut]) + events.feed(event[cut:]) + events.rest()
    json.loads(pieces.removeprefix(b"data: "))
