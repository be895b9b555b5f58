"""Edge cases that were wrong once."""

import asyncio
import contextlib
import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from appliance.engine.failure import classify
from appliance.engine.logs import EngineLog, LogTail, start_pump
from appliance.engine.proctree import boot_id, process_info
from appliance.engine.progress import LoadTracker
from appliance.engine.records import EngineRecord, sweep, write_record
from appliance.protocol.engines import FailureCause, LoadPhase
from tests.support.wait import wait_until

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
