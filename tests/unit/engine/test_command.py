from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from appliance.engine.command import EngineSpec, build_argv, build_env
from appliance.engine.environments import EnvironmentRecord
from appliance.protocol.devices import DeviceKind
from appliance.protocol.models import ModelSettings, Task
from appliance.units import GIB, MIB

OPTIONAL = [
    "--kv-cache-memory-bytes",
    "--disable-uvicorn-access-log",
    "--enable-request-id-headers",
]
UNIPROC = "vllm.v1.executor.uniproc_executor.UniProcExecutor"


def environment(
    flags: list[str] = OPTIONAL, launch: tuple[str, ...] = ("/e/bin/python", "-m", "vllm.server")
) -> EnvironmentRecord:
    return EnvironmentRecord(
        name="cpu-0.32.0",
        platform="cpu",
        vllm_version="0.32.0",
        torch_version="2.13.0",
        python_version="3.11.2",
        launch=list(launch),
        flags=flags,
        size_bytes=1,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        has_sleep_mode=False,
    )


def spec(kind: DeviceKind = DeviceKind.CPU, **changes: object) -> EngineSpec:
    settings = {
        name: changes.pop(name) for name in set(changes) - set(EngineSpec.__dataclass_fields__)
    }
    fields: dict[str, object] = {
        "engine_id": "eng_1",
        "model": "chat",
        "settings": msgspec.convert(
            {"path": "/models/x", "task": Task.GENERATE, **settings}, ModelSettings
        ),
        "context_length": 2048,
        "kv_cache_bytes": GIB,
        "need_bytes": 6 * GIB,
        "weights_bytes": 2 * GIB,
        "device_kind": kind,
        "device_indices": (0,),
        "device_bytes": 24 * GIB,
        "cpu_cores": (0, 1, 4, 5),
        "socket": Path("/run/engines/eng_1.sock"),
        "cache": Path("/cache"),
    }
    return EngineSpec(**{**fields, **changes})  # type: ignore[arg-type]


def value_of(argv: list[str], flag: str) -> str | None:
    return argv[argv.index(flag) + 1] if flag in argv else None


@pytest.mark.parametrize("kind", list(DeviceKind))
def test_every_engine_is_told_what_and_where(kind: DeviceKind) -> None:
    argv = build_argv(spec(kind), environment())
    assert argv[:3] == ["/e/bin/python", "-m", "vllm.server"]
    assert value_of(argv, "--model") == "/models/x"
    assert value_of(argv, "--served-model-name") == "chat"
    assert value_of(argv, "--uds") == "/run/engines/eng_1.sock"
    assert value_of(argv, "--max-model-len") == "2048"
    assert value_of(argv, "--dtype") == "auto"
    assert value_of(argv, "--kv-cache-memory-bytes") == str(GIB)
    assert "--disable-uvicorn-access-log" in argv
    assert "--tensor-parallel-size" not in argv
    assert "--max-num-seqs" not in argv


def test_serve_takes_the_model_as_a_word() -> None:
    argv = build_argv(spec(), environment(launch=("/e/bin/vllm", "serve")))
    assert argv[:3] == ["/e/bin/vllm", "serve", "/models/x"]
    assert "--model" not in argv


@pytest.mark.parametrize("kind", [DeviceKind.CPU, DeviceKind.SIMULATED])
def test_engine_on_the_cpu_is_eager_and_in_one_process(kind: DeviceKind) -> None:
    argv = build_argv(spec(kind), environment())
    assert "--enforce-eager" in argv
    assert value_of(argv, "--distributed-executor-backend") == UNIPROC
    assert "--gpu-memory-utilization" not in argv


def test_engine_on_a_gpu_is_compiled_and_gets_its_share() -> None:
    argv = build_argv(spec(DeviceKind.GPU), environment())
    assert "--enforce-eager" not in argv
    assert "--distributed-executor-backend" not in argv
    assert value_of(argv, "--gpu-memory-utilization") == "0.250"


def test_share_of_a_gpu_is_never_all_of_it() -> None:
    argv = build_argv(spec(DeviceKind.GPU, need_bytes=24 * GIB), environment())
    assert value_of(argv, "--gpu-memory-utilization") == "0.950"


@pytest.mark.parametrize("kind", list(DeviceKind))
def test_split_model(kind: DeviceKind) -> None:
    argv = build_argv(spec(kind, tp_size=2, device_indices=(1, 3)), environment())
    assert value_of(argv, "--tensor-parallel-size") == "2"
    assert "--distributed-executor-backend" not in argv


def test_settings_of_the_model_are_passed_on() -> None:
    argv = build_argv(
        spec(dtype="bfloat16", max_sequences=3, extra_args=["--seed", "7"]), environment()
    )
    assert value_of(argv, "--dtype") == "bfloat16"
    assert value_of(argv, "--max-num-seqs") == "3"
    assert argv[-2:] == ["--seed", "7"]


@pytest.mark.parametrize("flag", OPTIONAL)
def test_option_that_the_build_lacks_is_left_out(flag: str) -> None:
    assert flag in build_argv(spec(), environment())
    assert flag not in build_argv(spec(), environment([each for each in OPTIONAL if each != flag]))


def test_model_without_a_kv_cache_gets_the_least_budget() -> None:
    argv = build_argv(spec(kv_cache_bytes=0), environment())
    assert value_of(argv, "--kv-cache-memory-bytes") == str(64 * MIB)


SECRETS = {
    "HF_TOKEN": "hf_1",
    "HUGGING_FACE_HUB_TOKEN": "hf_2",
    "OPENAI_API_KEY": "sk-1",
    "AWS_SECRET_ACCESS_KEY": "a",
    "APPLIANCE_HOME": "/srv/a",
    "VLLM_API_KEY": "v",
    "PYTHONPATH": "/evil",
    "LD_PRELOAD": "/evil.so",
    "CREDENTIALS_DIRECTORY": "/run/credentials",
    "NOTIFY_SOCKET": "/run/notify",
}
HARMLESS = {"PATH": "/usr/bin", "HOME": "/root", "LANG": "C.UTF-8", "LC_ALL": "C", "TMPDIR": "/tmp"}


def test_secrets_of_the_server_do_not_reach_the_engine() -> None:
    env = build_env(spec(), environment(), {**SECRETS, **HARMLESS})
    assert not SECRETS.keys() & env.keys()
    assert not set(SECRETS.values()) & set(env.values())
    assert env.items() >= HARMLESS.items()


@pytest.mark.parametrize("kind", list(DeviceKind))
def test_engine_is_marked_and_stays_off_the_network(kind: DeviceKind) -> None:
    env = build_env(spec(kind), environment(), {})
    assert env["VLLM_APPLIANCE_ENGINE"] == "eng_1"
    assert env["HF_HUB_OFFLINE"] == "1"
    assert env["VLLM_NO_USAGE_STATS"] == "1"
    assert env["VLLM_CACHE_ROOT"] == "/cache/vllm/cpu-0.32.0"


def test_engine_on_gpus_sees_its_own_alone() -> None:
    env = build_env(spec(DeviceKind.GPU, tp_size=2, device_indices=(1, 3)), environment(), {})
    assert env["CUDA_VISIBLE_DEVICES"] == "1,3"
    assert env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


@pytest.mark.parametrize("kind", [DeviceKind.CPU, DeviceKind.SIMULATED])
def test_engine_on_the_cpu_sees_no_gpu(kind: DeviceKind) -> None:
    env = build_env(spec(kind), environment(), {"CUDA_VISIBLE_DEVICES": "0"})
    assert env["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize(("budget", "space"), [(0, "1"), (GIB, "1"), (3 * GIB, "3")])
def test_build_without_the_kv_option_gets_whole_gigabytes(budget: int, space: str) -> None:
    env = build_env(spec(kv_cache_bytes=budget), environment([]), {})
    assert env["VLLM_CPU_KVCACHE_SPACE"] == space
    assert "VLLM_CPU_KVCACHE_SPACE" not in build_env(spec(), environment(), {})


def test_variables_of_the_model_are_set() -> None:
    env = build_env(
        spec(env={"VLLM_LOGGING_LEVEL": "DEBUG", "HOME": "/h"}), environment(), HARMLESS
    )
    assert env["VLLM_LOGGING_LEVEL"] == "DEBUG"
    assert env["HOME"] == "/h"


@pytest.mark.parametrize(
    ("cores", "ranks", "expected"),
    [
        ((0, 1, 4, 5), 2, "0,4|1,5"),
        ((0, 1, 2), 2, "0,2|1"),
        ((3,), 2, "3|3"),
        ((0, 1), 3, "0|1|0"),
    ],
)
def test_ranks_on_the_cpu_divide_its_cores(
    cores: tuple[int, ...], ranks: int, expected: str
) -> None:
    env = build_env(spec(cpu_cores=cores, tp_size=ranks), environment(), {})
    assert env["VLLM_CPU_OMP_THREADS_BIND"] == expected


def test_cores_of_an_engine_that_is_not_split_are_left_to_it() -> None:
    assert "VLLM_CPU_OMP_THREADS_BIND" not in build_env(spec(), environment(), {})


def test_nothing_is_compiled_on_the_cpu() -> None:
    assert build_env(spec(), environment(), {})["TORCHDYNAMO_DISABLE"] == "1"
    assert "TORCHDYNAMO_DISABLE" not in build_env(spec(DeviceKind.GPU), environment(), {})


@pytest.mark.parametrize(
    ("has_sleep_mode", "flags", "sleep", "expected"),
    [
        (True, [*OPTIONAL, "--enable-sleep-mode"], "auto", True),
        (True, [*OPTIONAL, "--enable-sleep-mode"], 2, True),
        (True, [*OPTIONAL, "--enable-sleep-mode"], "off", False),
        (True, OPTIONAL, "auto", False),
        # vLLM's CPU build has the option and refuses to start with it.
        (False, [*OPTIONAL, "--enable-sleep-mode"], "auto", False),
    ],
)
def test_sleep_mode_is_turned_on_where_it_is_and_wanted(
    has_sleep_mode: bool, flags: list[str], sleep: object, expected: bool
) -> None:
    build = msgspec.structs.replace(environment(flags), has_sleep_mode=has_sleep_mode)
    wanted = spec(DeviceKind.GPU, sleep=sleep)
    assert ("--enable-sleep-mode" in build_argv(wanted, build)) is expected
    # Its endpoints would answer otherwise too, but open more than that.
    assert ("VLLM_SERVER_DEV_MODE" in build_env(wanted, build, {})) is expected


def test_people_go_first_where_the_engine_can_tell_them_from_batches() -> None:
    build = environment([*OPTIONAL, "--scheduling-policy"])
    argv = build_argv(spec(), build)
    assert argv[argv.index("--scheduling-policy") + 1] == "priority"
    assert "--scheduling-policy" not in build_argv(spec(), environment(OPTIONAL))
    # Embeddings take no time in which others would wait.
    assert "--scheduling-policy" not in build_argv(spec(task=Task.EMBED), build)
    own = build_argv(spec(extra_args=["--scheduling-policy", "fcfs"]), build)
    assert own.count("--scheduling-policy") == 1
    assert "priority" not in own


def test_an_engine_works_on_as_much_at_once_as_its_memory_was_estimated_for() -> None:
    sized = spec(DeviceKind.GPU, sequences=256, step_tokens=2048)
    argv = build_argv(sized, environment(OPTIONAL))
    assert argv[argv.index("--max-num-seqs") + 1] == "256"
    assert argv[argv.index("--max-num-batched-tokens") + 1] == "2048"
    own = spec(
        DeviceKind.GPU,
        sequences=256,
        step_tokens=2048,
        max_sequences=8,
        extra_args=["--max_num_batched_tokens=4096"],
    )
    argv = build_argv(own, environment(OPTIONAL))
    assert argv[argv.index("--max-num-seqs") + 1] == "8"
    assert "--max-num-batched-tokens" not in argv
