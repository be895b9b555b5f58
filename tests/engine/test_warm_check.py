"""The check of `engine install`, with the real engine environment."""

import contextlib
import os
from pathlib import Path

import pytest

from appliance.engine import warm_check
from appliance.engine.environments import EnvironmentRecord, EnvironmentStore, packages_stamp
from appliance.engine.model_infos import has_model_infos, inspect_models
from appliance.engine.proctree import all_processes
from appliance.protocol.system import WarmOutcome
from appliance.units import MIB

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]


@pytest.fixture
def environment(prepared: Path) -> EnvironmentRecord:
    return EnvironmentStore(prepared / "engines").get()


@pytest.fixture
def cache(prepared: Path, tmp_path: Path) -> Path:
    """A directory of its own, with what scripts/test has found out about architectures."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/vllm").symlink_to(prepared.parent / "cache/vllm")
    return tmp_path / "cache"


def left(cache: Path) -> list[int]:
    """Launchers below this process, and engines wherever they are: the cache is where they work."""
    found = []
    for info in all_processes():
        with contextlib.suppress(OSError):
            works_there = Path(f"/proc/{info.pid}/cwd").readlink() == cache.resolve()
            is_launcher = info.ppid == os.getpid() and info.name.startswith("appliance-launc")
            if works_there or is_launcher:
                found.append(info.pid)
    return found


def test_forked_engines_of_this_build_answer_the_same(
    environment: EnvironmentRecord, cache: Path
) -> None:
    found = warm_check.check_warm_start(environment, cache=cache, report=print)
    assert (found.outcome, found.reason) == (WarmOutcome.SAME, "")
    assert found.packages == packages_stamp(environment.directory)
    assert found.plain_s is not None
    assert found.warm_s is not None
    assert found.warm_s < found.plain_s
    assert 200 * MIB < found.launcher_bytes < 1200 * MIB
    assert left(cache) == []


def test_a_launcher_that_cannot_import_fails_the_check(
    environment: EnvironmentRecord, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # This module ends the process that imports it.
    monkeypatch.setattr(warm_check, "preload_modules", lambda _: ["unittest.__main__"])
    found = warm_check.check_warm_start(environment, cache=cache, report=print)
    assert found.outcome is WarmOutcome.FAILED
    assert "launcher" in found.reason
    assert left(cache) == []


def test_all_architectures_are_inspected_in_one_go(
    environment: EnvironmentRecord, tmp_path: Path
) -> None:
    assert not has_model_infos(environment, tmp_path)
    assert inspect_models(environment, tmp_path) > 100
    assert has_model_infos(environment, tmp_path)
    infos = tmp_path / "vllm" / environment.name / "modelinfos"
    assert list(infos.glob("*llama-LlamaForCausalLM.json"))
