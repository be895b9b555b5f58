"""vLLM's sleep mode over HTTP: the right sequence for each level, every wait bounded.

A level 1 sleep keeps the weights in RAM, so one wake brings all back. After level 2 the weights are
garbage until they are read again, and that must happen before the KV cache is back: it may need the
room (vLLM 0.32, snapshot/server.py). A sleep ends what is in flight, so nothing may be.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from enum import StrEnum

import msgspec

from appliance.engine.connection import ConnectionLostError, EngineConnections
from appliance.engine.sleep_check import (
    Answer,
    difference,
    question,
    read_answer,
    too_little_freed,
)
from appliance.protocol.models import Task
from appliance.protocol.sleep import SleepLevel, SleepVerdict

# A driver takes a moment to count memory as free.
_FREED_S = 5.0
_FREED_EVERY_S = 0.1
_LONGEST_QUOTE = 200


class SleepFault(StrEnum):
    """What went wrong."""

    BUSY = "busy"
    HUNG = "hung"
    """No answer within the limit."""
    LOST = "lost"
    """The engine has gone away."""
    REFUSED = "refused"
    """An answer other than 200."""
    WRONG_STATE = "wrong_state"
    """It says that it is awake when it should be asleep, or the other way round."""
    NOT_FREED = "not_freed"
    GARBAGE = "garbage"


class SleepError(Exception):
    """A sleep or a wake failed; the engine cannot be trusted any more and has to go."""

    def __init__(self, fault: SleepFault, message: str) -> None:
        super().__init__(message)
        self.fault = fault


class _Sleeping(msgspec.Struct):
    is_sleeping: bool


def steps_to_wake(level: SleepLevel) -> list[tuple[str, bytes]]:
    """The requests that wake an engine, in order: path and body of each POST."""
    if level == 1:
        return [("/wake_up", b"")]
    return [
        ("/wake_up?tags=weights", b""),
        ("/collective_rpc", b'{"method": "reload_weights"}'),
        ("/wake_up?tags=kv_cache", b""),
        ("/reset_prefix_cache", b""),
        ("/reset_mm_cache", b""),
    ]


class EngineSleep:
    """Sleep and wake of one engine. Seconds of the monotonic clock; bytes of all ranks."""

    def __init__(
        self,
        connections: EngineConnections,
        *,
        model: str,
        task: Task,
        vllm_version: str,
        weights_bytes: int,
        kv_cache_bytes: int,
        limit_s: float,
    ) -> None:
        self.level: SleepLevel | None = None
        self.host_bytes = 0
        """RAM that it holds: torch keeps the pinned pages of the first sleep (vLLM 16663)."""
        self.residue_bytes = 0
        self._connections = connections
        self._model = model
        self._task = task
        self._vllm_version = vllm_version
        self._weights_bytes = weights_bytes
        self._kv_cache_bytes = kv_cache_bytes
        self._limit_s = limit_s
        self._deadline = 0.0
        self._answer: Answer | None = None
        self._freed_bytes = 0
        self._sleep_s: float | None = None
        self._wake_s: float | None = None

    async def fall_asleep(self, level: SleepLevel, measure: Callable[[], Awaitable[int]]) -> None:
        """Sleep, and see the memory come back; `measure` says what it holds. Raises SleepError."""
        self._deadline = time.monotonic() + self._limit_s
        if self._connections.awaited:
            raise SleepError(SleepFault.BUSY, f"{self._connections.awaited} requests are in flight")
        self.level, self._sleep_s, self._wake_s = level, None, None
        if self._answer is None:
            self._answer = await self._ask()
        before = await measure()
        started = time.monotonic()
        if level == 1:
            self.host_bytes = self._weights_bytes
        # Not `abort`, which would end with half an answer what we did not know of.
        await self._post(f"/sleep?level={level}&mode=wait")
        self._sleep_s = round(time.monotonic() - started, 3)
        await self._check_state(is_sleeping=True)
        await self._see_freed(before, measure)

    async def wake(self) -> None:
        """Bring everything back, and see that it answers as before. Raises SleepError."""
        assert self.level is not None
        self._deadline = time.monotonic() + self._limit_s
        started = time.monotonic()
        for path, body in steps_to_wake(self.level):
            await self._post(path, body)
        await self._check_state(is_sleeping=False)
        answer = await self._ask()
        self._wake_s = round(time.monotonic() - started, 3)
        if self._answer is not None and (change := difference(self._answer, answer)) is not None:
            raise SleepError(SleepFault.GARBAGE, f"after it woke, {change}")

    def verdict(self, failed: SleepError | None) -> SleepVerdict:
        """What is known about its level after a sleep and a wake, or after what failed."""
        assert self.level is not None
        return SleepVerdict(
            level=self.level,
            works=failed is None,
            reason="" if failed is None else str(failed),
            vllm_version=self._vllm_version,
            freed_bytes=self._freed_bytes,
            residue_bytes=self.residue_bytes,
            host_bytes=self.host_bytes if self.level == 1 else 0,
            sleep_s=self._sleep_s,
            wake_s=self._wake_s,
            at=datetime.now(UTC),
        )

    async def _see_freed(self, before: int, measure: Callable[[], Awaitable[int]]) -> None:
        until = min(time.monotonic() + _FREED_S, self._deadline)
        expected = self._weights_bytes + self._kv_cache_bytes
        while True:
            after = await measure()
            self._freed_bytes, self.residue_bytes = max(before - after, 0), after
            problem = too_little_freed(before, after, expected)
            if problem is None:
                return
            if time.monotonic() > until:
                raise SleepError(SleepFault.NOT_FREED, problem)
            await asyncio.sleep(_FREED_EVERY_S)

    async def _ask(self) -> Answer:
        path, body = question(self._model, self._task)
        answer = read_answer(self._task, await self._post(path, msgspec.json.encode(body)))
        if answer is None:
            raise SleepError(SleepFault.GARBAGE, "its answer cannot be compared with another")
        return answer

    async def _check_state(self, *, is_sleeping: bool) -> None:
        try:
            text = await self._request("GET", "/is_sleeping", b"")
            is_so = msgspec.json.decode(text, type=_Sleeping).is_sleeping is is_sleeping
        except msgspec.MsgspecError:
            is_so = False
        if not is_so:
            wanted = "asleep" if is_sleeping else "awake"
            raise SleepError(SleepFault.WRONG_STATE, f"it does not say that it is {wanted}")

    async def _post(self, path: str, body: bytes = b"") -> bytes:
        return await self._request("POST", path, body)

    async def _request(self, method: str, path: str, body: bytes) -> bytes:
        headers = [(b"content-type", b"application/json")] if body else []
        name = path.partition("?")[0]
        try:
            async with asyncio.timeout(max(self._deadline - time.monotonic(), 0.0)):
                response = await self._connections.request(
                    method, path, headers=headers, body=body, is_probe=True
                )
                text = await response.read()
        except TimeoutError as error:
            message = f"{name} has not answered; the limit is {self._limit_s:.0f} s"
            raise SleepError(SleepFault.HUNG, message) from error
        except (OSError, ConnectionLostError) as error:
            raise SleepError(SleepFault.LOST, f"it went away during {name}") from error
        if response.status != 200:
            said = text[:_LONGEST_QUOTE].decode(errors="replace")
            message = f"{name} answered HTTP {response.status}: {said}"
            raise SleepError(SleepFault.REFUSED, message)
        return text
