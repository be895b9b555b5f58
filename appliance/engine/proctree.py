"""What /proc tells about the processes of an engine."""

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")

ENGINE_VARIABLE = "VLLM_APPLIANCE_ENGINE"
"""Environment variable that marks each process of an engine with the engine's id."""


@dataclass(frozen=True, kw_only=True)
class ProcessInfo:
    """Fields of proc_pid_stat(5); `start_ticks` with the pid identifies a process for one boot."""

    pid: int
    ppid: int
    session: int
    start_ticks: int
    name: str
    cpu_s: float
    is_zombie: bool
    is_stopped: bool
    """By a signal such as SIGSTOP."""


def _read(pid: int, name: str) -> bytes:
    """A file of a process, without pathlib.

    It interns each part of a path: scans of all processes fill Python's table of interned strings
    with their numbers. Each time that it is full a new one of 2 MiB is made, in the arena of
    whichever thread that happens in, and malloc keeps them all.
    """
    with open(f"/proc/{pid}/{name}", "rb", buffering=0) as file:  # noqa: PTH123
        return file.read()


def process_info(pid: int) -> ProcessInfo | None:
    """The process, or None if it is gone."""
    try:
        text = _read(pid, "stat").decode(errors="replace")
    except OSError:
        return None
    head, _, tail = text.rpartition(")")
    fields = tail.split()
    return ProcessInfo(
        pid=pid,
        ppid=int(fields[1]),
        session=int(fields[3]),
        start_ticks=int(fields[19]),
        name=head.partition("(")[2],
        cpu_s=(int(fields[11]) + int(fields[12])) / _TICKS_PER_S,
        is_stopped=fields[0] == "T",
        is_zombie=fields[0] in {"Z", "X"},
    )


def all_processes() -> list[ProcessInfo]:
    """Every process of this machine that has not ended."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            info = process_info(int(entry.name))
            if info is not None and not info.is_zombie:
                found.append(info)
    return found


def session_processes(session: int) -> list[ProcessInfo]:
    """The living processes of a session."""
    return [info for info in all_processes() if info.session == session]


def processes_with_variable(name: str, value: str) -> list[ProcessInfo]:
    """Own processes that were started with this environment variable."""
    wanted = f"{name}={value}".encode()
    found = []
    for info in all_processes():
        try:
            environ = _read(info.pid, "environ")
        except OSError:
            continue
        if wanted in environ.split(b"\0"):
            found.append(info)
    return found


def proportional_bytes(pid: int) -> int:
    """Resident memory with shared pages divided among their users (PSS); 0 if it is gone."""
    try:
        for line in _read(pid, "smaps_rollup").splitlines():
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return 0


@dataclass(frozen=True, kw_only=True)
class Activity:
    """What the living processes of a session have done so far, in all."""

    cpu_s: float
    read_bytes: int
    """Read from files, and from disk for files that are mapped into memory."""
    is_stopped: bool
    """Whether one of them is held by a signal such as SIGSTOP."""


def session_activity(session: int) -> tuple[Activity, dict[int, int]]:
    """Sum over the session's processes, and what each has read (blocks for some milliseconds)."""
    infos = session_processes(session)
    read = {info.pid: _read_bytes(info.pid) for info in infos}
    activity = Activity(
        cpu_s=sum(info.cpu_s for info in infos),
        read_bytes=sum(read.values()),
        is_stopped=any(info.is_stopped for info in infos),
    )
    return activity, read


def _read_bytes(pid: int) -> int:
    """`rchar` counts reads by system call, `read_bytes` what came from disk (proc_pid_io(5))."""
    try:
        lines = _read(pid, "io").decode().splitlines()
    except OSError:
        return 0
    counts = dict(line.split(": ") for line in lines)
    return max(int(counts.get("rchar", 0)), int(counts.get("read_bytes", 0)))


def boot_id() -> str:
    """Differs after each boot, and with it what a pid means."""
    return _BOOT_ID.read_text().strip()


def kill_all(pids: list[int]) -> None:
    """SIGKILL each that still lives."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def wait_gone(pids: list[int], timeout_s: float) -> list[int]:
    """Block until the processes have ended; returns those that have not in time."""
    end = time.monotonic() + timeout_s
    left = pids
    while left and time.monotonic() < end:
        left = [
            pid for pid in left if (info := process_info(pid)) is not None and not info.is_zombie
        ]
        if left:
            time.sleep(0.02)
    return left
