import json
from pathlib import Path

import pytest

from appliance.cli.estimate import need_text, request_of
from appliance.cli.main import main
from appliance.protocol.estimates import Basis, EstimateRequest, MemoryParts
from appliance.units import GIB
from tests.unit.estimate.test_published_sizes import MODELS

# httpcore leaves a socket that could not be connected to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model before its download; no server."""
    monkeypatch.setenv("APPLIANCE_HOME", str(tmp_path / "home"))
    model = tmp_path / "llama"
    model.mkdir()
    config = {**MODELS["Llama-3.1-8B-Instruct"].config, "architectures": ["LlamaForCausalLM"]}
    (model / "config.json").write_text(json.dumps(config))
    return model


def test_directory_needs_no_server_and_no_weights(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["estimate", str(directory), "--ctx", "2048", "--gpu", "24GiB"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("llama: LlamaForCausalLM, 2048 of up to 2048 tokens of context")
    assert "estimated, within" in told
    assert "weights        15.0 GiB" in told
    assert "a GPU of 24.0 GiB" in told
    assert "A token takes 128 KiB of KV cache" in told


def test_what_would_fit_is_said_with_its_command(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["estimate", str(directory), "--gpu", "12GiB"]) == 1
    told = capsys.readouterr().out
    assert "What would fit:" in told
    assert "`appliance set llama --tp 2`" in told


def test_split_that_vllm_refuses_is_a_failure(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["estimate", str(directory), "--tp", "3"]) == 1
    assert "It cannot be split over 3: its 32 attention heads" in capsys.readouterr().out


def test_json_has_all_the_parts(
    directory: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main(["estimate", str(directory), "--gpu", "24GiB", "--json"]) == 0
    told = json.loads(capsysbinary.readouterr().out)
    rank = told["rank"]
    parts = ("weights", "kv_cache", "activations", "graphs", "context")
    assert rank["total_bytes"] == sum(rank[f"{part}_bytes"] for part in parts)
    assert rank["basis"] == "estimated"
    assert told["devices"][0]["fits"] is True


@pytest.mark.parametrize(
    ("content", "word"),
    [("{", "cannot be read"), ("[]", "holds no object"), ('{"model_type": "x"}', "do not follow")],
)
def test_config_that_says_too_little(
    directory: Path, capsys: pytest.CaptureFixture[str], content: str, word: str
) -> None:
    (directory / "config.json").write_text(content)
    assert main(["estimate", str(directory)]) == 1
    assert word in capsys.readouterr().err


def test_directory_that_is_none(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", str(directory / "none")]) == 1
    assert "is no directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("gpu", "expected"),
    [
        (None, EstimateRequest()),
        ("24GiB", EstimateRequest(device_bytes=24 * GIB)),
        ("1.5G", EstimateRequest(device_bytes=1_500_000_000)),
        ("0", EstimateRequest(device="0")),
        ("GPU-1234", EstimateRequest(device="GPU-1234")),
    ],
)
def test_size_or_device(gpu: str | None, expected: EstimateRequest) -> None:
    assert request_of(None, None, gpu) == expected


def test_size_that_is_none(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", str(directory), "--gpu", "24Gb17"]) == 2
    assert "is no size" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("basis", "expected"),
    [
        (Basis.ESTIMATED, "about 2.0 GiB (estimated, within 12 %)"),
        (Basis.MEASURED, "about 2.0 GiB (measured, within 12 %)"),
        (Basis.CHOSEN, "2.0 GiB (as you have set it)"),
    ],
)
def test_need_in_words(basis: Basis, expected: str) -> None:
    parts = MemoryParts(
        total_bytes=2 * GIB, weights_bytes=0, kv_cache_bytes=0, activations_bytes=0,
        graphs_bytes=0, context_bytes=2 * GIB, basis=basis, margin_ratio=0.12,
    )  # fmt: skip
    assert need_text(parts) == expected
