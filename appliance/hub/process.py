"""The process that fetches, seen from the server: start, hear, kill."""

import asyncio
import logging
import os
import sys
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import suppress

import msgspec

from appliance.hub.messages import Message, Order

logger = logging.getLogger(__name__)

_PROGRAM = "appliance.hub.fetch"
# The list of a repository is one line.
_LONGEST_LINE = 64 << 20
_LAST_WORDS = 20
_END_S = 5.0
_OURS = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    # Only the token of the order is used.
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    # Transfers of Xet cannot be resumed.
    "HF_HUB_DISABLE_XET": "1",
}
_NOT_FOR_IT = {"HF_TOKEN", "HF_DEBUG", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"}


class FetchProcess:
    """One order. `kill` may be called at any time, also before it was started."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._process: asyncio.subprocess.Process | None = None
        self._is_killed = False
        self.died_by_signal = False
        """Somebody else killed it: the kernel for want of memory, or a person."""

    async def messages(self) -> AsyncGenerator[Message, None]:
        """All that it says; it has ended when the iteration ends. Raises OSError."""
        process = self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            _PROGRAM,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_LONGEST_LINE,
            # Ctrl+C in the server's terminal is for the server.
            start_new_session=True,
            env={k: v for k, v in os.environ.items() if k not in _NOT_FOR_IT} | _OURS,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        if self._is_killed:
            self.kill()
        words = asyncio.create_task(_last_words(process.stderr))
        try:
            with suppress(ConnectionError):
                process.stdin.write(msgspec.json.encode(self._order) + b"\n")
                await process.stdin.drain()
            async for line in process.stdout:
                yield msgspec.json.decode(line, type=Message)
            with suppress(TimeoutError):
                async with asyncio.timeout(_END_S):
                    self.died_by_signal = await process.wait() < 0 and not self._is_killed
        finally:
            self.kill()
            process.stdin.close()
            status = await process.wait()
            said = await words
        if status > 0:
            logger.warning("pull.process_failed status=%d said=%s", status, said)

    def kill(self) -> None:
        """End it now; what it has written stays."""
        self._is_killed = True
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()


async def _last_words(stream: asyncio.StreamReader) -> str:
    lines = deque([line async for line in stream], maxlen=_LAST_WORDS)
    return b"".join(lines).decode(errors="replace").strip()
