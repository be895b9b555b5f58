import json
import stat
from pathlib import Path

import pytest

from appliance.engine.probe import parse_probe, probe
from appliance.errors import EngineEnvironmentError

FACTS = {
    "vllm_version": "0.32.0",
    "torch_version": "2.13.0+cpu",
    "python_version": "3.11.2",
    "platform": "cpu",
    "has_sleep_mode": False,
    "flags": ["--model", "--uds"],
}


def test_facts_are_found_among_other_lines() -> None:
    output = f"INFO something\n{{not json\n{json.dumps(FACTS)}\nINFO bye\n"
    result = parse_probe(output)
    assert result.vllm_version == "0.32.0"
    assert result.flags == ["--model", "--uds"]


@pytest.mark.parametrize(
    "output",
    ["", "INFO no facts\n", json.dumps({**FACTS, "flags": []}), '{"vllm_version": "0.32.0"}'],
)
def test_missing_facts_are_an_error(output: str) -> None:
    with pytest.raises(EngineEnvironmentError, match="install it again"):
        parse_probe(output)


def make_python(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_failing_import_shows_its_last_line(tmp_path: Path) -> None:
    python = make_python(tmp_path / "python", "echo 'RuntimeError: nms does not exist' >&2; exit 1")
    with pytest.raises(EngineEnvironmentError, match="RuntimeError: nms does not exist"):
        probe(python)


def test_python_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EngineEnvironmentError, match="cannot be run"):
        probe(tmp_path / "python")


def test_import_that_hangs(tmp_path: Path) -> None:
    python = make_python(tmp_path / "python", "exec sleep 30")
    with pytest.raises(EngineEnvironmentError, match="within 0 s"):
        probe(python, timeout_s=0.1)


def test_facts_of_a_run(tmp_path: Path) -> None:
    python = make_python(tmp_path / "python", f"echo '{json.dumps(FACTS)}'")
    assert probe(python).platform == "cpu"
