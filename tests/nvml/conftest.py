"""Fake NVIDIA GPUs behind the real NVML binding."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nvml.fake_nvml import FakeNvml, ReaderProcess, build_library


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
