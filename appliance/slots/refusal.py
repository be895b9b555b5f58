"""Why a model cannot be placed, who holds what it lacks, and what would make it fit. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from heapq import nsmallest
from itertools import chain

from appliance.slots.occupancy import DeviceState, Occupancy, Tie
from appliance.slots.plans import (
    Have,
    Holder,
    Option,
    PlanRequest,
    Refuse,
    Resident,
    Suggestion,
)
from appliance.units import MIB, format_size

_PINNED = int(Tie.PINNED)
# More devices than these are counted, not listed, in words for people.
_MOST_LISTED = 8
# Less is what drivers and rounding take.
_LEAST_FOREIGN_BYTES = 16 * MIB


def refuse(occupancy: Occupancy, request: PlanRequest, *, in_the_way: Sequence[Resident]) -> Refuse:
    """The refusal; `in_the_way` are the pinned engines without which it would fit."""
    allowed = [state for state in occupancy.states if request.allows(state.room)]
    have = tuple(Have(device=each.room, most_bytes=each.free_bytes[Tie.BUSY]) for each in allowed)
    suggestions = tuple(_suggestions(occupancy, request, in_the_way))
    message = _message(request, allowed, have)
    hint = _hint(occupancy, request, suggestions)
    return Refuse(message, hint, have, Holders(allowed), suggestions)


class Holders:
    """Who holds memory that stays; worked out when it is read, as no message needs all of it."""

    def __init__(self, states: Sequence[DeviceState]) -> None:
        self._states = states

    def __iter__(self) -> Iterator[Holder]:
        return iter(self._found)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Holders) and self._found == other._found

    __hash__ = None  # type: ignore[assignment]

    @cached_property
    def _found(self) -> list[Holder]:
        return list(chain.from_iterable(_holders(state) for state in self._states))


def _holders(state: DeviceState) -> list[Holder]:
    """Those on a device who stay, largest first."""
    device = state.room
    staying = state.residents[_PINNED]
    ordered = sorted(
        (-each.bytes_by_device[device.id], each.model, at) for at, each in enumerate(staying)
    )
    holders = [Holder(device, model, -size, _reason(staying[at])) for size, model, at in ordered]
    if foreign := _foreign_bytes(state):
        holders.append(Holder(device, None, foreign, "other processes"))
    return holders


def _foreign_bytes(state: DeviceState) -> int:
    """What processes hold that are not ours, as far as it counts."""
    foreign = state.room.total_bytes - state.room.free_bytes - sum(state.held_bytes)
    return foreign if foreign >= _LEAST_FOREIGN_BYTES else 0


def _reason(resident: Resident) -> str:
    reason = "always on" if resident.is_always_on else "pinned"
    return f"{reason}, exclusive" if resident.is_exclusive else reason


def _suggestions(
    occupancy: Occupancy, request: PlanRequest, in_the_way: Sequence[Resident]
) -> Iterator[Suggestion]:
    """Only what was tried and fits; of each kind the first, and none that changes more."""
    found: list[set[str]] = []
    for variant in request.variants:
        parts = set(variant.kind.split("+"))
        if any(parts >= less for less in found):
            continue
        changed = replace(request, options=variant.options)
        if occupancy.fits(changed):
            found.append(parts)
            yield Suggestion(
                kind=variant.kind, text=variant.text, command=variant.command, request=changed
            )
    yield from _with_other_devices(occupancy, request)
    if in_the_way:
        names = sorted({each.model for each in in_the_way})
        yield Suggestion(
            kind="stop",
            text=f"unloading {', '.join(names)}",
            command=" && ".join(f"appliance stop {name}" for name in names),
            request=request,
            gone=frozenset(each.engine_id for each in in_the_way),
        )


def _with_other_devices(occupancy: Occupancy, request: PlanRequest) -> Iterator[Suggestion]:
    """Restrictions that its owner made; two of them only where one does not do."""
    every = frozenset[str]()
    set_model = f"appliance set {request.model}"
    anywhere = replace(request, devices=every)
    unavoided = replace(request, avoid=every)
    shared = replace(request, is_exclusive=False)
    found = False
    for kind, text, flags, changed in (
        ("devices", "using other devices", "--device any", anywhere),
        ("avoid", "using the devices that it avoids", "--avoid none", unavoided),
        ("exclusive", "sharing its devices", "--no-exclusive", shared),
    ):
        if changed != request and occupancy.fits(changed):
            found = True
            yield Suggestion(kind=kind, text=text, command=f"{set_model} {flags}", request=changed)
    free = replace(request, devices=every, avoid=every)
    if not found and request.devices and request.avoid and occupancy.fits(free):
        yield Suggestion(
            kind="devices",
            text="using any device",
            command=f"{set_model} --device any --avoid none",
            request=free,
        )


def _message(request: PlanRequest, states: Sequence[DeviceState], have: Sequence[Have]) -> str:
    model = request.model
    if not have:
        wanted = f"the devices {', '.join(sorted(request.devices))}" if request.devices else "any"
        but = f" but {', '.join(sorted(request.avoid))}" if request.avoid else ""
        return f"{model} may use {wanted}{but}, and none of them can be used."
    fewest = min((option.tp_size for option in request.options), default=1)
    if len(have) < fewest:
        return f"{model} is to be split over {fewest} devices; {len(have)} can be used."
    parts = _have_texts(have)
    alone = " It shares its devices with nobody." if request.is_exclusive else ""
    return f"{model} needs {_need_text(request.options)}; {', '.join(parts)}.{alone}" + _held_text(
        states
    )


def _need_text(options: Sequence[Option]) -> str:
    ways = [
        format_size(option.need_bytes)
        + (f" on each of {option.tp_size} devices" if option.tp_size > 1 else "")
        for option in options
    ]
    return " or ".join(ways)


def _have_texts(have: Sequence[Have]) -> list[str]:
    """Devices that have the same together; no more than people read."""
    known: dict[tuple[int, int, int], str] = {}
    alike: dict[str, list[int]] = {}
    for each in have:
        sizes = (max(each.device.free_bytes, 0), each.device.total_bytes, each.most_bytes)
        text = known.get(sizes)
        if text is None:
            text = known[sizes] = _have_text(*sizes)
        alike.setdefault(text, []).append(each.device.index)
    texts = [f"{_devices(indices)}: {text}" for text, indices in alike.items()]
    shown = list(alike.values())[:_MOST_LISTED]
    more = len(have) - sum(len(indices) for indices in shown)
    return [*texts[:_MOST_LISTED], f"and {more} more"] if more else texts


def _have_text(free_bytes: int, total_bytes: int, most_bytes: int) -> str:
    text = f"{format_size(free_bytes)} free of {format_size(total_bytes)}"
    if most_bytes > free_bytes:
        text += f" ({format_size(most_bytes)} once others are unloaded)"
    return text


def _devices(indices: Sequence[int]) -> str:
    if len(indices) == 1:
        return f"device {indices[0]}"
    if len(indices) > 2 and indices[-1] - indices[0] == len(indices) - 1:
        return f"devices {indices[0]} to {indices[-1]}"
    return f"devices {', '.join(str(index) for index in indices)}"


def _held_text(states: Sequence[DeviceState]) -> str:
    kept = {each.model for state in states for each in state.residents[_PINNED]}
    foreign = sum(_foreign_bytes(state) for state in states)
    text = ""
    if kept:
        text += (
            f" Held by models that are never evicted: {', '.join(nsmallest(_MOST_LISTED, kept))}"
        )
        more = len(kept) - _MOST_LISTED
        text += f" and {more} more." if more > 0 else "."
    if foreign:
        text += f" Other processes hold {format_size(foreign)}."
    return text


def _hint(occupancy: Occupancy, request: PlanRequest, suggestions: Sequence[Suggestion]) -> str:
    text = ""
    if not any(request.allows(state.room) for state in occupancy.states):
        there = ", ".join(f"{each.room.index} ({each.room.id})" for each in occupancy.states)
        text = f"This machine has: {there}. "
    if suggestions:
        ways = [f"{each.text} (`{each.command}`)" for each in suggestions]
        return f"{text}What would make it fit: {'; '.join(ways)}."
    return text.strip() or (
        "Nothing that was tried makes it fit: a smaller model would, or one with fewer bits for"
        " each weight."
    )
