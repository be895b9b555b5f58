"""How far a load is: phases from vLLM's log, percentage and ETA from earlier loads. Pure."""

import re
from statistics import median

from appliance.protocol.engines import LoadPhase, LoadProgress
from appliance.store.models import LoadRecord

_NUMBERS = re.compile(r"[\d.:%|#\s]+")
_KEPT_PATTERNS = 10_000
_SHARDS = re.compile(r"(\d+)% Completed \| (\d+)/(\d+)")
_GRAPHS = re.compile(r"Capturing CUDA graphs?.*?(\d+)%\|.*?(\d+)/(\d+)")

# Lines of vLLM 0.24 to 0.33 that begin a phase, in the order in which they come.
_MARKS: tuple[tuple[LoadPhase, tuple[str, ...]], ...] = (
    (LoadPhase.CONFIGURING, ("non-default args", "Resolved architecture", "Initializing a V1")),
    (LoadPhase.WEIGHTS, ("Starting to load model", "Loading safetensors checkpoint")),
    (
        LoadPhase.COMPILING,
        (
            "Dynamo bytecode transform",
            "Compiling a graph",
            "torch.compile takes",
            "Start compiling",
        ),
    ),
    (LoadPhase.KV_CACHE, ("KV cache size", "for KV cache", "Available KV cache memory")),
    (LoadPhase.GRAPHS, ("Capturing CUDA graph", "Graph capturing")),
    (LoadPhase.WARMING_UP, ("init engine (profile", "Supported tasks", "Starting vLLM server")),
)
_ORDER = list(LoadPhase)
# Shares of a load that nothing is known about, from small models on a CPU.
_USUAL_SHARES = {
    LoadPhase.IMPORTING: 0.35,
    LoadPhase.CONFIGURING: 0.40,
    LoadPhase.WEIGHTS: 0.15,
    LoadPhase.COMPILING: 0.0,
    LoadPhase.KV_CACHE: 0.03,
    LoadPhase.GRAPHS: 0.0,
    LoadPhase.WARMING_UP: 0.07,
}


class LoadTracker:
    """Follows one load. Times are seconds of a monotonic clock that the caller gives."""

    def __init__(self, started: float, earlier: list[LoadRecord]) -> None:
        self._started = started
        self._phase = LoadPhase.IMPORTING
        self._phase_started = started
        self._phase_ratio = 0.0
        self._shown_ratio = 0.0
        self._detail = ""
        self._read_before: int | None = None
        self._durations: dict[str, float] = {}
        self._loads = len(earlier)
        self._expected_s = median(load.load_s for load in earlier) if earlier else None
        self._shares = _shares(earlier)

    def feed(self, line: str, now: float) -> bool:
        """Take one log line; True if the progress changed."""
        shards = _SHARDS.search(line) or _GRAPHS.search(line)
        if shards is not None:
            phase = LoadPhase.GRAPHS if "graph" in line.lower() else LoadPhase.WEIGHTS
            if _ORDER.index(phase) >= _ORDER.index(self._phase):
                self._enter(phase, now)
                self._phase_ratio = int(shards[1]) / 100
                self._detail = f"{shards[2]}/{shards[3]}"
                return True
            return False
        for phase, marks in _MARKS:
            if any(mark in line for mark in marks):
                return self._enter(phase, now)
        return False

    def note_read(self, read_bytes: int, weights_bytes: int) -> None:
        """What its processes have read so far: tells how much of one large file is there."""
        if self._phase is not LoadPhase.WEIGHTS:
            self._read_before = None
            return
        if self._read_before is None:
            self._read_before = read_bytes
        if weights_bytes > 0:
            ratio = min((read_bytes - self._read_before) / weights_bytes, 1.0)
            self._phase_ratio = max(self._phase_ratio, ratio)

    def finish(self, now: float) -> dict[str, float]:
        """Seconds of each phase, for the next load's estimate."""
        self._close_phase(now)
        return dict(self._durations)

    def progress(self, now: float) -> LoadProgress:
        """Where the load is now."""
        elapsed = now - self._started
        ratio = self._ratio(now)
        eta = None
        if self._expected_s is not None:
            eta = max(self._expected_s * (1 - ratio), 0.0)
        return LoadProgress(
            phase=self._phase,
            ratio=round(ratio, 3),
            detail=self._detail,
            elapsed_s=round(elapsed, 1),
            eta_s=None if eta is None else round(eta, 1),
            eta_loads=self._loads,
        )

    def _enter(self, phase: LoadPhase, now: float) -> bool:
        if _ORDER.index(phase) <= _ORDER.index(self._phase):
            return False
        self._close_phase(now)
        self._phase = phase
        self._phase_started = now
        self._phase_ratio = 0.0
        self._detail = ""
        return True

    def _close_phase(self, now: float) -> None:
        before = self._durations.get(self._phase.value, 0.0)
        self._durations[self._phase.value] = before + now - self._phase_started

    def _ratio(self, now: float) -> float:
        """Shares of the phases that are over, and of this one by count or by time."""
        done = sum(self._shares[phase] for phase in _ORDER[: _ORDER.index(self._phase)])
        share = self._shares[self._phase]
        within = self._phase_ratio
        expected = (self._expected_s or 30.0) * share
        if not within and expected > 0:
            within = min((now - self._phase_started) / expected, 0.95)
        # A better guess may be lower; a person should not see a load go backwards.
        self._shown_ratio = max(self._shown_ratio, min(done + share * within, 0.99))
        return self._shown_ratio


class SignsOfLife:
    """When a load last did something new. A worker that hangs repeats what it said."""

    def __init__(self, now: float) -> None:
        self.last = now
        self._seen: set[str] = set()

    def note(self, line: str, now: float) -> None:
        """Take one log line; one that differs in numbers alone is nothing new."""
        pattern = _NUMBERS.sub("", line)
        if pattern not in self._seen:
            self.last = now
            if len(self._seen) < _KEPT_PATTERNS:
                self._seen.add(pattern)


def _shares(earlier: list[LoadRecord]) -> dict[LoadPhase, float]:
    if not earlier:
        return dict(_USUAL_SHARES)
    medians = {
        phase: median(load.phases.get(phase.value, 0.0) for load in earlier) for phase in _ORDER
    }
    total = sum(medians.values())
    if total <= 0:
        return dict(_USUAL_SHARES)
    return {phase: seconds / total for phase, seconds in medians.items()}
