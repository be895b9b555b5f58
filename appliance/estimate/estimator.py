"""How much memory an engine takes on each device it uses. Pure.

First form: weights as on disk, KV cache from the attention dimensions, a fixed part for the
runtime. Each part errs on the large side.
"""

from dataclasses import dataclass

from appliance.protocol.devices import DeviceKind
from appliance.protocol.models import ModelSettings, Task
from appliance.registry.facts import ModelFacts
from appliance.units import GIB, MIB

# Private memory of a vLLM 0.32 CPU engine without weights and KV cache: API server and engine
# core about 0.9 GiB, worker about 0.2 GiB.
_CPU_RUNTIME_BYTES = int(1.15 * GIB)
# CUDA context, kernels, activations of one rank; refined by measurement.
_GPU_RUNTIME_BYTES = int(1.5 * GIB)
_SEQUENCES_TO_PLAN_FOR = 4
_DTYPE_BYTES = {"float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2}


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


def kv_bytes_per_token(facts: ModelFacts, dtype: str) -> int:
    """Keys and values of all layers for one token, all ranks together.

    2 (key and value) x layers x KV heads x head size x bytes of an element: "Efficient Memory
    Management for Large Language Model Serving with PagedAttention" (Kwon et al., 2023),
    section 3, with grouped-query attention's fewer KV heads.
    """
    element = _DTYPE_BYTES.get(facts.dtype if dtype == "auto" else dtype, 2)
    return 2 * facts.layers * facts.kv_heads * facts.head_size * element


def kv_budget(facts: ModelFacts, settings: ModelSettings, context_length: int) -> int:
    """KV cache bytes per rank to start the engine with; 0 for a model without one."""
    if settings.kv_cache_bytes is not None:
        return settings.kv_cache_bytes
    if settings.task is Task.EMBED:
        return 0
    # A rank holds at least one KV head: with more ranks than heads they are copied.
    heads_per_rank = max(facts.kv_heads // settings.tp_size, 1)
    per_token = kv_bytes_per_token(facts, settings.dtype) * heads_per_rank // facts.kv_heads
    sequences = min(settings.max_sequences or _SEQUENCES_TO_PLAN_FOR, _SEQUENCES_TO_PLAN_FOR)
    # A few blocks more than the sequences need: vLLM keeps one for itself.
    return max(per_token * (context_length * sequences + 256), 64 * MIB)


def estimate(
    facts: ModelFacts, settings: ModelSettings, context_length: int, kind: DeviceKind
) -> Estimate:
    """Memory per rank. `memory_bytes` of the settings replaces the sum."""
    kv_cache = kv_budget(facts, settings, context_length)
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
    wanted = _DTYPE_BYTES.get(settings.dtype)
    stored = _DTYPE_BYTES.get(facts.dtype)
    if wanted and stored:
        weights = weights * wanted // stored
    elif kind is not DeviceKind.GPU and facts.dtype == "float16":
        weights *= 2
    return weights // settings.tp_size
