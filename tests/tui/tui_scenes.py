"""Pictures of an appliance at one frozen moment."""

from datetime import UTC, datetime, timedelta

from appliance.protocol.batches import (
    Batch,
    BatchError,
    BatchErrors,
    BatchProgress,
    BatchStatus,
    BatchUsage,
    LineFailure,
    RequestCounts,
)
from appliance.protocol.devices import Device, DeviceKind, DeviceSource, Occupant
from appliance.protocol.engines import (
    Engine,
    EngineState,
    Failure,
    FailureCause,
    LoadPhase,
    LoadProgress,
)
from appliance.protocol.launchers import Launcher, LauncherState
from appliance.protocol.models import Model, ModelSettings, Task
from appliance.protocol.placement import Placement, PlanVerdict, Share
from appliance.protocol.system import Alert, ServerInfo, Snapshot, Totals

GIB = 1024**3
NOW = datetime(2026, 3, 14, 12, 4, 5, tzinfo=UTC)

FAILURE = Failure(
    cause=FailureCause.OUT_OF_MEMORY,
    message="needs 131.0 GiB, 52.0 GiB are free on 4 devices",
    hint="Lower context_length to 16k, or set tp_size = 4 and unload qwen3-32b first.",
    at=NOW - timedelta(minutes=1),
    attempts=2,
    log_line=14,
    last_lines=[
        "INFO 03-14 12:03:01 [gpu_worker.py:120] Loading weights took 41.2 s",
        "ERROR 03-14 12:03:05 [core.py:700] EngineCore failed to start.",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 3.50 GiB.",
    ],
)


def frozen_model(name: str, state: EngineState, **facts: object) -> Model:
    settings = facts.pop("settings", None) or ModelSettings(
        path=f"/srv/models/{name}", task=Task.GENERATE, idle_timeout_s=1800
    )
    given = {
        "architecture": "Qwen3ForCausalLM",
        "context_length": 32768,
        "weights_bytes": 60 * GIB,
        "need_bytes": 70 * GIB,
        "created_at": NOW - timedelta(days=3),
        "engine_id": f"eng_{name}" if state is not EngineState.STOPPED else None,
        **facts,
    }
    return Model(id=name, settings=settings, state=state, **given)


def placed(*indices: int, each_gib: float = 10.0) -> Placement:
    shares = [
        Share(device_id=f"GPU-{index}", device_index=index, memory_bytes=int(each_gib * GIB))
        for index in indices
    ]
    return Placement(shares=shares, tp_size=len(indices))


def device(
    index: int,
    used_gib: float,
    *occupants: tuple[str, float, float],
    other_gib: float = 0.0,
    total_gib: float = 80.0,
    **facts: object,
) -> Device:
    """Occupants are (model, weights GiB, KV cache GiB)."""
    given = {
        "name": "NVIDIA H100 80GB HBM3",
        "kind": DeviceKind.GPU,
        "utilization_ratio": 0.03,
        "temperature_c": 41.0,
        "power_w": 118.0,
        **facts,
    }
    return Device(
        id=f"GPU-{index}",
        index=index,
        total_bytes=int(total_gib * GIB),
        used_bytes=int(used_gib * GIB),
        other_bytes=int(other_gib * GIB),
        reserved_bytes=0,
        free_bytes=int((total_gib - used_gib) * GIB),
        occupants=[
            Occupant(
                model=name,
                engine_id=f"eng_{name}",
                reserved_bytes=int((weights + kv) * GIB),
                weights_bytes=int(weights * GIB),
                kv_cache_bytes=int(kv * GIB),
            )
            for name, weights, kv in occupants
        ],
        **given,
    )


def engine_of(model: Model, **facts: object) -> Engine:
    given = {"pid": 41822, "log_lines": 3000, "memory_bytes": model.memory_bytes, **facts}
    return Engine(
        id=model.engine_id or f"eng_{model.id}",
        model=model.id,
        state=model.state,
        environment="cuda",
        vllm_version="0.33.0",
        placement=model.placement,
        progress=model.progress,
        failure=model.failure,
        created_at=NOW - timedelta(minutes=len(model.id)),
        **given,
    )


SERVER = ServerInfo(
    host="gpu-box-01",
    version="0.1.0",
    pid=4711,
    started_at=NOW - timedelta(days=12, hours=4),
    listen="http://127.0.0.1:8000",
    device_source=DeviceSource.NVML,
    vllm_version="0.33.0",
)

QWEN = frozen_model(
    "qwen3-32b", EngineState.READY, placement=placed(0, 1, each_gib=70),
    memory_bytes=int(140.3 * GIB), in_flight=12, waiting=3, tokens_per_s=2841.0, ttft_p95_s=0.31,
    last_used_at=NOW, requests_total=48213,
)  # fmt: skip
BGE = frozen_model(
    "bge-m3", EngineState.READY, placement=placed(3, each_gib=4.6), memory_bytes=int(4.6 * GIB),
    tokens_per_s=0.0, ttft_p95_s=0.022, context_length=8192, weights_bytes=2 * GIB,
    need_bytes=5 * GIB, requests_total=1902,
    settings=ModelSettings(path="/srv/models/bge-m3", task=Task.EMBED, always_on=True),
)  # fmt: skip
RERANK = frozen_model(
    "rerank-v2", EngineState.READY, placement=placed(3, each_gib=3.1), memory_bytes=int(3.1 * GIB),
    tokens_per_s=0.0, ttft_p95_s=0.018, idle_unload_at=NOW + timedelta(minutes=4, seconds=12),
    context_length=4096, requests_total=77,
)  # fmt: skip
GEMMA = frozen_model(
    "gemma3-27b", EngineState.LOADING, placement=placed(2, each_gib=65),
    memory_bytes=int(18.4 * GIB), waiting=7, context_length=16384,
    progress=LoadProgress(
        phase=LoadPhase.WEIGHTS, ratio=0.64, detail="9/14 shards", elapsed_s=52.0, eta_s=38.0,
        eta_loads=6,
    ),
)  # fmt: skip
LLAMA = frozen_model(
    "llama4-scout", EngineState.ASLEEP, memory_bytes=int(1.1 * GIB),
    idle_unload_at=NOW + timedelta(minutes=37),
)  # fmt: skip
MIXTRAL = frozen_model("mixtral-8x22b", EngineState.FAILED, failure=FAILURE)
PHI = frozen_model("phi4-mini", EngineState.STOPPED, weights_bytes=8 * GIB, need_bytes=11 * GIB)

DEVICES = [
    device(0, 71.2, ("qwen3-32b", 32, 36), utilization_ratio=0.94, temperature_c=61, power_w=642),
    device(1, 78.1, ("qwen3-32b", 32, 36), utilization_ratio=0.91, temperature_c=63, power_w=628),
    device(2, 18.4, ("gemma3-27b", 51, 12)),
    device(3, 28.9, ("bge-m3", 2.2, 2), ("rerank-v2", 1.1, 2), other_gib=21.0,
           utilization_ratio=0.0, temperature_c=38, power_w=96),
]  # fmt: skip

WARM = Launcher(
    environment="cpu", state=LauncherState.WARM, pid=4750, import_s=9.1, memory_bytes=542 * 1024**2
)
NOT_WARM = Launcher(
    environment="cpu", state=LauncherState.FAILED, import_s=9.1,
    problem="exit status 1: ModuleNotFoundError: No module named 'vllm'",
)  # fmt: skip

FIRST_FAILURE = Failure(
    cause=FailureCause.MISSING_FILES,
    message="model-00003-of-00014.safetensors cannot be read: Permission denied",
    hint="Let the server's user read the directory.",
    at=NOW - timedelta(minutes=9),
    log_line=88,
    engine_id="eng_mixtral-1",
)

ALERTS = [
    Alert(
        id="a1", at=NOW - timedelta(seconds=175), severity="warning",
        message="gpu 1 at 83C for 40 s, clocks throttled", hint="Check the airflow.",
    ),
    Alert(
        id="a2", at=NOW - timedelta(seconds=7), severity="error", model="mixtral-8x22b",
        message="needs 131.0 GiB, 52.0 GiB are free", hint="Enter: why, what to do",
    ),
]  # fmt: skip


def batch(
    number: int,
    status: BatchStatus,
    counts: tuple[int, int, int] = (0, 0, 0),
    models: tuple[str, ...] = ("qwen3-32b",),
    **facts: object,
) -> BatchProgress:
    """`counts` are total, completed, failed; `batch` among the facts holds those of the batch."""
    total, completed, failed = counts
    made = int(NOW.timestamp()) - 3600 + number
    given = {
        "expires_at": made + 86400,
        "usage": BatchUsage(input_tokens=completed * 210, output_tokens=completed * 96),
        **facts.pop("batch", {}),
    }
    known = Batch(
        id=f"batch_{number:x}{'9f2c5e81' * 4}"[:38],
        endpoint="/v1/chat/completions",
        input_file_id="file-41c0",
        completion_window="24h",
        status=status,
        created_at=made,
        request_counts=RequestCounts(total=total, completed=completed, failed=failed),
        **given,
    )
    return BatchProgress(batch=known, models=list(models), **facts)


RUNNING = batch(
    1, BatchStatus.IN_PROGRESS, (50_000, 40_501, 11), in_flight=128, retried=7, lines_per_s=218.4,
    tokens_per_s=20_966.0, eta_s=190.0, waited_s=34.0, batch={"metadata": {"run": "nightly 7"}},
)  # fmt: skip
HELD = batch(2, BatchStatus.IN_PROGRESS, (1_200, 100, 0), ("bge-m3",), is_paused=True)
STUCK = batch(
    3, BatchStatus.IN_PROGRESS, (8_000, 0, 0), ("mixtral-8x22b", "phi4-mini"),
    problem="mixtral-8x22b: needs 131.0 GiB, 52.0 GiB are free on 4 devices",
)  # fmt: skip
JUDGED = batch(4, BatchStatus.VALIDATING, models=())
BAD_FILE = batch(
    5, BatchStatus.FAILED, models=(),
    batch={
        "errors": BatchErrors(
            data=[
                BatchError(code="invalid_json_line", line=2,
                           message="This line is not parseable as valid JSON."),
                BatchError(code="model_not_found", line=17, param="body.model",
                           message="The provided model 'gpt' is not supported by the Batch API."),
            ]
        ),
        "failed_at": int(NOW.timestamp()) - 3000,
    },
)  # fmt: skip
DONE = batch(
    6, BatchStatus.COMPLETED, (2_000, 1_988, 12),
    batch={"completed_at": int(NOW.timestamp()) - 60, "output_file_id": "file-aa10",
           "error_file_id": "file-aa11"},
)  # fmt: skip
CUT = batch(
    7, BatchStatus.CANCELLED, (500, 120, 0), batch={"cancelled_at": int(NOW.timestamp()) - 600}
)
AGAIN = batch(8, BatchStatus.VALIDATING, models=())
BATCHES = [RUNNING, HELD, STUCK, JUDGED, BAD_FILE, DONE, CUT]
LINE_FAILURES = [
    LineFailure(line=number * 31, custom_id=f"request-{number}", status_code=400,
                code="context_length_exceeded",
                message="This model's maximum context length is 32768 tokens.")
    for number in range(1, 4)
] + [LineFailure(line=1999, custom_id="request-[b]\x1b[31m", message="never ran")]  # fmt: skip


def snapshot(**changes: object) -> Snapshot:
    models = changes.pop("models", [QWEN, BGE, RERANK, GEMMA, LLAMA, MIXTRAL, PHI])
    facts = {
        "seq": 100,
        "server": SERVER,
        "devices": DEVICES,
        "models": models,
        "engines": [engine_of(model) for model in models if model.engine_id],
        "alerts": ALERTS,
        "totals": Totals(requests_per_s=12.4, tokens_per_s=2843.0, requests_total=51234),
        "batches": [],
        **changes,
    }
    return Snapshot(**facts)


def empty() -> Snapshot:
    return snapshot(
        models=[], alerts=[], devices=[device(i, 0.5) for i in range(4)], totals=Totals()
    )


def many_devices(count: int) -> list[Device]:
    return [
        device(i, 8.0 + 4.5 * i, ("qwen3-32b", 5 + 2 * i, 3 + 2.5 * i), utilization_ratio=i / 16)
        for i in range(count)
    ]


def simulated() -> list[Device]:
    facts = {"kind": DeviceKind.SIMULATED, "name": "simulated",
             "utilization_ratio": None, "temperature_c": None, "power_w": None}  # fmt: skip
    return [device(i, 6.0, ("qwen3-32b", 4, 1), total_gib=24, **facts) for i in range(3)]


def cpu(launcher_bytes: int = 0) -> list[Device]:
    facts = {"kind": DeviceKind.CPU, "name": "AMD EPYC",
             "utilization_ratio": 0.41, "temperature_c": None, "power_w": None}  # fmt: skip
    facts["launcher_bytes"] = launcher_bytes
    return [device(0, 21.0, ("qwen3-32b", 4, 1), other_gib=12, total_gib=62.7, **facts)]


PLAN = PlanVerdict(
    verdict="evict",
    message="fits on devices 2, 3 after llama4-scout is gone",
    need_bytes=int(59.7 * GIB),
    placement=placed(2, 3, each_gib=59.7),
    evicts=["llama4-scout"],
    load_s=130.0,
    loads=3,
)

LOG = [
    f"INFO 03-14 12:{i // 60:02d}:{i % 60:02d} [core.py:58] step {i} of the engine"
    for i in range(1, 3001)
]
LOG[13] = "ERROR 03-14 12:00:14 [core.py:700] CUDA out of memory. Tried to allocate 3.50 GiB."
LOG[2979] = "WARNING 03-14 12:49:40 [scheduler.py:88] Memory usage is higher than expected"
LOG[2984] = "ERROR 03-14 12:49:45 [core.py:700] a request failed: " + "very long reason " * 12
LOG[2990] = "(EngineCore pid=41822) DEBUG 03-14 12:49:51 nothing of interest"
