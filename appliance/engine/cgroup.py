"""A cgroup (v2) for each engine, below the server's own where that is delegated to it.

Rules of the kernel (cgroup-v2): a cgroup with processes of its own cannot hand controllers to its
children, so the server first moves into a child; who moves a process must be able to write
`cgroup.procs` of the common ancestor. Everything here is optional: an engine without a cgroup is
held together by its session and its guardian.
"""

import contextlib
import logging
import os
import time
from pathlib import Path

from appliance.config.settings import CgroupUse
from appliance.engine import guardian
from appliance.engine.proctree import kill_all

logger = logging.getLogger(__name__)

_SERVER = "server"
_ENGINE = "engine-"
_CONTROLLERS = ("memory", "pids", "cpu")
# systemd marks what it delegates: systemd.resource-control(5), `Delegate=`.
_MARK = "user.delegate"
_EMPTY_S = 5.0


class EngineCgroups:
    """The engines' cgroups of one server; without a root there are none.

    `instance` tells the engines of several servers in the same cgroup apart.
    """

    def __init__(self, root: Path | None, instance: str) -> None:
        self.root = root
        self._prefix = f"{_ENGINE}{instance}-"

    @classmethod
    def open(cls, use: CgroupUse, instance: str, proc: Path = Path("/proc")) -> "EngineCgroups":
        """Find the server's own cgroup, move into a child of it, hand on its controllers.

        Blocks for some milliseconds. What is not possible is logged, and done without.
        """
        own = own_cgroup(proc) if use is not CgroupUse.OFF else None
        if own is None or (use is CgroupUse.AUTO and not is_delegated(own)):
            return cls(None, instance)
        root = own.parent if own.name == _SERVER else own
        try:
            (root / _SERVER).mkdir(exist_ok=True)
            (root / _SERVER / "cgroup.procs").write_text("0")
        except OSError as error:
            logger.warning("cgroups.unusable path=%s error=%s", root, error)
            return cls(None, instance)
        for controller in _controllers(root):
            # Processes of others in the same cgroup forbid it; killing works all the same.
            with contextlib.suppress(OSError):
                (root / "cgroup.subtree_control").write_text(f"+{controller}")
        cgroups = cls(root, instance)
        logger.info("cgroups.used path=%s controllers=%s", root, ",".join(cgroups.controllers()))
        return cgroups

    def controllers(self) -> list[str]:
        """What the kernel accounts for each engine."""
        if self.root is None:
            return []
        try:
            return (self.root / "cgroup.subtree_control").read_text().split()
        except OSError:
            return []

    def create(self, engine_id: str) -> Path | None:
        """A cgroup for a new engine; None: it gets none."""
        if self.root is None:
            return None
        path = self.root / f"{self._prefix}{engine_id}"
        try:
            path.mkdir(exist_ok=True)
        except OSError as error:
            logger.warning("cgroups.not_made path=%s error=%s", path, error)
            return None
        # Half an engine is of no use to anybody: the kernel takes all of it or nothing.
        with contextlib.suppress(OSError):
            (path / "memory.oom.group").write_text("1")
        return path

    def sweep(self) -> int:
        """End all engines of an earlier server (blocks); returns how many cgroups were there."""
        if self.root is None:
            return 0
        found = [path for path in self.root.glob(f"{self._prefix}*") if path.is_dir()]
        shared = guardian.shared_memory(
            [pid for path in found for pid in guardian.cgroup_members(str(path))]
        )
        for path in found:
            end_cgroup(path)
        guardian.remove_shared_memory(shared)
        return len(found)


def own_cgroup(proc: Path) -> Path | None:
    """Directory of this process's cgroup in the v2 hierarchy, None if there is none.

    `/proc/self/cgroup` names it relative to the root of the cgroup namespace, `mountinfo` tells
    where the hierarchy is mounted (proc_pid_mountinfo(5)).
    """
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
        mounts = (proc / "self/mountinfo").read_text().splitlines()
    except OSError:
        return None
    path = next((line[3:] for line in lines if line.startswith("0::")), None)
    if path is None or path.startswith("/.."):
        return None
    for mount in mounts:
        before, _, after = mount.partition(" - ")
        if after.startswith("cgroup2 "):
            root, point = before.split()[3:5]
            inside = path.removeprefix(root) if root != "/" else path
            return Path(point) / inside.lstrip("/")
    return None


def is_delegated(path: Path) -> bool:
    """Whether this cgroup was given to us: marked by systemd, or the root of a container."""
    with contextlib.suppress(OSError):
        if os.getxattr(path, _MARK) == b"1":
            return True
    # Only the root of the whole machine has no `cgroup.type`.
    is_root = path.is_mount() and (path / "cgroup.type").exists()
    return is_root and os.access(path / "cgroup.procs", os.W_OK)


def end_cgroup(path: Path) -> bool:
    """Kill what is in it and remove it (blocks); False if it could not be removed."""
    deadline = time.monotonic() + _EMPTY_S
    while True:
        guardian.write(f"{path}/cgroup.kill", b"1")
        # Kernels before 5.14 have no such file.
        kill_all(guardian.cgroup_members(str(path)))
        try:
            path.rmdir()
        except FileNotFoundError:
            return True
        except OSError:
            if time.monotonic() > deadline:
                logger.warning("cgroups.left path=%s", path)
                return False
            time.sleep(0.02)
        else:
            return True


def _controllers(root: Path) -> list[str]:
    try:
        available = (root / "cgroup.controllers").read_text().split()
    except OSError:
        return []
    return [name for name in _CONTROLLERS if name in available]
