"""What the planner is asked for a model: how to split it, where it may go, what could change."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from appliance.estimate.estimator import Estimate
from appliance.estimate.variants import Variant as EstimateVariant
from appliance.estimate.variants import variants
from appliance.estimate.weights import possible_tp_sizes
from appliance.protocol.devices import DeviceKind
from appliance.registry.registry import KnownModel
from appliance.slots.plans import DeviceRoom, Option, PlanRequest, Variant

EstimateOf = Callable[[KnownModel], Estimate]
"""Memory per rank of a model whose split is settled."""


def plan_request(
    known: KnownModel,
    rooms: Sequence[DeviceRoom],
    estimate_of: EstimateOf,
    variants: tuple[Variant, ...] = (),
) -> PlanRequest:
    """The model's settings as the planner reads them; its facts are known."""
    settings = known.settings
    request = PlanRequest(
        model=known.id,
        options=(),
        devices=frozenset(settings.devices),
        avoid=frozenset(settings.avoid_devices),
        is_exclusive=settings.exclusive,
        variants=variants,
    )
    options = tuple(
        Option(size, estimate_of(known.split_over(size)).total_bytes)
        for size in tp_sizes(known, sum(request.allows(room) for room in rooms))
    )
    return replace(request, options=options)


def tp_sizes(known: KnownModel, devices: int) -> list[int]:
    """In order of preference: one that the owner has set, else the fewest devices first."""
    if known.settings.tp_size != "auto":
        return [known.settings.tp_size]
    return [1] if known.facts is None else possible_tp_sizes(known.facts, devices)


def usual_tp_size(request: PlanRequest, rooms: Sequence[DeviceRoom]) -> int:
    """What the model gets on empty devices; the most that is possible if it fits on none."""
    sizes = sorted((room.total_bytes for room in rooms if request.allows(room)), reverse=True)
    for option in request.options:
        if option.tp_size <= len(sizes) and sizes[option.tp_size - 1] >= option.need_bytes:
            return option.tp_size
    return max((option.tp_size for option in request.options), default=1)


def changes(
    known: KnownModel, rooms: Sequence[DeviceRoom], kind: DeviceKind, device_bytes: int | None
) -> tuple[Variant, ...]:
    """Settings with which it needs less, best first of each kind. It takes milliseconds."""
    if known.facts is None:
        return ()
    found: dict[str, list[EstimateVariant]] = {}
    is_open = known.settings.tp_size == "auto"
    for size in tp_sizes(known, len(rooms)):
        for each in variants(
            known.facts,
            known.split_over(size).settings,
            known.context_length,
            name=known.id,
            kind=kind,
            devices=len(rooms),
            device_bytes=device_bytes,
            tp_sizes=() if is_open else None,
        ):
            found.setdefault(each.command, []).append(each)
    return tuple(_variant(ways) for ways in found.values())


def _variant(ways: Sequence[EstimateVariant]) -> Variant:
    first = ways[0]
    return Variant(
        kind=first.kind,
        text=first.text,
        command=first.command,
        options=tuple(Option(each.tp_size, each.need_bytes) for each in ways),
    )
