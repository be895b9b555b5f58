"""What /proc tells about the processes of an engine."""

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")

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
    is_zombie: bool


def process_info(pid: int) -> ProcessInfo | None:
    """The process, or None if it is gone."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
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
        is_zombie=fields[0] in {"Z", "X"},
    )


def all_processes() -> list[ProcessInfo]:
    """Every process of this machine that has not ended."""
    found = []
    for entry in os.scandir(_PROC):
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
            environ = (_PROC / str(info.pid) / "environ").read_bytes()
        except OSError:
            continue
        if wanted in environ.split(b"\0"):
            found.append(info)
    return found


def proportional_bytes(pid: int) -> int:
    """Resident memory with shared pages divided among their users (PSS); 0 if it is gone."""
    try:
        with (_PROC / str(pid) / "smaps_rollup").open() as file:
            for line in file:
                if line.startswith("Pss:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return 0


def boot_id() -> str:
    """Differs after each boot, and with it what a pid means."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


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
