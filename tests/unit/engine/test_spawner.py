"""What must hold when something fails between the decision to start an engine and its start."""

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.config.settings import CgroupUse
from appliance.engine import spawner as module
from appliance.engine.cgroup import EngineCgroups
from appliance.engine.logs import EngineLog
from appliance.engine.records import EngineRecord
from appliance.engine.spawner import EngineSpawner
from tests.support.environment import record


class Launchers:
    """One launcher that never becomes warm."""

    def __init__(self) -> None:
        self.launcher = SimpleNamespace(is_warm=False, wait_warm=self.wait_warm)

    async def wait_warm(self) -> None:
        await asyncio.Event().wait()

    async def find(self, *_: object) -> Any:
        return self.launcher


def make(tmp_path: Path) -> EngineSpawner:
    cgroups = EngineCgroups.open(CgroupUse.OFF, "x")
    return EngineSpawner(tmp_path, Launchers(), cgroups)  # type: ignore[arg-type]


def spec(tmp_path: Path, **env: str) -> Any:
    return SimpleNamespace(
        engine_id="eng_1",
        model="a",
        settings=SimpleNamespace(env=env),
        device_kind=None,
        cache=tmp_path,
        socket=tmp_path / "s",
        temporary=tmp_path / "temporary",
    )


async def test_a_stop_does_not_wait_for_a_launcher_that_imports(tmp_path: Path) -> None:
    ending = asyncio.Event()
    finding = asyncio.create_task(make(tmp_path).launcher(spec(tmp_path), record(), ending))
    await asyncio.sleep(0)
    assert not finding.done()
    ending.set()
    assert await asyncio.wait_for(finding, 5) is None


async def test_variables_of_a_model_lead_to_a_plain_start(tmp_path: Path) -> None:
    found = make(tmp_path).launcher(spec(tmp_path, A="1"), record(), asyncio.Event())
    assert await asyncio.wait_for(found, 5) is None


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Engines that were started; none is."""
    made: list[object] = []

    async def spawn(*_: object, **__: object) -> object:
        made.append(SimpleNamespace(pid=os.getpid(), start_ticks=1))
        return made[-1]

    monkeypatch.setattr(module.EngineProcess, "spawn", spawn)
    monkeypatch.setattr(module, "build_argv", lambda *_: ["x"])
    monkeypatch.setattr(module, "build_env", lambda *_: {})
    return made


async def start(spawner: EngineSpawner, tmp_path: Path) -> object:
    return await spawner.spawn(
        spec(tmp_path),
        record(),
        ["cpu"],
        launcher=None,
        log=EngineLog(tmp_path / "log", "eng_1", "a"),
        on_lines=lambda *_: None,
        on_update=lambda _: None,
        grace_s=1.0,
    )


async def test_a_disk_that_is_full_after_the_start_does_not_lose_the_engine(
    tmp_path: Path, started: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[EngineRecord] = []

    def write(_: Path, record: EngineRecord) -> None:
        if written:
            raise OSError(28, "No space left on device")
        written.append(record)

    monkeypatch.setattr(module, "write_record", write)
    spawner = make(tmp_path)
    assert await start(spawner, tmp_path) is started[0]
    assert (tmp_path / "temporary").is_dir()
    await spawner.forget("eng_1")
    assert not (tmp_path / "temporary").exists()


async def test_nothing_is_started_on_a_full_disk(
    tmp_path: Path, started: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_record", write)
    with pytest.raises(OSError, match="No space left"):
        await start(make(tmp_path), tmp_path)
    assert started == []
