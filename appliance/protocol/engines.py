"""Engines: states, load progress, failures."""

from datetime import datetime
from enum import StrEnum

from appliance.protocol.base import Wire
from appliance.protocol.placement import Placement
from appliance.protocol.sleep import SleepLevel


class EngineState(StrEnum):
    """The states of an engine, the same words in API, logs, metrics and UI."""

    STOPPED = "stopped"
    QUEUED = "queued"
    FREEING = "freeing"
    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    ASLEEP = "asleep"
    WAKING = "waking"
    STOPPING = "stopping"
    FAILED = "failed"


class LoadPhase(StrEnum):
    """What an engine is busy with until it is ready."""

    IMPORTING = "importing"
    CONFIGURING = "configuring"
    WEIGHTS = "weights"
    COMPILING = "compiling"
    KV_CACHE = "kv cache"
    GRAPHS = "graphs"
    WARMING_UP = "warming up"


class FailureCause(StrEnum):
    """Why an engine did not start or stopped working; docs/failures.md explains each."""

    OUT_OF_MEMORY = "out_of_memory"
    KV_CACHE_TOO_SMALL = "kv_cache_too_small"
    OOM_KILLED = "oom_killed"
    """Killed by the kernel, because the machine or its cgroup ran out of memory."""
    DOES_NOT_FIT = "does_not_fit"
    """Refused by the planner: no engine was started."""
    BAD_ARGUMENT = "bad_argument"
    UNSUPPORTED_MODEL = "unsupported_model"
    MISSING_FILES = "missing_files"
    GATED_FILES = "gated_files"
    CORRUPT_FILES = "corrupt_files"
    DISK_FULL = "disk_full"
    DRIVER = "driver"
    """Driver, CUDA and libraries do not go together."""
    SOCKET = "socket"
    NO_ENVIRONMENT = "no_environment"
    STALLED = "stalled"
    """A load without progress."""
    HUNG = "hung"
    """Ready, but without progress while requests wait."""
    KILLED = "killed"
    """By somebody, not for want of memory."""
    CRASHED = "crashed"
    """Anything else: the cause is not known."""


class LoadProgress(Wire, frozen=True, kw_only=True):
    """How far a load is. `ratio` and `eta_s` come from earlier loads and are estimates."""

    phase: LoadPhase
    ratio: float | None = None
    detail: str = ""
    elapsed_s: float = 0.0
    eta_s: float | None = None
    eta_loads: int = 0
    """How many earlier loads the estimate is made of."""


class Failure(Wire, frozen=True, kw_only=True):
    """Why an engine failed, for a person."""

    cause: FailureCause
    message: str
    hint: str
    at: datetime
    attempts: int = 1
    retry_at: datetime | None = None
    """When it is tried again by itself; None: when someone acts."""
    log_line: int | None = None
    """Line of the engine's log that says it, counted from 1."""
    last_lines: list[str] = []
    """Of the log, around the cause: without the frames of tracebacks and progress bars."""
    engine_id: str | None = None
    """The engine that failed and whose log this is about; None: none was started."""


class Engine(Wire, frozen=True, kw_only=True):
    """One attempt to run a model: a process tree, its place, its log."""

    id: str
    model: str
    state: EngineState
    environment: str
    vllm_version: str
    pid: int | None = None
    placement: Placement | None = None
    progress: LoadProgress | None = None
    failure: Failure | None = None
    created_at: datetime
    ready_at: datetime | None = None
    ended_at: datetime | None = None
    load_s: float | None = None
    memory_bytes: int = 0
    """Measured; 0 before the first sample."""
    log_lines: int = 0
    was_forked: bool = False
    """From a warm launcher; else it was started in the plain way."""
    sleep_level: SleepLevel | None = None
    """While it is asleep."""


class LogWindow(Wire, frozen=True, kw_only=True):
    """Some lines of an engine's log. `first_line` counts from 1."""

    engine_id: str
    model: str
    first_line: int
    total_lines: int
    lines: list[str]
    skipped: int = 0
    """Lines missing before `first_line`: no longer kept, or the reader of a tail was too slow."""


class LogLevel(StrEnum):
    """The least level that a filter of a log lets pass."""

    WARNING = "warning"
    ERROR = "error"


class LogMatch(Wire, frozen=True, kw_only=True):
    """A line of an engine's log that a filter lets pass; `line` is its number."""

    line: int
    text: str


class LogMatches(Wire, frozen=True, kw_only=True):
    """The matches in some part of an engine's log, oldest first.

    All lines from `scanned_from` to before `scanned_to` were looked at. To go on, ask with
    `from=` the one, or `before=` the other.
    """

    engine_id: str
    model: str
    total_lines: int
    matches: list[LogMatch]
    scanned_from: int
    scanned_to: int
    is_complete: bool = False
    """Nothing is left to look at in the direction that was asked for."""
    skipped: int = 0
    """Lines of that part that are no longer kept, or matches that a slow reader has missed."""
