"""What would need less: the largest context that fits, and changes to settings. Pure."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from appliance.estimate.estimator import estimate, kv_budgets
from appliance.estimate.options import option, read_options
from appliance.estimate.weights import possible_tp_sizes
from appliance.protocol.devices import DeviceKind
from appliance.protocol.models import ModelSettings, Task
from appliance.registry.facts import ModelFacts

_LEAST_CONTEXT = 2048
# A context is offered in steps that people recognize.
_STEPS = tuple(2**power for power in range(20, 10, -1))
# Requests at once. Sampling for all of them takes as much memory as they are many.
_SEQUENCES = (64, 16, 4, 1)
_FP8_CACHE = "--kv-cache-dtype=fp8"
_IN_FLIGHT = {
    "fp8": "quantizing its weights to 8 bits while loading",
    "bitsandbytes": "quantizing its weights to 4 bits while loading",
}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A change to a model's settings that lessens what it needs."""

    kind: str
    """The setting, or the settings joined by `+`."""
    text: str
    """What it would be: `a context of 8192 tokens`."""
    command: str
    """What to type."""
    settings: ModelSettings
    context_length: int
    tp_size: int
    """As in the settings: how many devices need `need_bytes` each."""
    need_bytes: int
    """Per rank."""


@dataclass(frozen=True)
class _Step:
    """One change: its kind and words, options of `appliance set`, what it makes of the settings."""

    kind: str
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

    First one change, then several together, last one request at a time. `tp_sizes` may be asked
    for instead of all that the model allows on `devices` devices. Nothing for a model whose
    memory the owner has set. The caller looks which of them fit.
    """
    if settings.memory_bytes is not None:
        return []
    start = _Step("", "", "", settings, context_length)
    sizes = possible_tp_sizes(facts, devices) if tp_sizes is None else tp_sizes
    *fewer, single = _fewer(facts, start, kind) or [start]
    shorter = list(_contexts(start))
    deep = [*_caches(start, kind), *_splits(start, sizes), *_quantizations(facts, start, kind)]
    both = [_both(each, other) for each in fewer for other in shorter]
    lonely = [single, *(_both(single, other) for other in shorter)]
    steps = [*fewer, *shorter, *deep, *both]
    for most in ([*fewer, *shorter, *both], lonely):
        steps += [_both(each, other) for each in deep for other in most]
        steps += lonely if most is not lonely else []
    need = estimate(facts, settings, context_length, kind, device_bytes=device_bytes).total_bytes
    found = []
    for step in steps:
        wanted = estimate(facts, step.settings, step.context, kind, device_bytes=device_bytes)
        if wanted.total_bytes < need:
            found.append(
                Variant(
                    kind=step.kind,
                    text=step.words,
                    command=f"appliance set {shlex.quote(name)}{step.command}",
                    settings=step.settings,
                    context_length=step.context,
                    tp_size=step.settings.ranks,
                    need_bytes=wanted.total_bytes,
                )
            )
    return found


def _fewer(facts: ModelFacts, start: _Step, kind: DeviceKind) -> list[_Step]:
    """Fewer requests at once, one at last; an encoder does not sample."""
    if start.settings.task is Task.EMBED:
        return []
    most = read_options(facts, start.settings, kind).sequences
    steps = []
    for count in _SEQUENCES:
        settings = msgspec.structs.replace(start.settings, max_sequences=min(count, most))
        words = f"at most {count} requests at once" if count > 1 else "one request at a time"
        word = "sequences" if count > 1 else "single"
        steps.append(_Step(word, words, f" --max-sequences {count}", settings, start.context))
    return steps


def _contexts(start: _Step) -> Iterator[_Step]:
    """Shorter ones. An engine that embeds keeps nothing of it, a set budget does not follow it."""
    if start.settings.task is Task.EMBED or start.settings.kv_cache_bytes is not None:
        return
    for tokens in _STEPS:
        if _LEAST_CONTEXT <= tokens < start.context:
            settings = msgspec.structs.replace(start.settings, context_length=tokens)
            yield _Step(
                "context", f"a context of {tokens} tokens", f" --context {tokens}", settings, tokens
            )


def _caches(start: _Step, kind: DeviceKind) -> Iterator[_Step]:
    """An fp8 cache, on GPUs; the CPU has none."""
    arguments = start.settings.extra_args
    has_cache = start.settings.task is not Task.EMBED and start.settings.kv_cache_bytes is None
    if kind is DeviceKind.GPU and has_cache and option(arguments, "--kv-cache-dtype") is None:
        yield _with_argument(start, "kv_cache", _FP8_CACHE, "an 8-bit KV cache")


def _splits(start: _Step, sizes: Sequence[int]) -> Iterator[_Step]:
    for size in sizes:
        if size > start.settings.ranks:
            settings = msgspec.structs.replace(start.settings, tp_size=size)
            yield _Step(
                "tp", f"splitting it over {size} devices", f" --tp {size}", settings, start.context
            )


def _quantizations(facts: ModelFacts, start: _Step, kind: DeviceKind) -> Iterator[_Step]:
    arguments = start.settings.extra_args
    if kind is not DeviceKind.GPU or facts.quantization is not None:
        return
    if start.settings.task is Task.EMBED or option(arguments, "--quantization", "-q") is not None:
        return
    for method, words in _IN_FLIGHT.items():
        yield _with_argument(start, "quantization", f"--quantization={method}", words)


def _with_argument(start: _Step, kind: str, argument: str, words: str) -> _Step:
    """`appliance set --arg` replaces all arguments, so those that are there are repeated."""
    arguments = [*start.settings.extra_args, argument]
    command = "".join(f" --arg={shlex.quote(each)}" for each in arguments)
    settings = msgspec.structs.replace(start.settings, extra_args=arguments)
    return _Step(kind, words, command, settings, start.context)


def _both(first: _Step, second: _Step) -> _Step:
    """`second` is a step from the same start, to fewer requests or a shorter context."""
    settings = msgspec.structs.replace(
        first.settings,
        context_length=second.settings.context_length,
        max_sequences=second.settings.max_sequences
        if second.kind != "context"
        else first.settings.max_sequences,
    )
    words, command = f"{first.words} and {second.words}", first.command + second.command
    return _Step(f"{first.kind}+{second.kind}", words, command, settings, second.context)
