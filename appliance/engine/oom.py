"""Whether the kernel killed somebody for want of memory."""

from pathlib import Path

_COUNTER = "oom_kill"


def oom_kills(cgroup: Path | None = None, vmstat: Path = Path("/proc/vmstat")) -> int:
    """How many processes the kernel has killed so far for want of memory; compare two readings.

    Those of a cgroup (v2) of one's own, if it is given and says so (`memory.events`), else those
    of the whole machine, which counts kills inside of any cgroup as well (`/proc/vmstat`). Zero
    where the kernel does not tell. Blocks for less than a millisecond.
    """
    for file in ([cgroup / "memory.events"] if cgroup is not None else []) + [vmstat]:
        try:
            count = counter(file.read_text(), _COUNTER)
        except OSError:
            continue
        if count is not None:
            return count
    return 0


def counter(text: str, name: str) -> int | None:
    """A counter in a file of lines `name value`; None if it is not there."""
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdigit():
            return int(value)
    return None
