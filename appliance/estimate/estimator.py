"""How much memory an engine takes on each device it uses. Pure.

Weights as on disk, KV cache from the layers' dimensions, a fixed part for the runtime. Each part
errs on the large side.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import msgspec

from appliance.estimate.kv_cache import Split, dtype_bytes, kv_bytes, least_bytes
from appliance.protocol.devices import DeviceKind
from appliance.protocol.models import ModelSettings, Task
from appliance.registry.facts import KvLayout, ModelFacts
from appliance.units import GIB, MIB

# Private memory of a vLLM 0.32 CPU engine without weights and KV cache: API server and engine
# core about 0.9 GiB, worker about 0.2 GiB.
_CPU_RUNTIME_BYTES = int(1.15 * GIB)
# CUDA context, kernels, activations of one rank; refined by measurement.
_GPU_RUNTIME_BYTES = int(1.5 * GIB)
_SEQUENCES_TO_PLAN_FOR = 4
# vLLM's own limit on all but the largest GPUs (arg_utils.py: get_batch_defaults).
_DEFAULT_SEQUENCES = 256
_LEAST_KV_CACHE_BYTES = 64 * MIB
_MOST_DIGITS = 9


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Bytes per rank, by part."""

    weights_bytes: int
    kv_cache_bytes: int
    runtime_bytes: int

    @property
    def total_bytes(self) -> int:
        """All parts."""
        return self.weights_bytes + self.kv_cache_bytes + self.runtime_bytes


def kv_budget(
    facts: ModelFacts,
    settings: ModelSettings,
    context_length: int,
    kind: DeviceKind = DeviceKind.GPU,
) -> int:
    """KV cache bytes per rank to start the engine with; 0 for a model without one."""
    if settings.kv_cache_bytes is not None:
        return settings.kv_cache_bytes
    if settings.task is Task.EMBED:
        return 0
    arguments = settings.extra_args
    if _option(arguments, "--disable-hybrid-kv-cache-manager") is not None:
        facts = msgspec.structs.replace(facts, kv=_without_windows(facts.kv))
    split = Split(
        dtype=settings.dtype,
        kv_dtype=_option(arguments, "--kv-cache-dtype") or "auto",
        tp_size=settings.tp_size,
    )
    step_tokens = _option(arguments, "--max-num-batched-tokens") or ""
    if step_tokens.isdecimal() and len(step_tokens) <= _MOST_DIGITS:
        split = replace(split, step_tokens=int(step_tokens))
    at_once = settings.max_sequences or _DEFAULT_SEQUENCES
    sequences = min(at_once, _SEQUENCES_TO_PLAN_FOR)
    # Only engines on GPUs capture graphs, which is what needs it.
    least = least_bytes(facts, split, sequences=at_once) if kind is DeviceKind.GPU else 0
    needed = kv_bytes(facts, split, context=context_length, sequences=sequences)
    return max(needed, least, _LEAST_KV_CACHE_BYTES)


def _option(arguments: list[str], name: str) -> str | None:
    """The value of an engine's option in the model's settings; the last one counts."""
    found = None
    for argument, following in pairwise([*arguments, ""]):
        flag, equals, value = argument.partition("=")
        if flag.replace("_", "-") == name:
            found = value if equals else following
    return found


def _without_windows(layout: KvLayout) -> KvLayout:
    return msgspec.structs.replace(layout, window_layers=0, window=0)


def estimate(
    facts: ModelFacts, settings: ModelSettings, context_length: int, kind: DeviceKind
) -> Estimate:
    """Memory per rank. `memory_bytes` of the settings replaces the sum."""
    kv_cache = kv_budget(facts, settings, context_length, kind)
    weights = _weights(facts, settings, kind)
    runtime = _GPU_RUNTIME_BYTES if kind is DeviceKind.GPU else _CPU_RUNTIME_BYTES
    if settings.memory_bytes is not None:
        return _reserved(settings.memory_bytes, weights, kv_cache)
    return Estimate(weights_bytes=weights, kv_cache_bytes=kv_cache, runtime_bytes=runtime)


def _reserved(total: int, weights: int, kv_cache: int) -> Estimate:
    """The owner's figure is the sum; the KV budget stays, the other parts are cut."""
    weights = max(min(weights, total - kv_cache), 0)
    return Estimate(
        weights_bytes=weights,
        kv_cache_bytes=kv_cache,
        runtime_bytes=max(total - weights - kv_cache, 0),
    )


def _weights(facts: ModelFacts, settings: ModelSettings, kind: DeviceKind) -> int:
    weights = facts.weights_bytes
    wanted = dtype_bytes(settings.dtype)
    stored = dtype_bytes(facts.dtype)
    if wanted and stored:
        weights = weights * wanted // stored
    elif kind is not DeviceKind.GPU and facts.dtype == "float16":
        weights *= 2
    return weights // settings.tp_size
