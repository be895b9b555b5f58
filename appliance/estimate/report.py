"""All that can be said of a model's memory before it is loaded. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from appliance.errors import InvalidRequestError
from appliance.estimate.estimator import (
    SEQUENCES_TO_PLAN_FOR,
    Estimate,
    estimate,
    kv_budgets,
)
from appliance.estimate.kv_cache import Split, kv_bytes_per_token
from appliance.estimate.options import read_options
from appliance.estimate.variants import largest_context, variants
from appliance.estimate.weights import possible_tp_sizes, tp_problem
from appliance.protocol.devices import DeviceKind
from appliance.protocol.estimates import (
    DeviceFit,
    EstimateReport,
    EstimateRequest,
    MemoryParts,
    Remedy,
)
from appliance.protocol.models import ModelSettings
from appliance.registry.facts import ModelFacts
from appliance.units import format_size

_MOST_DEVICES = 8
_MOST_REMEDIES = 5


@dataclass(frozen=True, kw_only=True)
class Target:
    """A device that a model may be put on, or a size that somebody asks about."""

    name: str
    kind: DeviceKind
    total_bytes: int
    """What engines may take of it."""
    free_bytes: int
    id: str = ""
    index: int = -1


Correct = Callable[[ModelSettings, int, Estimate], Estimate]
"""Settings and context to the estimate as earlier loads have corrected it."""


def targets_of(request: EstimateRequest, targets: Sequence[Target]) -> list[Target]:
    """The devices that are asked about. Raises InvalidRequestError."""
    if request.device_bytes is not None:
        name = f"a GPU of {format_size(request.device_bytes)}"
        size = request.device_bytes
        return [Target(name=name, kind=DeviceKind.GPU, total_bytes=size, free_bytes=size)]
    if request.device is None:
        return list(targets)
    found = [each for each in targets if request.device in (each.id, str(each.index))]
    if not found:
        there = ", ".join(f"{each.index} ({each.id})" for each in targets)
        raise InvalidRequestError(
            f"There is no device {request.device}.",
            hint=f"This machine has: {there or 'none'}. A size, as 24GiB, asks about any GPU.",
            param="device",
        )
    return found


def changed(settings: ModelSettings, request: EstimateRequest) -> ModelSettings:
    """The settings that are asked about. Raises InvalidRequestError."""
    asked = {"context_length": request.context_length, "tp_size": request.tp_size}
    changes: dict[str, int | None] = {
        name: value for name, value in asked.items() if value is not None
    }
    for name, value in changes.items():
        if value is not None and value < 1:
            raise InvalidRequestError(
                f"{name} has to be at least 1, not {value}.",
                hint="Give it as a whole number.",
                param=name,
            )
    if changes:
        # What the owner has set was meant for other settings.
        changes |= dict.fromkeys(("memory_bytes", "kv_cache_bytes"))
    return msgspec.structs.replace(settings, **changes)


def report(
    name: str,
    facts: ModelFacts,
    settings: ModelSettings,
    targets: Sequence[Target],
    *,
    kind: DeviceKind,
    correct: Correct = lambda settings, context, wanted: wanted,
) -> EstimateReport:
    """For the context in the settings; without one, for all that the model allows.

    `kind` is that of the targets, or what to assume where there are none.
    """
    context = min(settings.context_length or facts.max_context, facts.max_context)
    kind = targets[0].kind if targets else kind
    device_bytes = min((each.total_bytes for each in targets), default=None)
    options = read_options(facts, settings, kind, device_bytes)
    budgets = kv_budgets(facts, settings, context, kind, device_bytes=device_bytes)
    wanted = estimate(facts, settings, context, kind, device_bytes=device_bytes)
    wanted = correct(settings, context, wanted)
    split = Split(dtype=options.dtype, kv_dtype=options.kv_dtype, tp_size=options.tp_size)
    devices = [_fit(each, facts, settings, context, correct) for each in targets]
    enough = 1 if _are_unlimited(targets) else settings.ranks
    fits = sum(each.fits for each in devices) >= enough
    return EstimateReport(
        model=name,
        architecture=facts.architecture,
        device_kind=kind,
        context_length=context,
        max_context=facts.max_context,
        tp_size=settings.ranks,
        rank=parts_of(wanted),
        kv_bytes_per_token=kv_bytes_per_token(facts, split) if budgets.recommended else 0,
        kv_requests=min(options.sequences, SEQUENCES_TO_PLAN_FOR) if budgets.recommended else 0,
        kv_smallest_bytes=budgets.smallest,
        kv_recommended_bytes=budgets.recommended,
        tp_sizes=possible_tp_sizes(facts, _MOST_DEVICES),
        problem=tp_problem(facts, settings.ranks),
        fits=fits if targets else None,
        devices=devices,
        remedies=[] if fits else _remedies(name, facts, settings, context, targets),
    )


def _are_unlimited(targets: Sequence[Target]) -> bool:
    """Whether it is a size that somebody asks about, of which there may be any number."""
    return bool(targets) and not targets[0].id


def parts_of(wanted: Estimate) -> MemoryParts:
    """The wire form."""
    return MemoryParts(
        total_bytes=wanted.total_bytes,
        weights_bytes=wanted.weights_bytes,
        kv_cache_bytes=wanted.kv_cache_bytes,
        activations_bytes=wanted.activations_bytes,
        graphs_bytes=wanted.graphs_bytes,
        context_bytes=wanted.context_bytes,
        basis=wanted.basis,
        margin_ratio=wanted.margin_ratio,
    )


def _fit(
    target: Target, facts: ModelFacts, settings: ModelSettings, context: int, correct: Correct
) -> DeviceFit:
    """What was measured of one context says whether that fits, whatever others are estimated at."""
    size = target.total_bytes
    wanted = estimate(facts, settings, context, target.kind, device_bytes=size)
    need = correct(settings, context, wanted).total_bytes
    several, single = (
        largest_context(facts, settings, size, kind=target.kind, sequences=sequences)
        for sequences in (None, 1)
    )
    if need <= size:
        several, single = max(several, context), max(single, context)
    return DeviceFit(
        device_id=target.id,
        device_index=target.index,
        name=target.name,
        total_bytes=size,
        free_bytes=target.free_bytes,
        fits=need <= size,
        fits_now=need <= target.free_bytes,
        largest_context=several,
        largest_context_single=single,
    )


def _remedies(
    name: str,
    facts: ModelFacts,
    settings: ModelSettings,
    context: int,
    targets: Sequence[Target],
) -> list[Remedy]:
    """Of each kind the first that fits, none that does more than another one that fits.

    One over several devices wants as many that are large enough.
    """
    if not targets:
        return []
    sizes = sorted((each.total_bytes for each in targets), reverse=True)
    devices = _MOST_DEVICES if _are_unlimited(targets) else len(targets)
    found: dict[str, Remedy] = {}
    for variant in variants(
        facts,
        msgspec.structs.replace(settings, context_length=context),
        context,
        name=name,
        kind=targets[0].kind,
        devices=devices,
        device_bytes=sizes[0],
    ):
        room = sizes[min(variant.tp_size, len(sizes)) - 1]
        parts = set(variant.kind.split("+"))
        is_more_than_needed = any(parts >= set(kind.split("+")) for kind in found)
        if variant.need_bytes <= room and not is_more_than_needed:
            found[variant.kind] = Remedy(
                text=variant.text,
                command=variant.command,
                context_length=variant.context_length,
                tp_size=variant.tp_size,
                need_bytes=variant.need_bytes,
            )
    return list(found.values())[:_MOST_REMEDIES]
