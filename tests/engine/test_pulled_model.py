"""From the name of a repository to an answer of a real engine."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.engine.conftest import start_server
from tests.support.command import appliance
from tests.support.hub import Fault, LocalHub
from tests.support.server import ServerProcess

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

CHAT = "HuggingFaceTB/SmolLM2-135M-Instruct"
EMBED = "sentence-transformers/all-MiniLM-L6-v2"


def files_of(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def empty(tmp_path: Path, prepared: Path) -> Iterator[ServerProcess]:
    """A server without models, whose hub has the starter models."""
    with LocalHub() as hub:
        hub.commit(CHAT, files_of(prepared / "models/smollm2-135m"))
        hub.commit(EMBED, files_of(prepared / "models/minilm"))
        hub.spoil("model.safetensors", Fault(cut_at=5_000_000))
        config = '[devices]\nsource = "cpu"\ncpu_memory = "8GiB"\n'
        env = {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "cache")}
        server = start_server(tmp_path / "home", prepared, config, env)
        yield server
        server.end()


def test_models_that_were_pulled_by_name_answer(empty: ServerProcess) -> None:
    for repo in (CHAT, EMBED):
        done = appliance(empty, "pull", repo)
        assert done.returncode == 0, done.stderr
    question = {"role": "user", "content": "What is the capital of France?"}
    answer = httpx.post(
        f"{empty.url}/v1/chat/completions",
        json={"model": CHAT, "messages": [question], "temperature": 0, "max_tokens": 16},
        timeout=400,
    )
    assert "Paris" in answer.json()["choices"][0]["message"]["content"]
    vector = httpx.post(
        f"{empty.url}/v1/embeddings", json={"model": EMBED, "input": "hello"}, timeout=400
    )
    assert len(vector.json()["data"][0]["embedding"]) == 384
