"""What a load would do, in words."""

from collections.abc import Iterator

from appliance.cli.output import safe
from appliance.protocol.placement import Eviction, PlanVerdict
from appliance.units import format_duration, format_size

# A machine may have 64 devices, with as many models that stay on each.
_MOST_LINES = 12


def plan_lines(plan: PlanVerdict) -> list[str]:
    """Where it goes, who goes for it and how long that takes; or why not, and what would fit."""
    facts: list[tuple[str, str]] = []
    if plan.placement is not None:
        facts += [
            (
                "where" if not at else "",
                f"device {share.device_index}, {format_size(share.memory_bytes)}",
            )
            for at, share in enumerate(plan.placement.shares)
        ]
    facts += _titled("evicts", [_eviction(each) for each in plan.evictions])
    if plan.verdict not in {"loaded", "refuse"}:
        facts.append(("time", _time(plan)))
    facts += _titled("has", list(_have(plan)))
    facts += _titled("held by", list(_holders(plan)))
    ways = [f"{each.text}: {each.command}" for each in plan.suggestions]
    facts += _titled("would fit", ways)
    if plan.verdict == "refuse" and not ways and plan.hint:
        facts.append(("what to do", plan.hint))
    return [safe(plan.message), *(f"  {name:<12}{safe(text)}" for name, text in facts)]


def _titled(title: str, lines: list[str]) -> list[tuple[str, str]]:
    more = len(lines) - _MOST_LINES
    if more > 1:
        lines = [*lines[:_MOST_LINES], f"and {more} more"]
    return [(title if not at else "", line) for at, line in enumerate(lines)]


def _eviction(each: Eviction) -> str:
    text = f"{each.model}, {format_size(each.memory_bytes)}"
    if not each.reload_s:
        return text
    return (
        f"{text}; {format_duration(each.reload_s)} to load again, wanted again soon with"
        f" {each.reuse_ratio:.0%}: about {format_duration(each.cost_s)} of waiting"
    )


def _time(plan: PlanVerdict) -> str:
    if plan.load_s is None:
        return "not known: it was not loaded here before"
    of = f"{plan.loads} load{'s' if plan.loads != 1 else ''}"
    return f"about {format_duration(plan.load_s)} to load (median of {of} here)"


def _have(plan: PlanVerdict) -> Iterator[str]:
    for each in plan.have:
        text = f"device {each.device_index}: {format_size(each.free_bytes)} free"
        if each.most_bytes > each.free_bytes:
            text += f", {format_size(each.most_bytes)} once all are unloaded that may be"
        yield f"{text}, of {format_size(each.total_bytes)}"


def _holders(plan: PlanVerdict) -> Iterator[str]:
    for each in plan.holders:
        who = f"{each.model} ({each.reason})" if each.model is not None else each.reason
        yield f"{who}: {format_size(each.memory_bytes)} on device {each.device_index}"
