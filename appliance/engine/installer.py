"""Makes engine environments: a venv, exact packages, compiled files, a probe, then the manifest.

Afterwards warm starts are checked, which is no part of the installation: it cannot fail for that.
Every step can be repeated, so an interrupted installation goes on when it is started again.
"""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from appliance.engine import preflight
from appliance.engine.environments import EnvironmentRecord, EnvironmentStore
from appliance.engine.pip_run import Report, run_pip
from appliance.engine.probe import ProbeResult, probe
from appliance.engine.warm_check import prepare_starts
from appliance.errors import EngineEnvironmentError
from appliance.units import format_size

TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
DEFAULT_NAMES = {"cpu": "cpu-0.32.0", "cuda": "cuda-0.33.0"}
_LOCKS = Path(__file__).with_name("locks")


class _Pip(Protocol):
    """How the steps below call pip."""

    def __call__(self, *arguments: str, total: int | None) -> None: ...


def lock_file(platform: str) -> Path:
    """The list of packages of a platform's environment."""
    return _LOCKS / f"{DEFAULT_NAMES[platform]}.txt"


def read_requirements(path: Path) -> list[str]:
    """The requirement lines of a list of packages."""
    lines = (line.strip() for line in path.read_text().splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def install(
    store: EnvironmentStore,
    *,
    platform: str,
    name: str | None = None,
    cache: Path | None = None,
    report: Report,
) -> EnvironmentRecord:
    """Make the environment, or finish it; raises EngineEnvironmentError.

    `platform` is `auto`, `cpu` or `cuda`. A complete environment of that name stays as it is.
    `cache` is where its engines keep what they find out; without one, warm starts are not checked.
    """
    chosen = preflight.choose_platform(platform)
    wanted = DEFAULT_NAMES[chosen] if name is None else name
    directory = store.directory(wanted)
    python = Path(sys.executable).resolve()
    store.root.mkdir(parents=True, exist_ok=True)
    with _only_one(store.root / ".install.lock", report) as lock_fd:
        record = next((each for each in store.records() if each.name == wanted), None)
        if record is None:
            record = _make(store, directory, chosen, python, report, lock_fd)
        else:
            report(f"{wanted} is installed already")
        if cache is not None:
            record = prepare_starts(store, record, cache=cache, report=report)
    return record


def check(
    store: EnvironmentStore,
    name: str | None = None,
    *,
    cache: Path,
    again: bool = False,
    report: Report,
) -> EnvironmentRecord:
    """Check warm starts of an environment if that was not done; raises EngineEnvironmentError."""
    wanted = store.get(name).name
    with _only_one(store.root / ".install.lock", report):
        return prepare_starts(store, store.get(wanted), cache=cache, again=again, report=report)


def _make(
    store: EnvironmentStore,
    directory: Path,
    platform: str,
    python: Path,
    report: Report,
    lock_fd: int,
) -> EnvironmentRecord:
    _check_machine(directory, platform, python)
    _make_venv(directory, python, report)
    _install_packages(directory, platform, report, lock_fd)
    _compile(directory, report)
    report("asking vLLM what it can do")
    result = probe(directory / "bin" / "python")
    record = _make_record(directory, directory.name, platform, result)
    store.add(record)
    size = format_size(record.size_bytes)
    report(f"{record.name} is ready: vLLM {record.vllm_version}, {size}")
    return record


@contextmanager
def _only_one(path: Path, report: Report) -> Iterator[int]:
    """Hold the lock; wait for another installation, which may be pip alone after a kill."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("waiting for another installation of an engine environment to end")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def _check_machine(directory: Path, platform: str, python: Path) -> None:
    preflight.check_python()
    preflight.check_venv(python)
    if platform == "cpu":
        preflight.check_processor()
    already = _size(directory) if directory.is_dir() else 0
    preflight.check_disk(directory, platform=platform, already_bytes=already)


def _make_venv(directory: Path, python: Path, report: Report) -> None:
    inside = directory / "bin" / "python"
    if inside.exists() and _runs_pip(inside) and _site_packages(directory).is_dir():
        report(f"going on with the unfinished environment {directory.name}")
        _discard_torn(_site_packages(directory))
        return
    report(f"making the environment {directory.name} with Python {sys.version.split()[0]}")
    done = subprocess.run(
        [str(python), "-m", "venv", "--clear", str(directory)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise EngineEnvironmentError(
            f"The virtual environment could not be made: {(done.stderr or done.stdout).strip()}",
            hint="On Debian and Ubuntu: sudo apt install python3-venv",
        )


def _install_packages(directory: Path, platform: str, report: Report, lock_fd: int) -> None:
    def pip(*arguments: str, total: int | None) -> None:
        run_pip(
            directory / "bin" / "python",
            arguments,
            site_packages=_site_packages(directory),
            total=total,
            report=report,
            inherited_fd=lock_fd,
        )

    packages = lock_file(platform)
    report(f"installing vLLM and what it needs ({packages.name})")
    if platform == "cuda":
        pip("-r", str(packages), total=None)
        return
    requirements = read_requirements(packages)
    torch = next(line for line in requirements if line.startswith("torch=="))
    try:
        pip("--no-deps", torch, total=1)
    except EngineEnvironmentError as error:
        if "No matching distribution" not in error.message:
            raise
        # The CPU build is not on PyPI: a machine has its own source for it, or PyTorch's.
        report(f"{torch} is in none of pip's places: trying {TORCH_CPU_INDEX}")
        _install_torch_from_pytorch(pip, torch)
    pip("--no-deps", "-r", str(packages), total=len(requirements))


def _install_torch_from_pytorch(pip: _Pip, torch: str) -> None:
    try:
        pip("--no-deps", "--extra-index-url", TORCH_CPU_INDEX, torch, total=1)
    except EngineEnvironmentError as error:
        raise EngineEnvironmentError(
            f"The CPU build of PyTorch ({torch}) could not be had. {error.message}.",
            hint=f"It is at {TORCH_CPU_INDEX}. Without a way there, put its wheel into a "
            "directory and name that: pip config set global.find-links DIRECTORY",
        ) from error


def _compile(directory: Path, report: Report) -> None:
    report("compiling Python files, so that engines start faster")
    packages = str(_site_packages(directory))
    # Some packages ship files that are no valid Python of this version: no failure.
    subprocess.run(
        [str(directory / "bin" / "python"), "-m", "compileall", "-qq", "-j", "0", packages],
        capture_output=True,
        check=False,
    )


def _make_record(
    directory: Path, name: str, platform: str, result: ProbeResult
) -> EnvironmentRecord:
    if result.platform != platform:
        raise EngineEnvironmentError(
            f"The environment was made for {platform}, but its vLLM found {result.platform}.",
            hint="For cuda, check that `nvidia-smi` lists a GPU; without a GPU use --cpu.",
        )
    binaries = directory.absolute() / "bin"
    server = [str(binaries / "python"), "-m", "vllm.entrypoints.openai.api_server"]
    return EnvironmentRecord(
        name=name,
        platform=platform,
        vllm_version=result.vllm_version,
        torch_version=result.torch_version,
        python_version=result.python_version,
        # The `vllm` command of the CPU build looks for a distribution that has another name.
        launch=server if platform == "cpu" else [str(binaries / "vllm"), "serve"],
        flags=result.flags,
        size_bytes=_size(directory),
        created_at=datetime.now(UTC),
        has_sleep_mode=result.has_sleep_mode,
    )


def _runs_pip(python: Path) -> bool:
    done = subprocess.run([str(python), "-m", "pip", "--version"], capture_output=True, check=False)
    return done.returncode == 0


def _site_packages(directory: Path) -> Path:
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    return directory / "lib" / version / "site-packages"


def _discard_torn(site_packages: Path) -> None:
    """Forget packages that pip was unpacking when it died: it writes INSTALLER near the end."""
    for metadata in site_packages.glob("*.dist-info"):
        if not (metadata / "INSTALLER").exists():
            shutil.rmtree(metadata)


def _size(directory: Path) -> int:
    """Bytes on disk."""
    total = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            total += os.lstat(f"{parent}/{name}").st_blocks * 512
    return total
