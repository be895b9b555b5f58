import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.config.settings import CgroupUse
from appliance.engine import guardian
from appliance.engine.cgroup import EngineCgroups, end_cgroup, is_delegated, own_cgroup
from tests.support.cgroup import delegated_cgroup
from tests.support.wait import wait_until

HYBRID = """\
9:name=systemd:/
4:memory:/jobs
0::/user.slice/a.service
"""
UNIFIED_MOUNT = "35 24 0:30 {root} {point} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"


def fake_proc(directory: Path, cgroup: str, mountinfo: str) -> Path:
    (directory / "self").mkdir(parents=True)
    (directory / "self/cgroup").write_text(cgroup)
    (directory / "self/mountinfo").write_text(mountinfo)
    return directory


def test_own_cgroup_is_found_below_the_mount(tmp_path: Path) -> None:
    mount = UNIFIED_MOUNT.format(root="/", point="/sys/fs/cgroup/unified")
    proc = fake_proc(tmp_path, HYBRID, "22 1 0:1 / / rw - ext4 /dev/sda rw\n" + mount)
    assert own_cgroup(proc) == Path("/sys/fs/cgroup/unified/user.slice/a.service")


def test_own_cgroup_in_a_container_whose_mount_begins_below_the_root(tmp_path: Path) -> None:
    mount = UNIFIED_MOUNT.format(root="/docker/abc", point="/sys/fs/cgroup")
    proc = fake_proc(tmp_path, "0::/docker/abc/sub\n", mount)
    assert own_cgroup(proc) == Path("/sys/fs/cgroup/sub")


@pytest.mark.parametrize("cgroup", ["4:memory:/jobs\n", "0::/../outside\n"])
def test_no_own_cgroup_without_the_second_version_or_outside_the_namespace(
    tmp_path: Path, cgroup: str
) -> None:
    mount = UNIFIED_MOUNT.format(root="/", point="/sys/fs/cgroup")
    assert own_cgroup(fake_proc(tmp_path, cgroup, mount)) is None


def test_a_cgroup_that_nobody_delegated_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "cgroup").mkdir()
    mount = UNIFIED_MOUNT.format(root="/", point=tmp_path / "cgroup")
    proc = fake_proc(tmp_path / "proc", "0::/\n", mount)
    assert not is_delegated(tmp_path / "cgroup")
    cgroups = EngineCgroups.open(CgroupUse.AUTO, "x", proc)
    assert cgroups.root is None
    assert cgroups.create("eng_1") is None
    assert cgroups.sweep() == 0
    assert list((tmp_path / "cgroup").iterdir()) == []


def test_switched_off(tmp_path: Path) -> None:
    assert EngineCgroups.open(CgroupUse.OFF, "x", tmp_path).root is None


@pytest.fixture
def own() -> Iterator[Path]:
    """A cgroup that this test may use as a server's own."""
    with delegated_cgroup() as path:
        yield path


# Stands for a server: enters the cgroup, opens it, starts an engine in a cgroup of its own.
SERVER = """
import sys, subprocess, pathlib
from appliance.config.settings import CgroupUse
from appliance.engine import guardian
from appliance.engine.cgroup import EngineCgroups
own = pathlib.Path(sys.argv[1])
(own / "cgroup.procs").write_text("0")
cgroups = EngineCgroups.open(CgroupUse.ON, "one")
path = cgroups.create("eng_1")
engine = subprocess.Popen(
    [sys.executable, "-I", "-S", guardian.__file__, "5", str(path), "-", "/bin/sleep", "60"],
    stdin=subprocess.PIPE,
)
print(path, engine.pid, flush=True)
sys.stdin.read()
"""


def pids_in(cgroup: Path) -> list[int]:
    return [int(pid) for pid in (cgroup / "cgroup.procs").read_text().split()]


def test_an_engine_runs_in_its_cgroup_and_the_next_start_ends_what_is_left(own: Path) -> None:
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(own)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    path, engine = server.stdout.readline().split()
    cgroup = Path(path)
    assert cgroup.parent == own
    wait_until(lambda: pids_in(cgroup), 10, "the engine in its cgroup")
    # Server and guardian are beside it, so that killing the cgroup kills the engine alone.
    assert set(pids_in(own / "server")) == {server.pid, int(engine)}
    assert EngineCgroups(own, "other").sweep() == 0
    assert pids_in(cgroup)
    assert EngineCgroups(own, "one").sweep() == 1
    assert not cgroup.exists()
    server.communicate("", timeout=10)


def test_the_guardian_kills_what_hides_in_the_cgroup(own: Path) -> None:
    cgroup = own / "engine"
    cgroup.mkdir()
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", guardian.__file__, "5", str(cgroup), "-", "/bin/sleep", "60"],
        stdin=subprocess.PIPE,
    )
    wait_until(lambda: pids_in(cgroup), 10, "the engine in its cgroup")
    (inside,) = pids_in(cgroup)
    assert os.getsid(inside) == os.getsid(child.pid)
    child.communicate(b"k", timeout=10)
    assert pids_in(cgroup) == []
    assert end_cgroup(cgroup)
    assert end_cgroup(cgroup)


def test_members_are_killed_where_the_kernel_cannot_kill_a_cgroup(tmp_path: Path) -> None:
    # Kernels before 5.14 have no `cgroup.kill`; a plain directory has none either.
    member = subprocess.Popen(["/bin/sleep", "60"])
    (tmp_path / "group").mkdir()
    (tmp_path / "group/cgroup.procs").write_text(f"{member.pid}\n")
    assert guardian.cgroup_members(str(tmp_path / "group")) == [member.pid]
    ending = threading.Thread(target=end_cgroup, args=(tmp_path / "group",))
    ending.start()
    assert member.wait(10) == -signal.SIGKILL
    (tmp_path / "group/cgroup.procs").unlink()
    ending.join(10)
    assert not (tmp_path / "group").exists()
