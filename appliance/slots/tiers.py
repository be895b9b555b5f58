"""Where an idle engine goes: asleep, with its weights in RAM or without, or unloaded. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from appliance.protocol.sleep import SleepLevel, SleepSetting, SleepVerdict


@dataclass(frozen=True, kw_only=True)
class Sleepy:
    """An engine that could sleep, or does. All sizes are bytes of all its ranks."""

    engine_id: str
    setting: SleepSetting
    verdicts: Mapping[SleepLevel, SleepVerdict]
    weights_bytes: int
    host_bytes: int
    """RAM that it holds already for sleeping: kept from its first sleep at level 1 on."""
    is_asleep: bool
    last_used: float


@dataclass(frozen=True)
class Sleep:
    """It sleeps at this level, once these sleeping engines have given their RAM back."""

    level: SleepLevel
    stops: tuple[str, ...] = ()


def choose_tier(
    engine: Sleepy, others: Sequence[Sleepy], host_limit_bytes: int, *, may_stop: bool
) -> Sleep | None:
    """How it sleeps; None: it is unloaded.

    Level 1 wakes fastest and needs RAM for its weights. Where that lacks, and `may_stop` says that
    there is time for it, other sleepers are unloaded for it that were used before it, the longest
    unused ones first. A level that was found not to work is never tried again by itself.
    """
    if engine.setting == "off":
        return None
    levels: list[SleepLevel] = [1, 2] if engine.setting == "auto" else [engine.setting]
    for level in levels:
        verdict = engine.verdicts.get(level)
        if verdict is not None and not verdict.works:
            continue
        stops = _stops(engine, others, host_limit_bytes) if level == 1 else ()
        if stops is not None and (may_stop or not stops):
            return Sleep(level, stops)
    return None


def _stops(
    engine: Sleepy, others: Sequence[Sleepy], host_limit_bytes: int
) -> tuple[str, ...] | None:
    """Whose RAM it needs; None: it would not be enough."""
    more = max(engine.weights_bytes - engine.host_bytes, 0)
    lacking = engine.host_bytes + more + sum(each.host_bytes for each in others) - host_limit_bytes
    stops: list[str] = []
    for each in sorted(others, key=lambda other: (other.last_used, other.engine_id)):
        if lacking <= 0:
            break
        if each.is_asleep and each.host_bytes and each.last_used <= engine.last_used:
            stops.append(each.engine_id)
            lacking -= each.host_bytes
    return tuple(stops) if lacking <= 0 else None
