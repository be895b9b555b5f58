"""Files of an engine go with it, however it ends."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.engine.proctree import process_info, session_processes
from tests.stub.conftest import MakeModel
from tests.support.server import ServerProcess
from tests.support.wait import wait_until

CONFIG = '[[devices.simulated]]\nmemory = "8GiB"\n[engines]\nstop_timeout = "20s"\n'


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A directory with a short name, as sockets in it need."""
    with tempfile.TemporaryDirectory(prefix="va-") as name:
        yield Path(name)


@pytest.fixture
def server(tmp_path: Path, stub_engines: Path, temporary: Path) -> Iterator[ServerProcess]:
    server = ServerProcess(tmp_path / "home", CONFIG, engines=stub_engines)
    server.env["TMPDIR"] = str(temporary)
    yield server.start()
    server.end()


def is_gone(pid: int) -> bool:
    info = process_info(pid)
    return info is None or info.is_zombie


@pytest.mark.parametrize("end", ["unload", "kill of the engine", "kill of the guardian"])
def test_temporary_files_go_with_the_engine(
    server: ServerProcess, make_model: MakeModel, temporary: Path, end: str
) -> None:
    server.add_model("a", make_model("a"))
    server.load("a")
    (directory,) = temporary.iterdir()
    assert directory.stat().st_mode & 0o777 == 0o700
    (guardian,) = server.engine_pids()
    environ = Path(f"/proc/{guardian}/environ").read_bytes()
    assert f"TMPDIR={directory}".encode() in environ.split(b"\0")
    (directory / "left").write_text("x")
    if end == "unload":
        server.admin("POST", "/models/a/unload")
    elif end == "kill of the guardian":
        os.kill(guardian, signal.SIGKILL)
    else:
        for info in session_processes(guardian):
            if info.pid != guardian:
                os.kill(info.pid, signal.SIGKILL)
    wait_until(lambda: not directory.exists(), 10)


def test_temporary_files_that_nobody_could_remove_go_at_the_next_start(
    server: ServerProcess, make_model: MakeModel, temporary: Path
) -> None:
    server.add_model("a", make_model("a"))
    server.load("a")
    (directory,) = temporary.iterdir()
    (guardian,) = server.engine_pids()
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    os.kill(guardian, signal.SIGKILL)
    server.kill()
    assert directory.exists()
    server.start()
    assert not directory.exists()


def test_an_engine_whose_core_is_killed_while_it_stops_is_not_waited_for(
    server: ServerProcess, make_model: MakeModel
) -> None:
    # It would not end by itself for the twenty seconds that it is given.
    server.add_model("a", make_model("a", ignores_term=True))
    server.load("a")
    (guardian,) = server.engine_pids()
    core = next(i.pid for i in session_processes(guardian) if i.name.startswith("VLLM::"))
    server.admin("POST", "/models/a/unload")
    wait_until(lambda: server.model("a")["state"] == "stopping", 5)
    os.kill(core, signal.SIGKILL)
    wait_until(lambda: server.model("a")["state"] == "stopped", 10)
    assert is_gone(guardian)
