"""A plan in words, and as it goes over the wire. Pure."""

from collections.abc import Sequence

from appliance.estimate.estimator import Estimate
from appliance.estimate.report import parts_of
from appliance.protocol.placement import (
    DeviceMemory,
    Eviction,
    MemoryHolder,
    Placement,
    PlanSuggestion,
    PlanVerdict,
)
from appliance.slots.plans import DeviceRoom, Evict, Place, Plan, Refuse, Resident, Wait
from appliance.slots.views import placement_of
from appliance.units import format_size


def verdict(
    decision: Plan | None,
    wanted: Estimate,
    *,
    model: str,
    placement: Placement | None,
    load_s: float | None,
    loads: int,
    is_asleep: bool = False,
) -> PlanVerdict:
    """What a load would do; `decision` is None for a model that is up already, or asleep.

    `wanted` is the estimate for as many devices as were decided on.
    """
    told = _told(decision, wanted, model)
    if is_asleep:
        told = "loaded", f"{model} is asleep."
    if placement is None and decision is not None and not isinstance(decision, Refuse):
        placement = placement_of(decision.devices, wanted)
    residents: Sequence[Resident] = ()
    if isinstance(decision, Evict):
        residents = decision.victims
    elif isinstance(decision, Wait):
        residents = decision.residents
    refusal = decision if isinstance(decision, Refuse) else Refuse("", "")
    return PlanVerdict(
        verdict=told[0],
        message=told[1],
        hint=refusal.hint,
        need_bytes=wanted.total_bytes,
        need=parts_of(wanted),
        placement=placement,
        evicts=sorted({resident.model for resident in residents}),
        evictions=[_eviction(resident) for resident in residents],
        have=[
            DeviceMemory(
                device_id=each.device.id,
                device_index=each.device.index,
                total_bytes=each.device.total_bytes,
                free_bytes=max(each.device.free_bytes, 0),
                most_bytes=max(each.most_bytes, 0),
            )
            for each in refusal.have
        ],
        holders=[
            MemoryHolder(
                device_index=each.device.index,
                model=each.model,
                memory_bytes=each.held_bytes,
                reason=each.reason,
            )
            for each in refusal.holders
        ],
        suggestions=[
            PlanSuggestion(kind=each.kind, text=each.text, command=each.command)
            for each in refusal.suggestions
        ],
        load_s=load_s,
        loads=loads,
    )


def _told(decision: Plan | None, wanted: Estimate, model: str) -> tuple[str, str]:
    match decision:
        case None:
            return "loaded", f"{model} is loaded already."
        case Place(devices):
            each = " on each" if len(devices) > 1 else ""
            need = f"{format_size(wanted.total_bytes)}{each}"
            return "place", f"{model} fits on {_on(devices)} as things are, with {need}."
        case Evict(victims, devices):
            names = ", ".join(sorted({victim.model for victim in victims}))
            return "evict", f"{names} would be unloaded from {_on(devices)}."
        case Wait(reason, _, devices):
            return "wait", f"{model} {reason}, then it goes to {_on(devices)}."
        case Refuse(message, _):
            return "refuse", message


def _eviction(resident: Resident) -> Eviction:
    chance = resident.cost_s / resident.reload_s if resident.reload_s > 0 else 0.0
    return Eviction(
        model=resident.model,
        memory_bytes=sum(resident.bytes_by_device.values()),
        reload_s=round(resident.reload_s, 1),
        reuse_ratio=round(min(chance, 1.0), 3),
        cost_s=round(resident.cost_s, 3),
    )


def _on(devices: Sequence[DeviceRoom]) -> str:
    word = "device" if len(devices) == 1 else "devices"
    return f"{word} {', '.join(str(device.index) for device in devices)}"
