"""Servers whose engines are the stub program."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance.engine.environments import EnvironmentRecord
from tests.support.hub import LocalHub
from tests.support.server import ServerProcess

STUB = Path(__file__).with_name("stub_engine.py")
MIB = 1024**2

MakeModel = Callable[..., Path]
MakeServer = Callable[..., ServerProcess]
Serve = Callable[..., ServerProcess]


@pytest.fixture(scope="session")
def stub_engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of engine environments that holds the stub."""
    root = tmp_path_factory.mktemp("engines")
    record = EnvironmentRecord(
        name="stub",
        platform="cpu",
        vllm_version="0.0.0",
        torch_version="0",
        python_version="3.11",
        launch=[sys.executable, str(STUB)],
        flags=["--uds", "--kv-cache-memory-bytes"],
        size_bytes=0,
        created_at=datetime.now(UTC),
        has_sleep_mode=False,
    )
    sleeper = msgspec.structs.replace(
        record,
        name="stub-sleep",
        flags=[*record.flags, "--enable-sleep-mode"],
        has_sleep_mode=True,
    )
    for each in (record, sleeper):
        (root / each.name).mkdir()
        (root / each.name / "environment.json").write_bytes(msgspec.json.encode(each))
    (root / "default").write_text("stub")
    return root


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """Directories that look like checkpoints and tell the stub how to behave."""

    def make(name: str, **behaviour: Any) -> Path:
        directory = tmp_path / "models" / name
        directory.mkdir(parents=True, exist_ok=True)
        config = {
            "architectures": ["LlamaForCausalLM"],
            "max_position_embeddings": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "hidden_size": 64,
            "vocab_size": 100,
            "dtype": "bfloat16",
        }
        (directory / "config.json").write_text(json.dumps(config))
        (directory / "model.safetensors").write_bytes(b"\0" * 1024)
        (directory / "stub.json").write_text(json.dumps(behaviour))
        return directory

    return make


def starts_of(directory: Path) -> int:
    """How often an engine was started for the model."""
    file = directory / "starts"
    return len(file.read_text().splitlines()) if file.exists() else 0


@pytest.fixture
def make_server(tmp_path: Path, stub_engines: Path) -> Iterator[MakeServer]:
    """Started servers that end with the test."""
    made: list[ServerProcess] = []

    def make(
        config: str = "", *, home: Path | None = None, prefix: Sequence[str] = ()
    ) -> ServerProcess:
        server = ServerProcess(home or tmp_path / f"home{len(made)}", config, engines=stub_engines)
        server.prefix = list(prefix)
        made.append(server)
        return server.start()

    yield make
    for server in made:
        server.end()


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    with LocalHub() as hub:
        yield hub


@pytest.fixture
def serve(tmp_path: Path, stub_engines: Path, hub: LocalHub) -> Iterator[Serve]:
    """Servers whose hub is the local one; with the same home each goes on with the last."""
    made: list[ServerProcess] = []

    def make(config: str = "", **env: str) -> ServerProcess:
        engines = None if (tmp_path / "home/state/engines").exists() else stub_engines
        server = ServerProcess(tmp_path / "home", config, engines=engines)
        server.env = {key: text for key, text in server.env.items() if not key.startswith("HF_")}
        server.env |= {"HF_ENDPOINT": hub.url, "HOME": str(tmp_path / "user")}
        # Requests that the hub holds are held for as long as the test wants.
        server.env |= {"HF_HUB_DOWNLOAD_TIMEOUT": "120"} | env
        server.env.pop("XDG_CACHE_HOME", None)
        made.append(server)
        return server.start()

    yield make
    for server in made:
        server.end()
