"""How multiprocessing inside a forked engine gets its children: by forks of the guardian.

A part of the launcher's program, loaded by its path; standard library only. It relies on private
parts of multiprocessing, as its own start method "spawn" uses them.
"""

import contextlib
import fcntl
import importlib
import io
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

CODE_BYTES = 8
"""Length of a pid or an exit status in a status pipe."""


def fork_children_through(nursery: socket.socket) -> None:
    """Serve multiprocessing's start method "spawn" by forks of the guardian."""
    from multiprocessing import reduction, resource_tracker, spawn

    context: Any = importlib.import_module("multiprocessing.context")
    popen: Any = importlib.import_module("multiprocessing.popen_spawn_posix")
    util: Any = importlib.import_module("multiprocessing.util")

    class GuardedPopen(popen.Popen):  # type: ignore[misc]
        """As multiprocessing's own; the child is a fork of a clean process, not a new one."""

        method = "spawn"

        def _launch(self, process_obj: Any) -> None:
            tracker = resource_tracker.getfd()
            self._fds.append(tracker)
            payload = io.BytesIO()
            context.set_spawning_popen(self)
            try:
                reduction.dump(spawn.get_preparation_data(process_obj._name), payload)
                reduction.dump(process_obj, payload)
            finally:
                context.set_spawning_popen(None)
            child_read, parent_write = os.pipe()
            self._fds.append(child_read)
            descriptors = list(dict.fromkeys(self._fds))
            request = {
                "env": dict(os.environ),
                "cwd": str(Path.cwd()),
                "argv": list(sys.argv),
                "tracker": tracker,
                "pipe": child_read,
                "descriptors": descriptors,
            }
            self.sentinel = ask(nursery, request, descriptors)
            code = os.read(self.sentinel, CODE_BYTES)
            self.pid = int.from_bytes(code, "big", signed=True)
            os.close(child_read)
            with open(parent_write, "wb", closefd=False) as pipe:
                pipe.write(payload.getbuffer())
            self.finalizer = util.Finalize(self, util.close_fds, [self.sentinel, parent_write])

        def poll(self, flag: int = os.WNOHANG) -> int | None:
            self.returncode: int | None
            if self.returncode is None:
                from multiprocessing.connection import wait

                if not wait([self.sentinel], 0 if flag == os.WNOHANG else None):
                    return None
                code = os.read(self.sentinel, CODE_BYTES)
                is_whole = len(code) == CODE_BYTES
                self.returncode = int.from_bytes(code, "big", signed=True) if is_whole else 255
            return self.returncode

    context.SpawnProcess._Popen = staticmethod(GuardedPopen)


def ask(nursery: socket.socket, request: dict[str, Any], descriptors: list[int]) -> int:
    """Send a request for a child; returns the read end of its status pipe."""
    status_read, status_write = os.pipe()
    request_read, request_write = os.pipe()
    socket.send_fds(nursery, [b"f"], [request_read, status_write, nursery.fileno(), *descriptors])
    os.close(request_read)
    os.close(status_write)
    with os.fdopen(request_write, "wb") as pipe:
        pipe.write(json.dumps(request).encode())
    return status_read


def renumber(have: list[int], want: list[int], extra: list[int]) -> list[int]:
    """Put descriptors onto the numbers that the parent knew; returns where `extra` went."""
    top = max([*want, 64]) + 32
    moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, top) for descriptor in have]
    kept = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, top) for descriptor in extra]
    close_all_but({0, 1, 2, *moved, *kept})
    for descriptor, number in zip(moved, want, strict=True):
        os.dup2(descriptor, number, inheritable=True)
        os.close(descriptor)
    return kept


def close_all_but(kept: set[int]) -> None:
    """Close every other descriptor."""
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        if int(name) not in kept:
            with contextlib.suppress(OSError):
                os.close(int(name))
