"""What must be true before an engine environment can be made; each refusal says what to do."""

import ctypes
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from appliance.errors import EngineEnvironmentError
from appliance.units import GIB, format_size

OLDEST_PYTHON = (3, 11)
NEWEST_PYTHON = (3, 14)
NEEDED_BYTES = {"cpu": 6 * GIB, "cuda": 14 * GIB}


def choose_platform(wanted: str, *, has_nvidia: bool | None = None) -> str:
    """`cpu` or `cuda`; for `auto`, what the machine has."""
    if wanted != "auto":
        return wanted
    found = has_nvidia_driver() if has_nvidia is None else has_nvidia
    return "cuda" if found else "cpu"


def has_nvidia_driver() -> bool:
    """Whether an NVIDIA driver is there, as far as its files tell."""
    if Path("/dev/nvidiactl").exists():
        return True
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return False
    return True


def check_python(version: tuple[int, int] | None = None) -> None:
    """The Python that makes the environment must be one that vLLM is built for."""
    found = version or (sys.version_info[0], sys.version_info[1])
    if OLDEST_PYTHON <= found <= NEWEST_PYTHON:
        return
    raise EngineEnvironmentError(
        f"vLLM is built for Python 3.11 to 3.14; this is Python {found[0]}.{found[1]}.",
        hint="Run the appliance with a Python in that range, for example python3.12.",
    )


def check_venv(python: Path) -> None:
    """Debian ships the parts that make a virtual environment in a package of their own."""
    done = subprocess.run(
        [str(python), "-c", "import ensurepip, venv"], capture_output=True, check=False
    )
    if done.returncode == 0:
        return
    raise EngineEnvironmentError(
        f"{python} cannot make virtual environments: its module venv or ensurepip is missing.",
        hint="On Debian and Ubuntu: sudo apt install python3-venv",
    )


def check_disk(root: Path, *, platform: str, already_bytes: int = 0) -> None:
    """Room for the environment where it will be."""
    where = next(path for path in (root, *root.absolute().parents) if path.exists())
    free = shutil.disk_usage(where).free
    needed = max(NEEDED_BYTES[platform] - already_bytes, GIB)
    if free >= needed:
        return
    raise EngineEnvironmentError(
        f"The environment needs about {format_size(needed)} of disk; {where} has "
        f"{format_size(free)} free.",
        hint="Make room, or set APPLIANCE_HOME to a directory on a larger disk.",
    )


def check_processor(*, machine: str | None = None, cpuinfo: str | None = None) -> None:
    """The CPU build of vLLM is for x86-64 processors with AVX2."""
    kind = machine or platform.machine()
    if kind not in {"x86_64", "AMD64"}:
        raise EngineEnvironmentError(
            f"The CPU environment is made for x86-64 processors; this machine is {kind}.",
            hint="Use a machine with an x86-64 processor, or one with an NVIDIA GPU (--cuda).",
        )
    text = Path("/proc/cpuinfo").read_text() if cpuinfo is None else cpuinfo
    flags = next((line.split() for line in text.splitlines() if line.startswith("flags")), [])
    if "avx2" not in flags:
        raise EngineEnvironmentError(
            "This processor has no AVX2, which the CPU build of vLLM needs.",
            hint="In a virtual machine, pass the host's processor through (cpu type `host`); "
            "otherwise use a newer machine.",
        )
