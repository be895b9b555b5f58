"""The estimate against what vLLM itself holds and logs, of models that run here."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.estimate.kv_cache import Split, kv_bytes_per_token
from appliance.estimate.options import EngineOptions, read_options
from appliance.estimate.weights import weight_bytes
from appliance.protocol.devices import DeviceKind
from appliance.protocol.models import ModelSettings
from appliance.registry.facts import ModelFacts, read_facts
from appliance.units import GIB, MIB

pytestmark = pytest.mark.engine

_SCRIPT = Path(__file__).parent / "report_sizes.py"
_LOAD_S = 280
_KV_CACHE_BYTES = 100 * MIB
_TOKENS = re.compile(r"KV cache size: ([\d,]+) tokens")
_CHECKPOINT = re.compile(r"Checkpoint size: ([\d.]+) GiB")
# Blocks of the CPU's attention.
_BLOCK = 128


@dataclass(frozen=True)
class Loaded:
    """A model as vLLM has loaded it, and what the estimate makes of the same files."""

    facts: ModelFacts
    options: EngineOptions
    ranks: list[dict[str, int]]
    log: str

    @property
    def weights(self) -> int:
        return weight_bytes(self.facts, self.options, DeviceKind.CPU)

    @property
    def token(self) -> int:
        return kv_bytes_per_token(
            self.facts, Split(dtype=self.options.dtype, tp_size=self.options.tp_size)
        )


def load(prepared: Path, name: str, tp_size: int, directory: Path) -> Loaded:
    path = prepared / "models" / name
    engines = prepared / "engines"
    environment = (engines / "default").read_text().strip()
    record = json.loads((engines / environment / "environment.json").read_text())
    env = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "TORCHDYNAMO_DISABLE": "1",
        "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
        "VLLM_CACHE_ROOT": str(directory / "cache"),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
    }
    if tp_size > 1:
        env["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(
            str(core) for core in (sorted(os.sched_getaffinity(0)) * tp_size)[:tp_size]
        )
    sizes = directory / "sizes"
    sizes.mkdir()
    command = [record["launch"][0], _SCRIPT, path, tp_size, _KV_CACHE_BYTES, sizes]
    run = subprocess.run(
        [str(each) for each in command],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_LOAD_S,
    )
    assert run.returncode == 0, run.stdout
    facts = read_facts(path)
    settings = ModelSettings(path=str(path), task=facts.task, tp_size=tp_size)
    ranks = [json.loads(file.read_text()) for file in sizes.glob("*.json")]
    return Loaded(facts, read_options(facts, settings, DeviceKind.CPU), ranks, run.stdout)


@pytest.fixture(
    scope="module",
    params=[("smollm2-135m", 1), ("minilm", 1), ("tiny", 2)],
    ids=["smollm2-135m", "minilm", "tiny-tp2"],
)
def loaded(
    request: pytest.FixtureRequest, prepared: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Loaded]:
    """One engine for each model."""
    name, tp_size = request.param
    return load(prepared, name, tp_size, tmp_path_factory.mktemp(name))


def test_weights_are_within_one_percent(loaded: Loaded) -> None:
    assert len(loaded.ranks) == loaded.options.tp_size
    for rank in loaded.ranks:
        assert loaded.weights == pytest.approx(rank["parameters"] + rank["tables"], rel=0.01)


def test_files_are_as_large_as_logged(loaded: Loaded) -> None:
    """To the two digits of the log."""
    found = _CHECKPOINT.search(loaded.log)
    assert found
    assert loaded.facts.weights_bytes / GIB == pytest.approx(float(found[1]), abs=0.0051)


def test_kv_cache_of_a_token_is_exact(loaded: Loaded) -> None:
    found = _TOKENS.search(loaded.log)
    if loaded.facts.architecture == "BertModel":
        assert found is None
        return
    assert found
    blocks = _KV_CACHE_BYTES // (loaded.token * _BLOCK)
    assert int(found[1].replace(",", "")) == blocks * _BLOCK
    for rank in loaded.ranks:
        assert rank["kv_cache"] == blocks * _BLOCK * loaded.token
