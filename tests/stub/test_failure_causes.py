"""Causes that this kind of machine does not have, in the words of the programs that have them."""

import signal
from typing import Any

import httpx
import pytest

from tests.stub.conftest import MakeModel, MakeServer, starts_of
from tests.support.server import ServerProcess
from tests.support.wait import wait_until

CONFIG = '[[devices.simulated]]\nmemory = "8GiB"\n[engines]\nmax_attempts = 1\n'
CORE = "(EngineCore pid=77) ERROR 11-21 08:57:34 [core.py:1510]"
START = [
    "(APIServer pid=76) INFO 11-21 08:57:20 [model.py:733] Resolved architecture: LlamaForCausalLM",
    "Loading safetensors checkpoint shards:   0% Completed | 0/4 [00:00<?, ?it/s]",
    f"{CORE} EngineCore failed to start.",
    f"{CORE} Traceback (most recent call last):",
    f'{CORE}   File "/env/vllm/v1/engine/core.py", line 1482, in run_engine_core',
    f"{CORE}     engine_core = EngineCoreProc(*args, engine_index=dp_rank, **kwargs)",
]
END = [
    "Process EngineCore:",
    "Traceback (most recent call last):",
    "RuntimeError: Engine core initialization failed. See root cause above."
    " Failed core proc(s): {'EngineCore': 1}",
]
CUDA_OOM = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total"
    " capacity of 79.11 GiB of which 1.06 GiB is free. Including non-PyTorch memory, this process"
    " has 78.04 GiB memory in use."
)
KV_CACHE = (
    "ValueError: To serve at least one request with the model's max seq len (131072), (16.0 GiB KV"
    " cache is needed, which is larger than the available KV cache memory (4.0 GiB). Based on the"
    " available memory, the estimated maximum model length is 32768. Try increasing"
    " `gpu_memory_utilization` or decreasing `max_model_len` when initializing the engine."
)
GATED = [
    "OSError: You are trying to access a gated repo.",
    "Make sure to have access to it at https://huggingface.co/meta-llama/Llama-2-7b-hf.",
    "401 Client Error. (Request ID: Root=1-6735bc0f)",
]
BIND = (
    "(APIServer pid=76) ERROR:    [Errno 98] error while attempting to bind on address"
    " ('0.0.0.0', 8000): address already in use"
)
UNKNOWN = "AssertionError: expected 4 heads, got 3"

# What it is called; what vLLM prints; the cause; what the message says; what the hint names.
CASES: dict[str, tuple[list[str], str, str, str]] = {
    "cuda memory": ([CUDA_OOM], "out_of_memory", "It ran out of memory: CUDA", "--context"),
    "kv cache": ([KV_CACHE], "kv_cache_too_small", "KV cache", "`appliance set a --context 32768`"),
    "driver too old": (
        [
            "RuntimeError: The NVIDIA driver on your system is too old (found version 11040)."
            " Please update your GPU driver."
        ],
        "driver",
        "The NVIDIA driver does not work with this engine",
        "nvidia-smi",
    ),
    "driver upgraded": (
        [
            "RuntimeError: Unexpected error from cudaGetDeviceCount(). Error 803: system has"
            " unsupported display driver / cuda driver combination"
        ],
        "driver",
        "The NVIDIA driver does not work with this engine",
        "restarted",
    ),
    "library missing": (
        ["ImportError: libcudart.so.13: cannot open shared object file: No such file or directory"],
        "driver",
        "A library does not fit",
        "appliance engine install",
    ),
    "library of another build": (
        [
            "ImportError: /env/vllm/_C.abi3.so: undefined symbol:"
            " _ZN5torch3jit17parseSchemaOrNameERKSsb"
        ],
        "driver",
        "A library does not fit",
        "appliance engine install",
    ),
    "gpu too old": (
        ["RuntimeError: CUDA error: no kernel image is available for execution on the device"],
        "driver",
        "A library does not fit",
        "appliance engine install",
    ),
    "gated": (GATED, "gated_files", "The files are gated", "Accept the model's licence"),
    "not fetched": (
        [
            "huggingface_hub.errors.LocalEntryNotFoundError: Cannot find the requested files in the"
            " disk cache and outgoing traffic has been disabled."
        ],
        "missing_files",
        "engines fetch none themselves",
        "Fetch the files first",
    ),
    "port": ([BIND], "socket", "could not open its socket or port", "ports in the model's arg"),
    "socket": (
        ["OSError: AF_UNIX path too long"],
        "socket",
        "could not open its socket or port",
        "shorter APPLIANCE_HOME",
    ),
    "open files": (
        ["OSError: [Errno 24] Too many open files"],
        "socket",
        "may not open as many files",
        "LimitNOFILE=",
    ),
    "shared memory": (
        ["OSError: [Errno 28] No space left on device: '/dev/shm/psm_1234'"],
        "disk_full",
        "/dev/shm) is full",
        "--shm-size",
    ),
    "unknown": ([UNKNOWN], "crashed", UNKNOWN, "`appliance logs a`"),
}


def ask(server: ServerProcess, model: str = "a") -> httpx.Response:
    body = {"model": model, "messages": []}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)


def log_line(server: ServerProcess, failure: dict[str, Any]) -> str:
    """The line that the failure points at, from the log of its engine."""
    path = f"/engines/{failure['engine_id']}/logs?from={failure['log_line']}&n=1"
    return str(server.admin("GET", path).json()["lines"][0])


@pytest.fixture
def server(make_server: MakeServer) -> ServerProcess:
    return make_server(CONFIG)


@pytest.mark.parametrize("case", CASES)
def test_cause_and_remedy_are_told_to_who_waits(
    server: ServerProcess, make_model: MakeModel, case: str
) -> None:
    words, cause, said, remedy = CASES[case]
    core = [f"{CORE} {word}" if not word.startswith("(") else word for word in words]
    server.add_model("a", make_model("a", says=[*START, *core, *END]))
    answer = ask(server)
    assert answer.status_code == 503
    error = answer.json()["error"]
    assert error["code"] == "model_load_failed"
    assert cause in error["message"]
    assert said in error["message"]
    model = server.model("a")
    failure = model["failure"]
    assert (model["state"], failure["cause"]) == ("failed", cause)
    assert said in failure["message"]
    shown = failure["hint"].replace("MODEL", "a")
    assert remedy in shown
    assert words[0] in log_line(server, failure)
    assert failure["last_lines"][-len(words)] in words[0]
    assert not [line for line in failure["last_lines"] if "Completed" in line or "File" in line]
    # Nobody tries it again, and nobody waits.
    assert ask(server).status_code == 503
    assert model["first_failure"] is None


@pytest.mark.parametrize(
    ("number", "cause", "said"),
    [
        (signal.SIGKILL, "killed", "SIGKILL"),
        (signal.SIGSEGV, "crashed", "signal 11"),
        (signal.SIGBUS, "crashed", "signal 7"),
    ],
)
def test_signals(
    server: ServerProcess, make_model: MakeModel, number: signal.Signals, cause: str, said: str
) -> None:
    words = ["(APIServer pid=76) INFO 11-21 08:57:20 [model.py:733] Using max model len 128"]
    server.add_model("a", make_model("a", says=words, signal=int(number)))
    assert ask(server).status_code == 503
    failure = server.model("a")["failure"]
    assert failure["cause"] == cause
    assert said in failure["message"]
    assert failure["log_line"] is None
    assert failure["hint"]
    assert failure["last_lines"] == ["Using max model len 128"]


def test_first_failure_of_a_series_stays_readable_until_a_person_acts(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    server = make_server(
        '[[devices.simulated]]\nmemory = "8GiB"\n'
        '[engines]\nmax_attempts = 6\nretry_first = "0.3s"\nretry_most = "0.3s"\nkeep_logs = 2\n'
    )
    path = make_model("a", says=[*START, f"{CORE} {CUDA_OOM}", *END])
    server.add_model("a", path, always_on=True)
    first = wait_until(lambda: server.model("a")["failure"])
    # What comes after is another failure, and says less.
    make_model("a", says=["ConnectionResetError: [Errno 104] Connection reset by peer"])
    wait_until(lambda: starts_of(path) == 6, 30)
    model = wait_until(
        lambda: now if (now := server.model("a"))["failure"]["attempts"] == 6 else None
    )
    assert model["failure"]["retry_at"] is None
    assert model["failure"]["cause"] == "crashed"
    kept = model["first_failure"]
    assert kept["cause"] == "out_of_memory"
    assert (kept["engine_id"], kept["message"]) == (first["engine_id"], first["message"])
    assert kept["engine_id"] != model["failure"]["engine_id"]
    assert CUDA_OOM in log_line(server, kept)
    logs = sorted(server.paths.engine_logs.glob("a.*.eng_*.log"))
    assert len(logs) <= 3
    assert any(kept["engine_id"] in file.name for file in logs)
    engines = server.state()["engines"]
    named = {kept["engine_id"], model["failure"]["engine_id"]}
    assert {engine["id"] for engine in engines} == named
    assert {engine["failure"]["engine_id"] for engine in engines} == named
    make_model("a")
    server.load("a")
    model = server.model("a")
    assert (model["failure"], model["first_failure"]) == (None, None)
    assert server.admin("GET", f"/engines/{kept['engine_id']}").status_code == 404
