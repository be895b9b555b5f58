"""Command line and environment of an engine. Pure; the one place that knows vLLM's options."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from appliance.engine.environments import EnvironmentRecord
from appliance.engine.proctree import ENGINE_VARIABLE
from appliance.protocol.devices import DeviceKind
from appliance.protocol.models import ModelSettings, Task
from appliance.units import GIB, MIB

# Nothing else of the server's environment reaches an engine: no tokens, no keys.
_PASSED_ON = {
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR",
    "LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR",
}  # fmt: skip
_LEAST_KV_CACHE_BYTES = 64 * MIB
_SLEEP = "--enable-sleep-mode"
_SCHEDULING = "--scheduling-policy"
# Without the separate worker process a start takes a third less time and memory on the CPU.
_IN_PROCESS_EXECUTOR = "vllm.v1.executor.uniproc_executor.UniProcExecutor"


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """All that decides how an engine is started. `kv_cache_bytes` is per rank."""

    engine_id: str
    model: str
    settings: ModelSettings
    context_length: int
    kv_cache_bytes: int
    need_bytes: int
    """Estimated memory per rank."""
    weights_bytes: int
    """Of all ranks."""
    device_kind: DeviceKind
    device_indices: tuple[int | str, ...]
    """As CUDA_VISIBLE_DEVICES names them: UUIDs where indices are not enough."""
    device_bytes: int
    """Size of the smallest device that it uses."""
    cpu_cores: tuple[int, ...]
    """Cores that this process may use."""
    socket: Path
    cache: Path
    sequences: int | None = None
    """What its memory was estimated for; None: left to vLLM."""
    step_tokens: int | None = None
    temporary: Path | None = None
    """A directory of its own, which goes with the engine."""


def build_argv(spec: EngineSpec, environment: EnvironmentRecord) -> list[str]:
    """The engine's command line; options that its build does not know are left out."""
    settings = spec.settings
    tp_size = settings.ranks
    argv = list(environment.launch)
    # `vllm serve` wants the model as a positional argument, the module as an option.
    argv += [settings.path] if argv[-1] == "serve" else ["--model", settings.path]
    argv += ["--served-model-name", spec.model, "--uds", str(spec.socket)]
    argv += ["--max-model-len", str(spec.context_length), "--dtype", settings.dtype]
    if tp_size > 1:
        argv += ["--tensor-parallel-size", str(tp_size)]
    argv += _limits(spec)
    argv += _memory_options(spec, environment)
    if spec.device_kind is not DeviceKind.GPU:
        # Compiled models answered nonsense on the CPU (vLLM 0.32), after minutes of compiling.
        argv += ["--enforce-eager"]
        if tp_size == 1:
            argv += ["--distributed-executor-backend", _IN_PROCESS_EXECUTOR]
    if can_sleep(settings, environment):
        argv.append(_SLEEP)
    if has_priorities(settings, environment):
        argv += [_SCHEDULING, "priority"]
    for flag in ("--disable-uvicorn-access-log", "--enable-request-id-headers"):
        if environment.has_flag(flag):
            argv.append(flag)
    return argv + settings.extra_args


def _limits(spec: EngineSpec) -> list[str]:
    """What the estimate reckoned with; what the owner says in other ways goes first."""
    wanted = {
        "--max-num-seqs": spec.settings.max_sequences or spec.sequences,
        "--max-num-batched-tokens": spec.step_tokens,
    }
    said = {argument.partition("=")[0].replace("_", "-") for argument in spec.settings.extra_args}
    return [
        word
        for flag, count in wanted.items()
        if count is not None and flag not in said
        for word in (flag, str(count))
    ]


def can_sleep(settings: ModelSettings, environment: EnvironmentRecord) -> bool:
    """vLLM refuses the option where its platform has no sleep mode."""
    return settings.sleep != "off" and environment.has_sleep_mode and environment.has_flag(_SLEEP)


def has_priorities(settings: ModelSettings, environment: EnvironmentRecord) -> bool:
    """Whether a request may say `priority` (lower goes first, 0 unless said); else vLLM refuses it.

    An owner who chose a policy keeps it.
    """
    is_chosen = any(each.startswith(_SCHEDULING) for each in settings.extra_args)
    is_generating = settings.task is Task.GENERATE
    return is_generating and environment.has_flag(_SCHEDULING) and not is_chosen


def build_env(
    spec: EngineSpec, environment: EnvironmentRecord, environ: Mapping[str, str]
) -> dict[str, str]:
    """The engine's environment variables."""
    env = build_base_env(spec.device_kind, environment, spec.cache, environ)
    env[ENGINE_VARIABLE] = spec.engine_id
    if can_sleep(spec.settings, environment):
        # Opens vLLM's endpoints for development, which clients never reach: the socket is ours,
        # and the gateway forwards an allow-list.
        env["VLLM_SERVER_DEV_MODE"] = "1"
    if spec.temporary is not None:
        env["TMPDIR"] = str(spec.temporary)
    if spec.device_kind is DeviceKind.GPU:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(str(index) for index in spec.device_indices)
    else:
        if spec.settings.ranks > 1:
            env["VLLM_CPU_OMP_THREADS_BIND"] = _cores_by_rank(spec)
        if not environment.has_flag("--kv-cache-memory-bytes"):
            env["VLLM_CPU_KVCACHE_SPACE"] = str(max(round(spec.kv_cache_bytes / GIB), 1))
    return env | spec.settings.env


def build_base_env(
    kind: DeviceKind, environment: EnvironmentRecord, cache: Path, environ: Mapping[str, str]
) -> dict[str, str]:
    """What all engines of an environment have in common, and the launcher that forks them."""
    env = {
        name: value
        for name, value in environ.items()
        if name in _PASSED_ON or name.startswith("LC_")
    }
    env |= {
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_CACHE_ROOT": str(cache / "vllm" / environment.name),
        # torch would keep what it has compiled among the temporary files.
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "torchinductor" / environment.name),
    }
    if kind is DeviceKind.GPU:
        env["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    else:
        env["CUDA_VISIBLE_DEVICES"] = ""
        # The first request for logprobs would compile a kernel for 16 s, and kill the engine on a
        # machine without a C++ compiler (vLLM 0.32).
        env["TORCHDYNAMO_DISABLE"] = "1"
        # Idle threads of the OpenMP team spin (libgomp: 300,000 rounds) and take the cores from the
        # API server and other engines: a sixth of the throughput. Few rounds still bridge the gaps
        # of a single stream, which takes twice as long without any.
        env["GOMP_SPINCOUNT"] = "6000"
    return env


def _cores_by_rank(spec: EngineSpec) -> str:
    """The cores of each rank, ranks separated by a bar; ranks share where cores lack."""
    ranks, cores = spec.settings.ranks, spec.cpu_cores
    groups = [cores[rank::ranks] or (cores[rank % len(cores)],) for rank in range(ranks)]
    return "|".join(",".join(str(core) for core in group) for group in groups)


def _memory_options(spec: EngineSpec, environment: EnvironmentRecord) -> list[str]:
    """An explicit KV budget, so that several engines share a device.

    vLLM 0.32 refuses to start on a GPU with less free memory than its utilization asks for, also
    when the KV budget is explicit (v1/worker/utils.py, request_memory), so both are given. On the
    CPU only an explicit budget turns that check off, so models without a KV cache get one too.
    """
    options: list[str] = []
    if environment.has_flag("--kv-cache-memory-bytes"):
        options = ["--kv-cache-memory-bytes", str(max(spec.kv_cache_bytes, _LEAST_KV_CACHE_BYTES))]
    if spec.device_kind is DeviceKind.GPU and spec.device_bytes:
        share = min(spec.need_bytes / spec.device_bytes, 0.95)
        options += ["--gpu-memory-utilization", f"{share:.3f}"]
    return options
