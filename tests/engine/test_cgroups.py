"""Engines in cgroups of their own, where the server may make some."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.engine.cgroup import own_cgroup
from appliance.engine.proctree import process_info, session_processes
from tests.support.cgroup import delegated_cgroup
from tests.support.server import ServerProcess
from tests.support.wait import wait_until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

CONFIG = '[devices]\nsource = "cpu"\ncpu_memory = "8GiB"\n[engines]\ncgroup = "on"\n'


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup (v2) that stands for a delegated one."""
    with delegated_cgroup() as path:
        yield path


def start_in(cgroup: Path, server: ServerProcess) -> None:
    """Who is started in a cgroup stays in it."""
    home = own_cgroup(Path("/proc"))
    assert home is not None
    (cgroup / "cgroup.procs").write_text(str(os.getpid()))
    try:
        server.start()
    finally:
        (home / "cgroup.procs").write_text(str(os.getpid()))


def members(cgroup: Path) -> set[int]:
    return {int(pid) for pid in (cgroup / "cgroup.procs").read_text().split()}


def engines(cgroup: Path) -> list[Path]:
    return [path for path in cgroup.glob("engine-*") if path.is_dir()]


def test_engines_live_and_end_in_cgroups(cgroup: Path, tmp_path: Path, prepared: Path) -> None:
    server = ServerProcess(tmp_path / "home", CONFIG, engines=prepared / "engines")
    try:
        start_in(cgroup, server)
        assert server.process is not None
        server.add_model("tiny", prepared / "models/tiny")
        # Plain starts are in cgroups as well as forked ones.
        server.add_model("plain", prepared / "models/tiny", env={"SOME_VARIABLE": "1"})
        server.load("plain")
        server.load("tiny")
        assert len(engines(cgroup)) == 2
        guardians = set(server.engine_pids())
        inside = set().union(*(members(path) for path in engines(cgroup)))
        tree = {info.pid for pid in guardians for info in session_processes(pid)}
        assert inside == tree - guardians
        assert {server.process.pid, *guardians} <= members(cgroup / "server")
        server.admin("POST", "/models/plain/unload")
        wait_until(lambda: len(engines(cgroup)) == 1, 30)

        # Server and guardian die at once: only the cgroup tells the next start what is left.
        (guardian,) = server.engine_pids()
        left = tree - guardians
        server.process.send_signal(signal.SIGSTOP)
        for record in server.paths.engine_records.glob("*.json"):
            record.unlink()
        for pid in members(engines(cgroup)[0]):
            os.kill(pid, signal.SIGSTOP)
        os.kill(guardian, signal.SIGKILL)
        server.kill()
        start_in(cgroup, server)
        assert engines(cgroup) == []
        alive = [info for pid in left if (info := process_info(pid)) and not info.is_zombie]
        assert alive == []
    finally:
        server.end()
    assert engines(cgroup) == []
