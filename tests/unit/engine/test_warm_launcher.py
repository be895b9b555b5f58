"""The launcher's care, with a Python that imports nothing big."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from appliance.engine import warm_launchers
from appliance.engine.environments import EnvironmentRecord, packages_stamp
from appliance.engine.warm_launcher import LauncherError, WarmLauncher, _wait_closed
from appliance.engine.warm_launchers import WarmLaunchers
from appliance.protocol.devices import DeviceKind
from appliance.protocol.launchers import LauncherState
from appliance.protocol.system import WarmOutcome, WarmStart
from tests.support.environment import record

LIMIT_S = 20.0


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110 - nothing tells when it is so
            await asyncio.sleep(0.01)


@pytest.fixture
async def launcher() -> AsyncIterator[WarmLauncher]:
    made = WarmLauncher(record(), ["json"])
    made.begin(dict(os.environ))
    await until(lambda: made.view().state is LauncherState.WARM)
    yield made
    await made.stop()


async def test_a_launcher_that_dies_is_started_again(launcher: WarmLauncher) -> None:
    first = launcher.view()
    assert first.state is LauncherState.WARM
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    await until(lambda: launcher.view().pid not in {None, first.pid} and launcher.is_warm)
    assert "status -9" in launcher.view().problem or launcher.view().problem == ""


async def test_a_launcher_that_does_not_answer_is_replaced(
    launcher: WarmLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.engine.warm_launcher._FORK_S", 0.2)
    pid = launcher.view().pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(LauncherError):
        await launcher.launch([], {}, tmp_path, log=1, grace_s=1.0)
    await until(lambda: launcher.view().pid not in {None, pid} and launcher.is_warm)


async def test_its_memory_is_known(launcher: WarmLauncher) -> None:
    launcher.measure()
    assert launcher.view().memory_bytes > 1 << 20
    await launcher.stop()
    launcher.measure()
    assert launcher.view().memory_bytes == 0


async def test_one_that_cannot_start_is_given_up_and_engines_start_plainly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.engine.warm_launcher._FIRST_PAUSE_S", 0.0)
    changes: list[LauncherState] = []
    launcher = WarmLauncher(
        record(str(tmp_path / "none")), [], on_change=lambda: changes.append(launcher.view().state)
    )
    launcher.begin({})
    with pytest.raises(LauncherError):
        await launcher.launch([], {}, tmp_path, log=1, grace_s=1.0)
    await until(lambda: changes.count(LauncherState.FAILED) == 5)
    assert "did not start" in launcher.view().problem
    await launcher.stop()


def checked(environment: EnvironmentRecord, outcome: WarmOutcome) -> EnvironmentRecord:
    stamp = packages_stamp(environment.directory)
    check = WarmStart(outcome=outcome, checked_at=datetime(2026, 1, 1, tzinfo=UTC), packages=stamp)
    return msgspec.structs.replace(environment, warm_start=check)


@pytest.fixture
async def launchers(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[WarmLaunchers]:
    monkeypatch.setattr(warm_launchers, "preload_modules", lambda _: ["json"])
    made = WarmLaunchers(is_enabled=True, on_change=lambda: None)
    yield made
    await made.stop()


def environment_in(directory: Path) -> EnvironmentRecord:
    """An environment whose packages this test may change."""
    (directory / "bin").mkdir()
    python = directory / "bin/python"
    python.symlink_to(sys.executable)
    package = directory / "lib/python3.11/site-packages/thing-1.dist-info"
    package.mkdir(parents=True)
    (package / "RECORD").write_text("thing.py,,\n")
    return record(str(python))


async def test_only_what_was_checked_is_forked(launchers: WarmLaunchers, tmp_path: Path) -> None:
    environment = environment_in(tmp_path)
    assert await launchers.find(environment, DeviceKind.CPU, tmp_path) is None
    differs = checked(environment, WarmOutcome.DIFFERS)
    assert await launchers.find(differs, DeviceKind.CPU, tmp_path) is None
    same = checked(environment, WarmOutcome.SAME)
    assert await launchers.find(same, DeviceKind.CPU, tmp_path) is not None
    off = WarmLaunchers(is_enabled=False, on_change=lambda: None)
    assert await off.find(same, DeviceKind.CPU, tmp_path) is None


async def test_a_launcher_goes_when_its_packages_change(
    launchers: WarmLaunchers, tmp_path: Path
) -> None:
    environment = checked(environment_in(tmp_path), WarmOutcome.SAME)
    first = await launchers.find(environment, DeviceKind.CPU, tmp_path)
    assert first is not None
    assert await launchers.find(environment, DeviceKind.CPU, tmp_path) is first
    await until(lambda: first.is_warm)
    metadata = tmp_path / "lib/python3.11/site-packages/thing-1.dist-info/RECORD"
    metadata.write_text("thing.py,,\nmore.py,,\n")
    # The check was of other packages, so starts are plain until it is repeated.
    assert await launchers.find(environment, DeviceKind.CPU, tmp_path) is None
    await until(lambda: not first.is_warm)
    assert launchers.views() == []
    again = checked(environment, WarmOutcome.SAME)
    second = await launchers.find(again, DeviceKind.CPU, tmp_path)
    assert second is not None
    assert second is not first


async def test_only_launchers_that_are_in_use_stay(
    launchers: WarmLaunchers, tmp_path: Path
) -> None:
    environment = checked(environment_in(tmp_path), WarmOutcome.SAME)
    launcher = await launchers.find(environment, DeviceKind.CPU, tmp_path)
    assert launcher is not None
    await until(lambda: launcher.is_warm)
    launchers.retire_unused({environment.name})
    assert len(launchers.views()) == 1
    launchers.retire_unused({"another"})
    assert launchers.views() == []
    await until(lambda: not launcher.is_warm)


async def test_a_launcher_that_takes_long_to_fail_is_given_up_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("appliance.engine.warm_launcher._SOUND_AFTER_S", 0.01)
    monkeypatch.setattr("appliance.engine.warm_launcher._FIRST_PAUSE_S", 0.0)
    lives: list[int] = []

    async def live(_: dict[str, str]) -> str:
        lives.append(1)
        await asyncio.sleep(0.05)
        return "2 threads run"

    launcher = WarmLauncher(record(), [])
    monkeypatch.setattr(launcher, "_live_once", live)
    launcher.begin({})
    assert launcher._care is not None
    await asyncio.wait_for(asyncio.shield(launcher._care), LIMIT_S)
    assert len(lives) == 5
    assert launcher.view().state is LauncherState.FAILED


def test_an_engine_that_was_forked_too_late_is_waited_for() -> None:
    read_end, write_end = os.pipe()
    threading.Timer(0.1, os.close, (write_end,)).start()
    started = time.monotonic()
    _wait_closed(read_end, LIMIT_S)
    assert 0.05 < time.monotonic() - started < LIMIT_S / 2
    read_end, write_end = os.pipe()
    _wait_closed(read_end, 0.05)
    os.close(write_end)


REFUSING = """
import importlib.util, socket, sys
spec = importlib.util.spec_from_file_location("warm", sys.argv[1])
warm = importlib.util.module_from_spec(spec)
spec.loader.exec_module(warm)

class Refusing(warm.WarmProcess):
    def _fork(self, *_):
        raise OSError(12, "Cannot allocate memory")

Refusing([]).serve(socket.socket(fileno=0))
"""


def test_a_fork_that_the_system_refuses_does_not_cost_the_launcher() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    program = Path(warm_launchers.__file__).with_name("warm.py")
    process = subprocess.Popen([sys.executable, "-c", REFUSING, str(program)], stdin=theirs)
    theirs.close()
    ours.settimeout(LIMIT_S)
    for _ in range(3):
        ours.sendall(b"{}")
        assert b"Cannot allocate memory" in ours.recv(1000)
    ours.close()
    assert process.wait(LIMIT_S) == 0


FILTERS = """
import importlib.util, sys, warnings
spec = importlib.util.spec_from_file_location("warm", sys.argv[1])
warm = importlib.util.module_from_spec(spec)
spec.loader.exec_module(warm)
before = list(warnings.filters)
warm.WarmProcess(["json"])
assert warnings.filters == before, (before, warnings.filters)
"""


def test_a_forked_engine_warns_of_no_more_than_a_plain_one() -> None:
    program = Path(warm_launchers.__file__).with_name("warm.py")
    subprocess.run([sys.executable, "-c", FILTERS, str(program)], check=True, timeout=LIMIT_S)


ONCE = """
import importlib.util, sys, types
spec = importlib.util.spec_from_file_location("warm", sys.argv[1])
warm = importlib.util.module_from_spec(spec)
spec.loader.exec_module(warm)
done = []

class Platform:
    @classmethod
    def register(cls):
        done.append(cls)

    @classmethod
    def fail(cls):
        raise RuntimeError

sys.modules["platform_of_test"] = module = types.ModuleType("platform_of_test")
module.Platform = Platform
names = ["json", "platform_of_test:Platform.register", "platform_of_test:Platform.fail"]
process = warm.WarmProcess(names)
assert process.failed == names[2:], process.failed
Platform.register()
assert done == [Platform], done
try:
    Platform.fail()
except RuntimeError:
    sys.exit(0)
sys.exit("what failed here is left to the engines")
"""


def test_what_every_engine_would_repeat_is_done_once() -> None:
    program = Path(warm_launchers.__file__).with_name("warm.py")
    subprocess.run([sys.executable, "-c", ONCE, str(program)], check=True, timeout=LIMIT_S)
