"""Whether a ready engine still works on what it was given.

An engine that hangs keeps its port open and may answer /health for ever. What tells is progress
while somebody waits for it: bytes of answers, or vLLM's own counters, which move with each step of
the engine (v1/metrics/loggers.py).
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from appliance.engine.connection import ConnectionLostError, EngineConnections
from appliance.engine.proctree import Activity

_COUNTERS = (
    b"vllm:generation_tokens_total",
    b"vllm:prompt_tokens_total",
    b"vllm:iteration_tokens_total_count",
    b"vllm:request_success_total",
)
_METRICS_S = 2.0
_LOOK_EVERY_S = 5.0
# Below this share of one core the processes of an engine do nothing but answer probes.
_IDLE_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One look at an engine. `at` is of the monotonic clock, in seconds."""

    at: float
    awaited: int
    """Requests that wait for the engine at this moment."""
    counters: float | None
    """Sum of vLLM's counters; None: it did not tell."""
    activity: Activity


class Watchdog:
    """Judges one engine by successive samples. Limits are seconds without progress."""

    def __init__(self, now: float, *, frozen_s: float, hang_s: float) -> None:
        self._frozen_s = frozen_s
        self._hang_s = hang_s
        self.rest(now)

    def rest(self, at: float) -> None:
        """Nobody waits for the engine, or answers come."""
        self._last: Sample | None = None
        self._moved_at = self._busy_at = at

    def judge(self, sample: Sample) -> str | None:
        """What is wrong, for a person; None: nothing. To be called while somebody waits."""
        last, self._last = self._last, sample
        if last is None:
            return None
        if _has_moved(last, sample):
            self._moved_at = self._busy_at = sample.at
            return None
        if not sample.activity.is_stopped and _is_busy(last, sample):
            self._busy_at = sample.at
        still_s = sample.at - self._moved_at
        if sample.at - self._busy_at >= self._frozen_s:
            why = "its processes do nothing"
            if sample.activity.is_stopped:
                why = "one of its processes is stopped"
        elif still_s >= self._hang_s:
            why = "it is busy without any progress"
        else:
            return None
        waiting = "a request waits" if sample.awaited == 1 else f"{sample.awaited} requests wait"
        return f"It hangs: no answer for {still_s:.0f} s while {waiting}; {why}."


async def watch(
    connections: EngineConnections,
    activity: Callable[[], Activity],
    *,
    frozen_s: float,
    hang_s: float,
) -> str:
    """Until the engine hangs: what is wrong. `activity` may block for some milliseconds.

    Looks closely only while somebody waits and no byte has come since the last look.
    """
    watchdog = Watchdog(time.monotonic(), frozen_s=frozen_s, hang_s=hang_s)
    received = 0
    while True:
        before, received = received, connections.received_bytes
        if connections.awaited == 0 or received != before:
            watchdog.rest(time.monotonic())
        else:
            sample = Sample(
                awaited=connections.awaited,
                counters=await read_counters(connections),
                activity=await asyncio.to_thread(activity),
                at=time.monotonic(),
            )
            if reason := watchdog.judge(sample):
                return reason
        await asyncio.sleep(min(_LOOK_EVERY_S, frozen_s / 4))


async def read_counters(connections: EngineConnections) -> float | None:
    """Sum of the counters that move when the engine works; None: it does not answer."""
    try:
        async with asyncio.timeout(_METRICS_S):
            response = await connections.request("GET", "/metrics", is_probe=True)
            text = await response.read()
    except (OSError, TimeoutError, ConnectionLostError):
        return None
    lines = (line for line in text.splitlines() if line.startswith(_COUNTERS))
    return sum(float(line.rsplit(b" ", 1)[1]) for line in lines)


def _has_moved(before: Sample, after: Sample) -> bool:
    return after.counters is not None and after.counters != before.counters


def _is_busy(before: Sample, after: Sample) -> bool:
    elapsed = after.at - before.at
    used = after.activity.cpu_s - before.activity.cpu_s
    # Less than before: a process has ended, which the supervisor sees by other means.
    return used < 0 or used > _IDLE_SHARE * elapsed
