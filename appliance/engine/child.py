"""An engine's guardian as the server sees it: started as a program, or forked by the launcher."""

import asyncio
import contextlib
import os
import signal
from typing import Protocol


class GuardianChild(Protocol):
    """The one process of an engine that the server talks to."""

    pid: int

    async def wait(self) -> int:
        """Its exit status; negative if it was itself killed."""
        ...

    def send(self, command: bytes) -> None:
        """Write to its control pipe; a guardian that has gone is no error."""
        ...

    def kill(self) -> None:
        """SIGKILL."""
        ...


class SpawnedGuardian:
    """A child of the server."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pid = process.pid

    async def wait(self) -> int:
        """Its exit status; negative if it was itself killed."""
        return await self._process.wait()

    def send(self, command: bytes) -> None:
        """Write to its control pipe."""
        stdin = self._process.stdin
        if stdin is not None and self._process.returncode is None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError, RuntimeError):
                stdin.write(command)

    def kill(self) -> None:
        """SIGKILL."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()


class ForkedGuardian:
    """A child of the warm launcher; owns its control pipe and its status pipe."""

    def __init__(self, pid: int, control: int, status: int) -> None:
        self.pid = pid
        self._control: int | None = control
        self._status = status
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(status, self._on_status)

    async def wait(self) -> int:
        """What it reported; -9 if it ended without a report."""
        return await asyncio.shield(self._ended)

    def send(self, command: bytes) -> None:
        """Write to its control pipe."""
        if self._control is not None:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._control, command)

    def kill(self) -> None:
        """SIGKILL, unless it has ended: its number may be another's by then."""
        if not self._ended.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def _on_status(self) -> None:
        asyncio.get_running_loop().remove_reader(self._status)
        report = os.read(self._status, 16)
        os.close(self._status)
        if self._control is not None:
            os.close(self._control)
            self._control = None
        self._ended.set_result(int(report) if report else -signal.SIGKILL)
