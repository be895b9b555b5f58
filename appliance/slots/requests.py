"""What the planner is asked for a model: how to split it, where it may go, what could change."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property

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
    variants: Iterable[Variant] = (),
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


class Changes:
    """Settings with which a model needs less, the best first; worked out when they are read.

    That takes up to a tenth of a second, and only refusals tell about them.
    """

    def __init__(
        self, known: KnownModel, devices: int, kind: DeviceKind, device_bytes: int | None
    ) -> None:
        self.known = known
        self._where = (devices, kind, device_bytes)

    def is_for(
        self, known: KnownModel, devices: int, kind: DeviceKind, device_bytes: int | None
    ) -> bool:
        """Whether it still holds."""
        return self.known is known and self._where == (devices, kind, device_bytes)

    def __iter__(self) -> Iterator[Variant]:
        return iter(self._found)

    @cached_property
    def _found(self) -> list[Variant]:
        facts = self.known.facts
        if facts is None:
            return []
        devices, kind, device_bytes = self._where
        is_open = self.known.settings.tp_size == "auto"
        found: dict[str, list[EstimateVariant]] = {}
        for size in tp_sizes(self.known, devices):
            for each in variants(
                facts,
                self.known.split_over(size).settings,
                self.known.context_length,
                name=self.known.id,
                kind=kind,
                devices=devices,
                device_bytes=device_bytes,
                tp_sizes=() if is_open else None,
            ):
                found.setdefault(each.command, []).append(each)
        return [_variant(ways) for ways in found.values()]


def _variant(ways: Sequence[EstimateVariant]) -> Variant:
    first = ways[0]
    return Variant(
        kind=first.kind,
        text=first.text,
        command=first.command,
        options=tuple(Option(each.tp_size, each.need_bytes) for each in ways),
    )
