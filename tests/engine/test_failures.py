"""Real engines that fail for real: what a person is told, and what a client that waits gets."""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.disk import small_disk
from tests.support.server import LOAD_S, ServerProcess
from tests.support.wait import wait_until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

GIB = 1024**3
# Pretended memory, so that the planner lets engines ask for more than there is.
CONFIG = '[[devices.simulated]]\nmemory = "400GiB"\n[engines]\nmax_attempts = 1\n'
V1_MEMORY = Path("/sys/fs/cgroup/memory")
CopyModel = Callable[..., Path]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, prepared: Path) -> Iterator[ServerProcess]:
    """One for all engines that fail by themselves."""
    home = tmp_path_factory.mktemp("failures")
    server = ServerProcess(home, CONFIG, engines=prepared / "engines").start()
    yield server
    server.end()


@pytest.fixture
def copy_tiny(tmp_path: Path, prepared: Path) -> CopyModel:
    """A tiny model of one's own to be damaged, with another config.json."""

    def copy(name: str, **config: object) -> Path:
        path = tmp_path / name
        shutil.copytree(prepared / "models/tiny", path)
        file = path / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | config))
        return path

    return copy


def ask(server: ServerProcess, model: str) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=LOAD_S)


def fails(server: ServerProcess, model: str, cause: str, said: str, remedy: str) -> dict[str, Any]:
    """A client asks; the error, the model and the log say the same. Returns the failure."""
    answer = ask(server, model)
    assert answer.status_code == 503, answer.text
    error = answer.json()["error"]
    assert error["code"] == "model_load_failed"
    now = server.model(model)
    assert now["state"] == "failed"
    failure: dict[str, Any] = now["failure"]
    assert failure["cause"] == cause, failure
    for text in (failure["message"], error["message"]):
        assert said in text
    for text in (failure["hint"], error["message"]):
        assert remedy in text
    lines = failure["last_lines"]
    assert lines
    assert not [line for line in lines if line.startswith("File ") or "Completed |" in line]
    return failure


def said_in_log(server: ServerProcess, failure: dict[str, Any]) -> str:
    """The line that the failure points at, from the log of its engine."""
    path = f"/engines/{failure['engine_id']}/logs?from={failure['log_line']}&n=1"
    return str(server.admin("GET", path).json()["lines"][0])


def test_truncated_weights(server: ServerProcess, copy_tiny: CopyModel) -> None:
    path = copy_tiny("truncated")
    weights = path / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    server.add_model("truncated", path)
    said, remedy = "A file of the model is damaged", "Fetch the model's files again"
    failure = fails(server, "truncated", "corrupt_files", said, remedy)
    assert "Error while deserializing header" in said_in_log(server, failure)
    assert "Error while deserializing header" in failure["last_lines"][-1]


@pytest.mark.parametrize(
    ("name", "begin", "data", "word"),
    [
        ("garbled", 8, b"\xaa" * 100, "codec can't decode"),
        ("length", 0, b"\xff" * 8, "cannot fit 'int'"),
    ],
)
def test_garbled_weights(
    server: ServerProcess, copy_tiny: CopyModel, name: str, begin: int, data: bytes, word: str
) -> None:
    path = copy_tiny(name)
    with (path / "model.safetensors").open("r+b") as weights:
        weights.seek(begin)
        weights.write(data)
    server.add_model(name, path)
    said, remedy = "A file of the model is damaged", "Fetch the model's files again"
    failure = fails(server, name, "corrupt_files", said, remedy)
    assert word in said_in_log(server, failure)


def test_weights_of_another_model(server: ServerProcess, copy_tiny: CopyModel) -> None:
    server.add_model("mixed", copy_tiny("mixed", hidden_size=512))
    said = "The weights do not fit the model's config.json"
    failure = fails(server, "mixed", "corrupt_files", said, "from one version of it")
    assert "size of tensor a (512)" in said_in_log(server, failure)


def test_missing_weights(server: ServerProcess, copy_tiny: CopyModel) -> None:
    path = copy_tiny("gone")
    server.add_model("gone", path)
    (path / "model.safetensors").unlink()
    said = "Files of the model are missing: Cannot find any model weights"
    failure = fails(server, "gone", "missing_files", said, "Fetch them again")
    assert "Cannot find any model weights" in said_in_log(server, failure)


def test_missing_shard(server: ServerProcess, copy_tiny: CopyModel) -> None:
    path = copy_tiny("shards")
    first, second = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
    (path / "model.safetensors").rename(path / first)
    weight_map = {"model.embed_tokens.weight": first, "model.norm.weight": second}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    server.add_model("shards", path)
    failure = fails(server, "shards", "missing_files", second, "Fetch them again")
    assert "FileNotFoundError" in said_in_log(server, failure)


@pytest.mark.parametrize(
    ("name", "config", "word"),
    [
        ("architecture", {"architectures": ["FooForCausalLM"]}, "['FooForCausalLM'] are not supp"),
        (
            "model-type",
            {"architectures": ["FooForCausalLM"], "model_type": "foo"},
            "does not recognize this architecture",
        ),
    ],
)
def test_unknown_architecture(
    server: ServerProcess, copy_tiny: CopyModel, name: str, config: dict[str, object], word: str
) -> None:
    server.add_model(name, copy_tiny(name, **config))
    said, remedy = "This build of vLLM cannot run the model", "appliance engine install"
    failure = fails(server, name, "unsupported_model", said, remedy)
    assert word in said_in_log(server, failure)
    assert "Supported architectures" not in failure["message"]


@pytest.mark.parametrize(
    ("name", "settings", "word"),
    [
        ("flag", {"extra_args": ["--no-such-flag"]}, "unrecognized arguments: --no-such-flag"),
        ("dtype", {"dtype": "int3"}, "argument --dtype: invalid choice: 'int3'"),
        ("quantization", {"extra_args": ["--quantization=awq"]}, "the config file for awq"),
        ("number", {"extra_args": ["--max-num-batched-tokens=few"]}, "human_readable_int value"),
        ("block", {"extra_args": ["--block-size=7"]}, "No common block size for 7"),
        ("json", {"extra_args": ["--hf-overrides={nope"]}, "should be a valid dictionary"),
    ],
)
def test_bad_argument(
    server: ServerProcess, prepared: Path, name: str, settings: dict[str, Any], word: str
) -> None:
    server.add_model(name, prepared / "models/tiny", **settings)
    remedy = "Correct the model's settings"
    failure = fails(server, name, "bad_argument", "vLLM refuses an argument", remedy)
    assert word in failure["message"]
    assert word in said_in_log(server, failure)
    assert "input_value" not in failure["message"]


def test_kv_cache_too_small_names_the_context_that_fits(
    server: ServerProcess, copy_tiny: CopyModel
) -> None:
    """128 MiB are needed for one request, 64 MiB were set; half the context then works."""
    path = copy_tiny("context", max_position_embeddings=131072)
    server.add_model("context", path, kv_cache_bytes=64 * 1024**2)
    said, remedy = "The KV cache is too small for the context", "--context 65408"
    failure = fails(server, "context", "kv_cache_too_small", said, remedy)
    assert "larger than the available KV cache memory" in said_in_log(server, failure)
    changed = server.admin("PATCH", "/models/context", {"context_length": 65408})
    assert changed.status_code == 200, changed.text
    server.load("context")


def test_kv_cache_larger_than_the_memory(server: ServerProcess, prepared: Path) -> None:
    server.add_model("cache", prepared / "models/tiny", kv_cache_bytes=150 * GIB)
    said = "There is not enough free memory"
    failure = fails(
        server, "cache", "out_of_memory", said, "a smaller KV cache (`--kv-cache SIZE`)"
    )
    assert "150.0 GiB" in said_in_log(server, failure)


def test_weights_larger_than_the_memory(server: ServerProcess, copy_tiny: CopyModel) -> None:
    """200 GiB of embeddings by its config.json: no machine of ours allocates them."""
    server.add_model("weights", copy_tiny("weights", vocab_size=400_000_000))
    failure = fails(server, "weights", "out_of_memory", "It ran out of memory", "appliance stop")
    assert "allocate memory" in said_in_log(server, failure)


@contextmanager
def memory_cgroup(limit_bytes: int) -> Iterator[Path]:
    """A cgroup (v1) with a memory limit below our own; who is started in it stays in it."""
    own = next(
        (
            line.split(":", 2)[2]
            for line in Path("/proc/self/cgroup").read_text().splitlines()
            if "memory" in line.split(":")[1].split(",")
        ),
        None,
    )
    if own is None:
        pytest.skip("the memory controller is not mounted as cgroup v1")
    home = V1_MEMORY / own.lstrip("/")
    group = home / f"appliance-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(limit_bytes))
    except OSError as error:
        pytest.skip(f"no cgroup with a memory limit can be made here: {error}")
    try:
        (group / "cgroup.procs").write_text(str(os.getpid()))
        yield group
    finally:
        (home / "cgroup.procs").write_text(str(os.getpid()))


def test_engine_killed_by_the_kernel_for_want_of_memory(tmp_path: Path, prepared: Path) -> None:
    """The server, its launcher and another engine, all in the same cgroup, live on."""
    server = ServerProcess(tmp_path / "home", CONFIG, engines=prepared / "engines")
    group: Path | None = None
    try:
        with memory_cgroup(int(2.5 * GIB)) as group:
            server.start()
        server.add_model("small", prepared / "models/tiny")
        assert ask(server, "small").status_code == 200
        server.add_model("large", prepared / "models/tiny", kv_cache_bytes=6 * GIB)
        said, remedy = "The kernel killed the engine", "with a memory limit, raise that"
        failure = fails(server, "large", "oom_killed", said, remedy)
        assert failure["log_line"] is None
        assert ask(server, "small").status_code == 200
    finally:
        server.end()
        if group is not None:
            wait_until(lambda: not (group / "cgroup.procs").read_text(), 10)
            group.rmdir()


def fill(disk: Path) -> Path:
    file = disk / "fill"
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as output:
        while output.write(b"\0" * 4096):
            pass
    return file


def test_full_disks_that_vllm_does_without(tmp_path: Path, prepared: Path) -> None:
    """Its cache stays as it is, and Python finds another place for temporary files."""
    home = tmp_path / "home"
    server = ServerProcess(home, CONFIG, engines=prepared / "engines")
    with small_disk(tmp_path / "tmp", "256k") as disk, small_disk(home / "cache", "1m") as cache:
        server.env["TMPDIR"] = str(disk)
        try:
            server.start()
            fill(cache)
            fill(disk)
            server.add_model("tiny", prepared / "models/tiny")
            assert ask(server, "tiny").status_code == 200
        finally:
            server.end()


FULL_SHARED_MEMORY = (
    'mount -t tmpfs -o size=4k none /dev/shm && head -c 4096 /dev/zero > /dev/shm/fill; exec "$@"'
)


def test_full_shared_memory(tmp_path: Path, prepared: Path) -> None:
    """As in a container that was given little of it."""
    done = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("no mount namespace can be made here")
    server = ServerProcess(tmp_path / "home", CONFIG, engines=prepared / "engines")
    server.prefix = ["unshare", "-m", "sh", "-c", FULL_SHARED_MEMORY, "sh"]
    try:
        server.start()
        server.add_model("tiny", prepared / "models/tiny")
        failure = fails(server, "tiny", "disk_full", "The disk is full", "--shm-size")
        assert "No space left on device" in said_in_log(server, failure)
    finally:
        server.end()
