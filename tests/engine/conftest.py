"""Servers with real vLLM engines and real models, prepared by scripts/test."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.server import ServerProcess

MakeServer = Callable[..., ServerProcess]


@pytest.fixture(scope="session")
def prepared() -> Path:
    """The state directory with the engine environment and the models."""
    home = os.environ.get(
        "APPLIANCE_TEST_HOME", str(Path(__file__).parents[2] / ".cache/test-home")
    )
    state = Path(home) / "state"
    if not (state / "engines" / "default").exists():
        pytest.fail(f"{state} holds no engine environment: run scripts/test, which prepares it")
    return state


def start_server(
    home: Path, prepared: Path, config: str, env: Mapping[str, str] | None = None
) -> ServerProcess:
    """A server that has the prepared engine environment."""
    server = ServerProcess(home, config, engines=prepared / "engines")
    server.env |= env or {}
    return server.start()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, prepared: Path) -> Iterator[ServerProcess]:
    """One server on the CPU for all tests that only ask; its models are loaded once."""
    home = tmp_path_factory.mktemp("engine-home")
    server = start_server(home, prepared, '[devices]\nsource = "cpu"\ncpu_memory = "8GiB"\n')
    server.add_model("smollm2-135m", prepared / "models/smollm2-135m", context_length=2048)
    server.add_model("minilm", prepared / "models/minilm", always_on=True)
    yield server
    server.end()


@pytest.fixture
def make_server(tmp_path: Path, prepared: Path) -> Iterator[MakeServer]:
    """Servers of a test's own."""
    made: list[ServerProcess] = []

    def make(config: str) -> ServerProcess:
        made.append(start_server(tmp_path / f"home{len(made)}", prepared, config))
        return made[-1]

    yield make
    for each in made:
        each.end()
