"""What would need less: the largest context that fits, and changes to settings. Pure."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from appliance.estimate.estimator import estimate, kv_budgets
from appliance.estimate.options import option
from appliance.estimate.weights import possible_tp_sizes
from appliance.protocol.devices import DeviceKind
from appliance.protocol.models import ModelSettings, Task
from appliance.registry.facts import ModelFacts

_LEAST_CONTEXT = 2048
# A context is offered in steps that people recognize.
_STEPS = tuple(2**power for power in range(20, 10, -1))
_FP8_CACHE = "--kv-cache-dtype=fp8"
_IN_FLIGHT = {
    "fp8": "quantizing its weights to 8 bits while loading",
    "bitsandbytes": "quantizing its weights to 4 bits while loading",
}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A change to a model's settings that lessens what it needs."""

    change: str
    """In words, with the command that does it."""
    settings: ModelSettings
    context_length: int
    tp_size: int
    """As in the settings: how many devices need `need_bytes` each."""
    need_bytes: int
    """Per rank."""


@dataclass(frozen=True)
class _Step:
    """One change: its words, the options of `appliance set`, what it makes of the settings."""

    words: str
    command: str
    settings: ModelSettings
    context: int


def largest_context(
    facts: ModelFacts,
    settings: ModelSettings,
    device_bytes: int,
    *,
    kind: DeviceKind = DeviceKind.GPU,
    sequences: int | None = None,
) -> int:
    """Tokens up to which the model fits a device with so many free bytes per rank; 0: none do.

    `sequences` of the whole context at once; None: as many as are planned for. A KV budget that
    the settings name has to hold at least one request.
    """

    def fits(context: int) -> bool:
        wanted = estimate(facts, settings, context, kind, device_bytes=device_bytes)
        budgets = kv_budgets(facts, settings, context, kind, device_bytes=device_bytes)
        total = wanted.total_bytes
        if settings.kv_cache_bytes is not None:
            return total <= device_bytes and budgets.smallest <= settings.kv_cache_bytes
        if sequences is not None:
            budgets = kv_budgets(
                facts, settings, context, kind, device_bytes=device_bytes, sequences=sequences
            )
            total += budgets.recommended - wanted.kv_cache_bytes
        return total <= device_bytes

    most = facts.max_context
    if fits(most):
        return most
    least, most = 0, most
    while most - least > 1:
        middle = (least + most) // 2
        if fits(middle):
            least = middle
        else:
            most = middle
    return least


def variants(
    facts: ModelFacts,
    settings: ModelSettings,
    context_length: int,
    *,
    name: str,
    kind: DeviceKind,
    devices: int = 1,
    device_bytes: int | None = None,
    tp_sizes: Sequence[int] | None = None,
) -> list[Variant]:
    """Changes in the order in which an owner would like them, each of which needs less per rank.

    First one change, then two together. `tp_sizes` may be asked for instead of all that the model
    allows on `devices` devices. Nothing for a model whose memory the owner has set. The caller
    looks which of them fit.
    """
    if settings.memory_bytes is not None:
        return []
    start = _Step("", "", settings, context_length)
    sizes = possible_tp_sizes(facts, devices) if tp_sizes is None else tp_sizes
    kinds = [
        list(_contexts(facts, start, sizes)),
        list(_caches(facts, start, kind)),
        list(_splits(start, sizes)),
        list(_quantizations(facts, start, kind)),
    ]
    single = [step for steps in kinds for step in steps]
    shorter = [step for step in kinds[0] if step.settings.tp_size == settings.tp_size]
    double = [_both(other, each) for other in (*kinds[1], *kinds[2], *kinds[3]) for each in shorter]
    need = estimate(facts, settings, context_length, kind, device_bytes=device_bytes).total_bytes
    found = []
    for step in (*single, *double):
        wanted = estimate(facts, step.settings, step.context, kind, device_bytes=device_bytes)
        if wanted.total_bytes < need:
            command = f"`appliance set {shlex.quote(name)}{step.command}`"
            found.append(
                Variant(
                    change=f"{step.words} ({command})",
                    settings=step.settings,
                    context_length=step.context,
                    tp_size=step.settings.tp_size,
                    need_bytes=wanted.total_bytes,
                )
            )
    return found


def _contexts(facts: ModelFacts, start: _Step, sizes: Sequence[int]) -> Iterator[_Step]:
    """Shorter ones. An engine that embeds keeps nothing of it, a set budget does not follow it."""
    if start.settings.task is Task.EMBED or start.settings.kv_cache_bytes is not None:
        return
    for tokens in _STEPS:
        if _LEAST_CONTEXT <= tokens < start.context:
            settings = msgspec.structs.replace(start.settings, context_length=tokens)
            yield _Step(f"a context of {tokens} tokens", f" --context {tokens}", settings, tokens)


def _caches(facts: ModelFacts, start: _Step, kind: DeviceKind) -> Iterator[_Step]:
    """An fp8 cache, on GPUs; the CPU has none."""
    arguments = start.settings.extra_args
    has_cache = start.settings.task is not Task.EMBED and start.settings.kv_cache_bytes is None
    if kind is DeviceKind.GPU and has_cache and option(arguments, "--kv-cache-dtype") is None:
        yield _with_argument(start, _FP8_CACHE, "an 8-bit KV cache")


def _splits(start: _Step, sizes: Sequence[int]) -> Iterator[_Step]:
    for size in sizes:
        if size > start.settings.tp_size:
            settings = msgspec.structs.replace(start.settings, tp_size=size)
            yield _Step(
                f"splitting it over {size} devices", f" --tp {size}", settings, start.context
            )


def _quantizations(facts: ModelFacts, start: _Step, kind: DeviceKind) -> Iterator[_Step]:
    arguments = start.settings.extra_args
    if kind is not DeviceKind.GPU or facts.quantization is not None:
        return
    if start.settings.task is Task.EMBED or option(arguments, "--quantization", "-q") is not None:
        return
    for method, words in _IN_FLIGHT.items():
        yield _with_argument(start, f"--quantization={method}", words)


def _with_argument(start: _Step, argument: str, words: str) -> _Step:
    """`appliance set --arg` replaces all arguments, so those that are there are repeated."""
    arguments = [*start.settings.extra_args, argument]
    command = "".join(f" --arg={shlex.quote(each)}" for each in arguments)
    settings = msgspec.structs.replace(start.settings, extra_args=arguments)
    return _Step(words, command, settings, start.context)


def _both(first: _Step, second: _Step) -> _Step:
    """`second` changes the context only."""
    settings = msgspec.structs.replace(first.settings, context_length=second.context)
    words, command = f"{first.words} and {second.words}", first.command + second.command
    return _Step(words, command, settings, second.context)
