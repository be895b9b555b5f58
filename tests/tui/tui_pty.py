"""A terminal for the real program: a pty that records every byte."""

import asyncio
import fcntl
import os
import pty
import signal
import struct
import sys
import termios
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Terminal:
    """Runs `python -m tui` in a pty and keeps what it writes."""

    def __init__(self, *arguments: str, size: tuple[int, int] = (80, 24), **env: str) -> None:
        self.raw = b""
        self.started = time.monotonic()
        self.first_byte_s: float | None = None
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            environ = {
                "PATH": os.environ["PATH"], "TERM": "xterm-256color", "COLORTERM": "truecolor",
                "LANG": "C.UTF-8", "HOME": os.environ.get("HOME", "/"), **env,
            }  # fmt: skip
            os.chdir(ROOT)
            os.execve(sys.executable, [sys.executable, "-m", "tui", *arguments], environ)
        columns, rows = size
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        os.set_blocking(self._fd, False)

    def read(self) -> bytes:
        """What came since the last call."""
        new = b""
        while True:
            try:
                chunk = os.read(self._fd, 65536)
            except (BlockingIOError, OSError):
                break
            if not chunk:
                break
            new += chunk
        if new and self.first_byte_s is None:
            self.first_byte_s = time.monotonic() - self.started
        self.raw += new
        return new

    def write(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    async def until(self, wanted: str, timeout_s: float = 15.0) -> float:
        """Seconds until the text was written."""
        start = time.monotonic()
        mark = max(0, len(self.raw) - 100)
        while wanted.encode() not in self.raw[mark:]:
            self.read()
            if time.monotonic() - start > timeout_s:
                raise AssertionError(f"{wanted!r} never came; last: {self.raw[-400:]!r}")
            await asyncio.sleep(0.01)
        return time.monotonic() - start

    async def collect(self, seconds: float) -> bytes:
        """Everything written within some time."""
        end, got = time.monotonic() + seconds, b""
        while time.monotonic() < end:
            got += self.read()
            await asyncio.sleep(0.02)
        return got

    async def ended(self, timeout_s: float = 10.0) -> int:
        """The exit code."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            self.read()
            pid, status = os.waitpid(self.pid, os.WNOHANG)  # noqa: ASYNC222
            if pid:
                self.pid = 0
                self.read()
                return os.waitstatus_to_exitcode(status)
            await asyncio.sleep(0.02)
        raise AssertionError("it did not end")

    def hang_up(self) -> None:
        """As a closed SSH session does."""
        os.close(self._fd)
        self._fd = os.open(os.devnull, os.O_RDWR | os.O_NONBLOCK)

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def close(self) -> None:
        """End it by force if it still runs."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._fd)
