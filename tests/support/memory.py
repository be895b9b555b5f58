"""What a process holds."""

from pathlib import Path


def anonymous_bytes(pid: int) -> int:
    """What is its own, whoever else has mapped the same libraries (proc_pid_smaps(5))."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))
