"""Whether the kernel killed somebody for want of memory."""

from dataclasses import dataclass
from pathlib import Path

_COUNTER = "oom_kill"


@dataclass(frozen=True)
class OomKills:
    """Processes that the kernel has killed for want of memory so far."""

    machine: int
    """On the whole machine, inside of any cgroup as well; 0 where the kernel does not tell."""
    own: int | None = None
    """In the engine's own cgroup; None: it has none, or it is gone, or memory is not counted."""

    def has_grown_since(self, before: "OomKills") -> bool:
        """Whether somebody was killed meanwhile: in the engine's own cgroup, if both know that."""
        if self.own is not None and before.own is not None:
            return self.own > before.own
        return self.machine > before.machine


def oom_kills(cgroup: Path | None = None, vmstat: Path = Path("/proc/vmstat")) -> OomKills:
    """The counters now: `memory.events` of a cgroup (v2) and `/proc/vmstat`.

    Blocks for less than a millisecond.
    """
    own = None if cgroup is None else _read(cgroup / "memory.events")
    return OomKills(machine=_read(vmstat) or 0, own=own)


def _read(file: Path) -> int | None:
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(" ")
        if name == _COUNTER and value.strip().isdigit():
            return int(value)
    return None
