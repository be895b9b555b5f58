"""Whether a ready engine still works on what it was given.

An engine that hangs keeps its port open, answers /health and refuses bad requests: vLLM's API
server does that without its engine core. What tells is progress while somebody waits: bytes of
good answers, or figures that only the core moves (v1/metrics/loggers.py). In a long prefill no
token counter moves until its last chunk, but the use of the KV cache does.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from appliance.engine.connection import ConnectionLostError, EngineConnections
from appliance.engine.proctree import Activity
from appliance.units import MIB

_PROGRESS = (
    b"vllm:generation_tokens_total",
    b"vllm:prompt_tokens_total",
    b"vllm:iteration_tokens_total_count",
    b"vllm:request_success_total",
    b"vllm:kv_cache_usage_perc",
)
_WORK = (b"vllm:num_requests_running", b"vllm:num_requests_waiting{")
_METRICS_S = 2.0
_LOOK_EVERY_S = 5.0
# Below this share of one core the processes of an engine do nothing but answer probes.
_IDLE_SHARE = 0.1
# An engine that was swapped out reads this much between two looks.
_BUSY_READ = 4 * MIB


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """What an engine tells about itself; None where it tells nothing."""

    is_answered: bool
    progress: float | None = None
    """A sum that moves when the engine core does."""
    work: float | None = None
    """Requests that the engine core has. One whose picture is being fetched is not among them."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One look at an engine for which somebody waits. `at`: seconds of the monotonic clock."""

    at: float
    awaited: int
    metrics: Metrics
    activity: Activity


class Watchdog:
    """Adds up the time in which an engine owes an answer and makes no progress. Pure.

    `frozen_s` is for an engine that has work and does nothing, `hang_s` for any other. The clock
    stops while nobody waits; only progress sets it back. `look_s` is the time between two looks: a
    longer gap (the machine slept) counts as two of them.
    """

    def __init__(self, *, frozen_s: float, hang_s: float, look_s: float) -> None:
        self._frozen_s = frozen_s
        self._hang_s = hang_s
        self._look_s = look_s
        self._progress: float | None = None
        self.rest()

    def rest(self) -> None:
        """It made progress."""
        self._last: Sample | None = None
        self._owed_s = 0.0
        self._frozen_for_s = 0.0

    def pause(self) -> None:
        """Nobody waits."""
        self._last = None

    def judge(self, sample: Sample) -> str | None:
        """What is wrong, for a person; None: nothing."""
        last, self._last = self._last, sample
        progress = sample.metrics.progress
        if progress is not None:
            has_moved = self._progress is not None and progress != self._progress
            self._progress = progress
            if has_moved:
                self.rest()
                self._last = sample
        if last is None:
            return None
        elapsed = min(sample.at - last.at, 2 * self._look_s)
        self._owed_s += elapsed
        is_frozen = _has_work(sample) and _is_idle(last, sample)
        self._frozen_for_s = self._frozen_for_s + elapsed if is_frozen else 0.0
        return self._verdict(sample)

    def _verdict(self, sample: Sample) -> str | None:
        if self._frozen_for_s >= self._frozen_s:
            why = "its processes do nothing"
            if sample.activity.is_stopped:
                why = "one of its processes is stopped"
        elif self._owed_s >= self._hang_s and _can_tell(sample.metrics):
            why = "there is no progress"
        else:
            return None
        waiting = "a request waits" if sample.awaited == 1 else f"{sample.awaited} requests wait"
        return f"It hangs: no answer for {self._owed_s:.0f} s while {waiting}; {why}."


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
    look_s = min(_LOOK_EVERY_S, frozen_s / 4)
    watchdog = Watchdog(frozen_s=frozen_s, hang_s=hang_s, look_s=look_s)
    received = 0
    while True:
        before, received = received, connections.received_bytes
        if received != before:
            watchdog.rest()
        elif connections.awaited == 0:
            watchdog.pause()
        else:
            sample = Sample(
                awaited=connections.awaited,
                metrics=await read_metrics(connections),
                activity=await asyncio.to_thread(activity),
                at=time.monotonic(),
            )
            if reason := watchdog.judge(sample):
                return reason
        await asyncio.sleep(look_s)


async def read_metrics(connections: EngineConnections) -> Metrics:
    """Ask the engine's API server."""
    try:
        async with asyncio.timeout(_METRICS_S):
            response = await connections.request("GET", "/metrics", is_probe=True)
            text = await response.read()
    except (OSError, TimeoutError, ConnectionLostError):
        return Metrics(is_answered=False)
    lines = text.splitlines()
    return Metrics(is_answered=True, progress=_sum(lines, _PROGRESS), work=_sum(lines, _WORK))


def _sum(lines: list[bytes], names: tuple[bytes, ...]) -> float | None:
    values = [float(line.rsplit(b" ", 1)[1]) for line in lines if line.startswith(names)]
    return sum(values) if values else None


def _can_tell(metrics: Metrics) -> bool:
    """Without figures of its core (`--disable-log-stats`) nothing is known about progress."""
    return metrics.progress is not None or not metrics.is_answered


def _has_work(sample: Sample) -> bool:
    """Whether the core owes the answer, and not the API server, which may wait for a picture."""
    if sample.activity.is_stopped or not sample.metrics.is_answered:
        return True
    return bool(sample.metrics.work)


def _is_idle(before: Sample, after: Sample) -> bool:
    if after.activity.is_stopped:
        return True
    elapsed = after.at - before.at
    used = after.activity.cpu_s - before.activity.cpu_s
    read = after.activity.read_bytes - before.activity.read_bytes
    # Less than before: a process has ended, which the supervisor sees by other means.
    return 0 <= used <= _IDLE_SHARE * elapsed and read < _BUSY_READ
