"""Fake NVIDIA GPUs behind the real NVML binding."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.nvml.fake_nvml import FakeNvml, ReaderProcess, build_library
from tests.stub.conftest import make_model, stub_engines
from tests.support.server import ServerProcess

__all__ = ["make_model", "stub_engines"]

MakeGpuServer = Callable[[str], ServerProcess]


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that holds the library."""
    return build_library(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def nvml(tmp_path: Path, nvml_library: Path) -> FakeNvml:
    """Three GPUs with nothing on them."""
    return FakeNvml(tmp_path / "fake", nvml_library)


@pytest.fixture
def reader(nvml: FakeNvml) -> Iterator[ReaderProcess]:
    """Reads them in a process of its own."""
    process = ReaderProcess(nvml)
    yield process
    process.end()


@pytest.fixture
def gpu_server(tmp_path: Path, stub_engines: Path, nvml: FakeNvml) -> Iterator[MakeGpuServer]:
    """Servers on the fake GPUs, with stub engines."""
    made: list[ServerProcess] = []

    def make(config: str) -> ServerProcess:
        text = f'[devices]\nsource = "nvml"\nsample_interval = 0.1\n{config}'
        server = ServerProcess(tmp_path / f"home{len(made)}", text, engines=stub_engines)
        server.env |= nvml.env
        made.append(server)
        return server.start()

    yield make
    for server in made:
        server.end()
