"""The fake libnvidia-ml.so.1: compiled from C, driven by a file that tests rewrite."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from appliance.units import MIB

SOURCE = Path(__file__).with_name("fake_nvml.c")
READER = Path(__file__).with_name("reader_process.py")
LIBRARY = "libnvidia-ml.so.1"


def build_library(directory: Path, version: str = "1.0") -> Path:
    """Compile it into the directory; the loader finds it there by its usual name."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler (cc or gcc) to build the fake NVML library")
    directory.mkdir(parents=True, exist_ok=True)
    made = directory / f"{LIBRARY}.{version}"
    subprocess.run(
        [compiler, "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", "-pthread",
         f'-DLIBRARY_VERSION="{version}"', f"-Wl,-soname,{LIBRARY}", "-o", made, SOURCE],
        check=True,
        timeout=120,
    )  # fmt: skip
    made.replace(directory / LIBRARY)
    return directory


@dataclass
class FakeGpu:
    """A GPU; sizes in MiB. `keys` are those of `set` in the state file."""

    uuid: str
    total: int = 24576
    used: int = 500
    name: str = "NVIDIA_Test"
    keys: dict[str, int | str] = field(default_factory=dict)
    processes: dict[int, int] = field(default_factory=dict)
    instances: list[tuple[str, int, int]] = field(default_factory=list)

    def lines(self) -> list[str]:
        return [
            f"gpu {self.uuid} {self.name} {self.total} {self.used}",
            *(f"set {key} {value}" for key, value in self.keys.items()),
            *(f"process {pid} {mib}" for pid, mib in self.processes.items()),
            *(f"instance {uuid} {total} {used}" for uuid, total, used in self.instances),
        ]


class FakeNvml:
    """What the library answers: change it, then `write`."""

    def __init__(self, root: Path, library: Path, gpus: int = 3) -> None:
        self.root = root
        self.library = library
        self.gpus = [FakeGpu(f"GPU-{number}") for number in range(gpus)]
        self.lines: list[str] = []
        """Further statements."""
        self.processes = root / "processes"
        self.processes.mkdir(parents=True)
        self.sysfs = root / "sysfs"
        self.sysfs.mkdir()
        self.write()

    @property
    def env(self) -> dict[str, str]:
        return {"FAKE_NVML": str(self.root), "LD_LIBRARY_PATH": str(self.library)}

    def write(self, *lines: str) -> None:
        """The library answers by this from now on; `lines` replace the further statements."""
        self.lines = list(lines)
        text = [line for gpu in self.gpus for line in gpu.lines()] + self.lines
        new = self.root / "new"
        new.write_text("\n".join(text) + "\n")
        new.replace(self.root / "state")

    def add_pci_gpu(self, bus: str) -> None:
        """A GPU that the kernel sees on the bus."""
        entry = self.sysfs / bus
        entry.mkdir()
        (entry / "vendor").write_text("0x10de\n")
        (entry / "class").write_text("0x030200\n")


class ReaderProcess:
    """A process with the real binding on the fake library."""

    def __init__(self, nvml: FakeNvml) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(READER), str(nvml.sysfs)],
            env={**os.environ, **nvml.env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.now = 0.0

    def read(self, after_s: float = 0.0) -> list[dict[str, Any]]:
        """The readings, `after_s` seconds later by the reader's clock."""
        self.now += after_s
        found = self._ask(f"read {self.now}")
        assert isinstance(found, list)
        return found

    def opens(self) -> bool:
        """Whether the machine counts as one with NVIDIA GPUs."""
        return self._ask("open") is not None

    def end(self) -> None:
        with self._process as process:
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(10) == 0

    def _ask(self, question: str) -> object:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(question + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the reader's process ended"
        answer: object = json.loads(line)
        return answer


def mib(number: int) -> int:
    """Bytes."""
    return number * MIB
