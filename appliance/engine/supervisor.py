"""The one task that owns an engine: start, become ready, watch, stop, explain its end."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from appliance.engine.command import EngineSpec
from appliance.engine.connection import EngineConnections
from appliance.engine.environments import EnvironmentRecord
from appliance.engine.failure import not_looked_after, not_started
from appliance.engine.health import is_ready
from appliance.engine.last_words import LastWords, shortened
from appliance.engine.liveness import watch
from appliance.engine.loading import Loading
from appliance.engine.logs import EngineLog
from appliance.engine.process import EngineProcess
from appliance.engine.sleep import EngineSleep
from appliance.engine.sleeper import Sleeper
from appliance.engine.spawner import EngineSpawner
from appliance.engine.state import ENDED
from appliance.engine.transitions import EngineStates
from appliance.protocol.engines import (
    Engine,
    EngineState,
    Failure,
    FailureCause,
    LoadProgress,
)
from appliance.protocol.events import EngineChanged, Event
from appliance.protocol.placement import Placement
from appliance.store.models import LoadRecord

logger = logging.getLogger(__name__)

_PROBE_EVERY_S = 0.05
_LOOK_EVERY_S = 0.5
# A process that dies during a load usually says why, and vLLM ends by itself.
_LAST_WORDS_S = 1.0
# Of an engine that stops, the first process is usually gone half a second after the others.
_LEFT_BEHIND_S = 5.0


@dataclass(frozen=True, kw_only=True)
class EngineLimits:
    """Seconds: without a sign of progress while loading, for ending by itself, without an answer
    while somebody waits, for an engine that does nothing and for one that is busy; and for falling
    asleep or waking.
    """

    stall_s: float
    stop_s: float
    frozen_s: float
    hang_s: float
    sleep_s: float


class EngineSupervisor:
    """One attempt to run a model. Owned by the scheduler; everyone else sees `view()`."""

    def __init__(
        self,
        spec: EngineSpec,
        placement: Placement,
        environment: EnvironmentRecord,
        *,
        log_file: Path,
        log_bytes: int,
        limits: EngineLimits,
        spawner: EngineSpawner,
        earlier_loads: list[LoadRecord],
        attempts: int,
        publish: Callable[[Event], None],
    ) -> None:
        self.id = spec.engine_id
        self.model = spec.model
        self.spec = spec
        self.placement = placement
        self.environment = environment
        self.log = EngineLog(log_file, spec.engine_id, spec.model, limit_bytes=log_bytes)
        self.connections = EngineConnections(spec.socket)
        self._states = EngineStates(
            spec.model, spec.engine_id, publish=publish, changed=self._changed
        )
        sleep = EngineSleep(
            self.connections,
            model=spec.model,
            task=spec.settings.task,
            vllm_version=environment.vllm_version,
            weights_bytes=spec.weights_bytes,
            kv_cache_bytes=spec.kv_cache_bytes * len(placement.shares),
            limit_s=limits.sleep_s,
        )
        self.sleeper = Sleeper(
            sleep, self._states, is_stopping=lambda: self.is_stopping, end=self._end_at_once
        )
        self.failure: Failure | None = None
        self.memory_bytes = 0
        self.load_s: float | None = None
        self.phases: dict[str, float] = {}
        self.was_ready = False
        self._limits = limits
        self._spawner = spawner
        self._attempts = attempts
        self._publish = publish
        self._process: EngineProcess | None = None
        self._loading = Loading(time.monotonic(), earlier_loads, spec.weights_bytes)
        self._progress: LoadProgress | None = None
        self._created_at = datetime.now(UTC)
        self._ready_at: datetime | None = None
        self._ended_at: datetime | None = None
        self._last_words = LastWords(spec.model, attempts)
        self._stop_reason: str | None = None
        self._seen: tuple[FailureCause, str] | None = None
        """What we saw ourselves that is wrong with it."""
        self._ending = asyncio.Event()

    @property
    def state(self) -> EngineState:
        """Where it is between starting and its end."""
        return self._states.now

    @property
    def has_ended(self) -> bool:
        """Whether nothing of the engine is left."""
        return self.state in ENDED

    @property
    def is_stopping(self) -> bool:
        """Whether a stop was asked for."""
        return self._stop_reason is not None

    def view(self) -> Engine:
        """The engine as others see it."""
        return Engine(
            id=self.id,
            model=self.model,
            state=self.state,
            environment=self.environment.name,
            vllm_version=self.environment.vllm_version,
            pid=self._process.pid if self._process else None,
            placement=self.placement,
            progress=self._progress,
            failure=self.failure,
            created_at=self._created_at,
            ready_at=self._ready_at,
            ended_at=self._ended_at,
            load_s=self.load_s,
            memory_bytes=self.memory_bytes,
            log_lines=self.log.line_count,
            was_forked=self._process.was_forked if self._process else False,
            sleep_level=self.sleeper.level,
        )

    async def run(self, on_ready: Callable[[], None]) -> None:
        """The engine's whole life; returns when nothing of it is left. Never raises for it.

        `on_ready` is called once, in the same step in which the state becomes ready.
        """
        logger.info("engine.starting model=%s engine=%s", self.model, self.id)
        self._changed()
        try:
            await self._spawn()
            if self._process is not None:
                await self._live(self._process, on_ready)
        except asyncio.CancelledError:
            await self._abandon()
            raise
        except Exception as error:  # the slot must not hang on a bug or a full disk
            logger.exception("engine.lost model=%s engine=%s", self.model, self.id)
            await self._abandon()
            self._fail(not_looked_after(error, datetime.now(UTC), self._attempts))
        finally:
            self.connections.close()
            self.log.close()
            await self._spawner.forget(self.id)

    def drain(self, reason: str) -> None:
        """Take no further requests."""
        self._states.to(EngineState.DRAINING, reason)

    def undrain(self, reason: str) -> None:
        """Take requests again."""
        self._states.to(EngineState.READY, reason)

    def stop(self, reason: str) -> None:
        """Begin to end; `run` returns when it is over. Safe to call again."""
        if self._stop_reason is not None or self.has_ended:
            return
        self._stop_reason = reason
        self._ending.set()
        if self._process is not None:
            self._states.to(EngineState.STOPPING, reason)
            self._process.terminate()

    def _end_at_once(self, reason: str) -> None:
        """For one that hangs, or whose memory cannot be trusted: it gets no grace period."""
        self.stop(reason)
        self._end_now()

    def pids(self) -> set[int]:
        """Processes of the engine (blocks for some milliseconds)."""
        return self._process.pids() if self._process and not self.has_ended else set()

    def note_oom_kills(self) -> None:
        """To be called every few seconds (blocks for less than a millisecond)."""
        if self._process is not None and not self.has_ended:
            self._process.note_oom_kills()

    def measure(self) -> int:
        """Memory of its processes in bytes (blocks for some milliseconds)."""
        return self._process.memory_bytes() if self._process and not self.has_ended else 0

    async def _abandon(self) -> None:
        """Leave nothing of an engine that nobody looks after any more."""
        if self._process is not None:
            self._process.kill()
            await asyncio.shield(self._process.wait_ended())

    async def _spawn(self) -> None:
        launcher = await self._spawner.launcher(self.spec, self.environment, self._ending)
        if self._stop_reason is not None:
            self._ended_at = datetime.now(UTC)
            self._states.to(EngineState.STOPPING, self._stop_reason)
            self._states.to(EngineState.STOPPED, self._stop_reason)
            return
        try:
            self._process = await self._spawner.spawn(
                self.spec,
                self.environment,
                [share.device_id for share in self.placement.shares],
                launcher=launcher,
                log=self.log,
                on_lines=self._on_lines,
                on_update=self._note_progress,
                grace_s=self._limits.stop_s,
            )
        except OSError as error:
            self._fail(not_started(error, datetime.now(UTC), self._attempts, self.model))

    async def _live(self, process: EngineProcess, on_ready: Callable[[], None]) -> None:
        if self._stop_reason is not None:
            self._states.to(EngineState.STOPPING, self._stop_reason)
            process.terminate()
        else:
            self._states.to(EngineState.LOADING, "process started")
        ended = asyncio.create_task(process.wait())
        try:
            await self._become_ready(process, ended, on_ready)
            await self._until_end_begins(process, ended)
            if not ended.done():
                await process.wait_ended()
            await self._explain_end(await ended)
        finally:
            if not ended.done():
                ended.cancel()

    async def _until_end_begins(self, process: EngineProcess, ended: asyncio.Task[int]) -> None:
        """Until it ends, or is to end; what hangs is killed."""
        ending = asyncio.create_task(self._ending.wait())
        hang = asyncio.create_task(
            watch(
                self.connections,
                process.activity,
                frozen_s=self._limits.frozen_s,
                hang_s=self._limits.hang_s,
            )
        )
        try:
            await asyncio.wait({ended, ending, hang}, return_when=asyncio.FIRST_COMPLETED)
            if hang.done() and not ended.done():
                self._give_up(FailureCause.HUNG, hang.result())
        finally:
            ending.cancel()
            hang.cancel()

    def _give_up(self, cause: FailureCause, message: str, *, after_s: float = 0.0) -> None:
        """End it for a reason that we saw ourselves; the first one counts."""
        if self._stop_reason is not None or self._seen is not None:
            return
        self._seen = (cause, message)
        if after_s and self._process is not None:
            asyncio.get_running_loop().call_later(after_s, self._end_now)
        else:
            self._end_now()

    def _end_now(self) -> None:
        self._ending.set()
        if self._process is not None and not self.has_ended:
            self._process.kill()

    async def _become_ready(
        self, process: EngineProcess, ended: asyncio.Task[int], on_ready: Callable[[], None]
    ) -> None:
        looking = asyncio.create_task(self._look_while_loading(process))
        try:
            while not ended.done() and not self._ending.is_set():
                if self.spec.socket.exists() and await is_ready(self.connections, self.model):
                    await process.watch_workers(self._on_worker_death)
                    await self._spawner.note_shared_memory(self.id, process)
                    if not self._ending.is_set() and self._seen is None and not ended.done():
                        self._became_ready(on_ready)
                    return
                await asyncio.wait({ended}, timeout=_PROBE_EVERY_S)
                if looking.done() and not self._ending.is_set():
                    looking.result()
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    async def _look_while_loading(self, process: EngineProcess) -> None:
        """Progress, processes that die, and whether it still moves; beside the probes."""
        while self._loading.stalled_s(time.monotonic()) <= self._limits.stall_s:
            await asyncio.sleep(_LOOK_EVERY_S)
            await process.watch_workers(self._on_worker_death)
            await self._spawner.note_shared_memory(self.id, process)
            activity = await asyncio.to_thread(process.activity)
            now = time.monotonic()
            self._loading.note_read(activity.read_bytes, now)
            self._progress = self._loading.progress(now)
            self._changed()
        message = f"No progress for {self._limits.stall_s:.0f} s while loading."
        self._give_up(FailureCause.STALLED, message)

    def _became_ready(self, on_ready: Callable[[], None]) -> None:
        now = time.monotonic()
        self.phases = self._loading.finish(now)
        self.load_s = round((datetime.now(UTC) - self._created_at).total_seconds(), 3)
        self._ready_at = datetime.now(UTC)
        self._progress = None
        self.was_ready = True
        self._states.to(EngineState.READY, f"loaded in {self.load_s:.1f} s")
        on_ready()

    def _on_worker_death(self, name: str) -> None:
        if self._stop_reason is not None:
            # Without its core vLLM may wait for it until the grace period is over.
            asyncio.get_running_loop().call_later(_LEFT_BEHIND_S, self._end_now)
            return
        self._give_up(
            FailureCause.KILLED,
            f"Its process {name} ended unexpectedly.",
            after_s=0.0 if self.was_ready else _LAST_WORDS_S,
        )

    def _on_lines(self, first_line: int, lines: list[str]) -> None:
        self.log.deliver(first_line, lines)
        read = shortened(lines)
        self._last_words.add(read)
        self._note_progress(*read)

    def _note_progress(self, *lines: str) -> None:
        """Lines of the log, or the state of a progress bar whose line has not ended."""
        now = time.monotonic()
        is_loading = self.state is EngineState.LOADING
        if is_loading and self._loading.feed(shortened(list(lines)), now):
            self._progress = self._loading.progress(now)
            self._changed()

    async def _explain_end(self, status: int) -> None:
        self._ended_at = datetime.now(UTC)
        self._progress = None
        self.memory_bytes = 0
        if self._stop_reason is not None:
            self._states.to(EngineState.STOPPED, self._stop_reason)
            return
        failure = await self._last_words.explain(
            status,
            at=self._ended_at,
            line_count=self.log.line_count,
            seen=self._seen,
            oom_killed=self._process is not None and self._process.was_oom_killed,
        )
        self._fail(failure)

    def _fail(self, failure: Failure) -> None:
        failure = msgspec.structs.replace(failure, engine_id=self.id)
        self.failure = failure
        self._ended_at = failure.at
        logger.error(
            "engine.failed model=%s engine=%s cause=%s message=%s",
            self.model, self.id, failure.cause, failure.message,
        )  # fmt: skip
        self._states.to(EngineState.FAILED, failure.message)

    def _changed(self) -> None:
        self._publish(EngineChanged(engine=self.view()))
