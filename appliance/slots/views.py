"""Models and placements as others see them. Pure but for the clock that the caller gives."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import msgspec

from appliance.estimate.estimator import Estimate
from appliance.estimate.report import parts_of
from appliance.protocol.engines import EngineState, Failure
from appliance.protocol.models import Model, ModelSettings
from appliance.protocol.placement import Placement, Share
from appliance.protocol.sleep import SleepVerdict
from appliance.registry.registry import KnownModel
from appliance.slots.plans import DeviceRoom
from appliance.slots.slot import Running, Slot

_SECRET_WORDS = ("TOKEN", "KEY", "SECRET", "PASSWORD", "CREDENTIAL")
_LONGEST_IDLE_S = 10 * 365 * 86400.0


def model_state(slot: Slot) -> EngineState:
    """One word for a model: its engine's state, or what it waits for."""
    if slot.running is not None:
        return slot.running.supervisor.state
    if slot.oldest_wish() is not None:
        return EngineState.FREEING if slot.swap_evicted else EngineState.QUEUED
    if slot.failure is not None:
        return EngineState.FAILED
    return EngineState.STOPPED


def model_view(
    known: KnownModel,
    slot: Slot,
    *,
    wanted: Estimate,
    idle_timeout_s: float,
    sleep: list[SleepVerdict],
    now: float,
) -> Model:
    """A model at the monotonic time `now`; `idle_timeout_s` is the one that counts for it."""
    running = slot.running
    supervisor = running.supervisor if running else slot.last
    engine = supervisor.view() if supervisor else None
    is_up = running is not None
    return Model(
        id=known.id,
        settings=without_secrets(known.settings),
        state=model_state(slot),
        architecture=known.facts.architecture if known.facts else "unknown",
        context_length=known.context_length,
        weights_bytes=known.facts.weights_bytes if known.facts else 0,
        need_bytes=wanted.total_bytes,
        need=parts_of(wanted),
        created_at=known.created_at,
        engine_id=engine.id if engine else None,
        placement=engine.placement if engine and is_up else None,
        progress=engine.progress if engine and is_up else None,
        # Of an engine that has failed and whose memory is not back yet, it says why already.
        failure=(supervisor.failure if is_up and supervisor else None) or slot.failure,
        first_failure=_first_failure(slot, now),
        waiting=sum(not waiter.granted.done() for waiter in slot.waiters),
        waits_for=slot.waits_for if running is None or running.is_asleep else None,
        in_flight=running.in_flight if running else 0,
        memory_bytes=engine.memory_bytes if engine and is_up else 0,
        last_used_at=slot.last_used_at,
        idle_unload_at=_idle_unload_at(running, idle_timeout_s, now),
        tokens_per_s=running.tokens_per_s if running else None,
        ttft_p95_s=percentile(sorted(slot.first_token_s), 0.95),
        requests_total=slot.requests_total,
        sleep=sleep,
        sleep_level=engine.sleep_level if engine and is_up else None,
    )


def _first_failure(slot: Slot, now: float) -> Failure | None:
    first, newest = slot.first_failure, slot.failure
    if first is None or slot.is_series_over(now):
        return None
    is_newest = newest is not None and (newest.at, newest.engine_id) == (first.at, first.engine_id)
    return None if is_newest else first


def without_secrets(settings: ModelSettings) -> ModelSettings:
    """Settings as they may be shown: values of variables that sound secret are left out."""
    if not settings.env:
        return settings
    shown = {
        name: "(hidden)" if any(word in name.upper() for word in _SECRET_WORDS) else value
        for name, value in settings.env.items()
    }
    return msgspec.structs.replace(settings, env=shown)


def percentile(ordered: list[float], share: float) -> float | None:
    """Nearest rank of ascending values."""
    if not ordered:
        return None
    return round(ordered[max(math.ceil(len(ordered) * share), 1) - 1], 3)


def _idle_unload_at(running: Running | None, idle_timeout_s: float, now: float) -> datetime | None:
    if running is None or idle_timeout_s < 0 or running.in_flight or not running.takes_requests:
        return None
    left = running.last_used + min(idle_timeout_s, _LONGEST_IDLE_S) - now
    return datetime.now(UTC) + timedelta(seconds=max(left, 0.0))


def at_most(timeout_s: float, limit_s: float) -> float:
    """The shorter of two idle timeouts; a negative one has no end."""
    if limit_s < 0:
        return timeout_s
    return limit_s if timeout_s < 0 else min(timeout_s, limit_s)


def placement_of(rooms: Sequence[DeviceRoom], wanted: Estimate) -> Placement:
    """The wire form of a decision."""
    return Placement(
        shares=[
            Share(device_id=room.id, device_index=room.index, memory_bytes=wanted.total_bytes)
            for room in rooms
        ],
        tp_size=len(rooms),
    )
