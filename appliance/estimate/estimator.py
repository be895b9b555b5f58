"""How much memory an engine takes on each device it uses. Pure.

Weights by rank, KV cache from the layers' dimensions, activations, CUDA graphs and the context.
Each part errs on the large side.
"""

from dataclasses import dataclass

import msgspec

from appliance.estimate.kv_cache import Split, kv_bytes, least_bytes
from appliance.estimate.options import EngineOptions, read_options
from appliance.estimate.runtime import activation_bytes, context_bytes, graph_bytes
from appliance.estimate.weights import weight_bytes
from appliance.protocol.devices import DeviceKind
from appliance.protocol.estimates import Basis
from appliance.protocol.models import ModelSettings, Task
from appliance.registry.facts import ModelFacts
from appliance.units import MIB

SEQUENCES_TO_PLAN_FOR = 4
_LEAST_KV_CACHE_BYTES = 64 * MIB
# What an estimate may be off by: weights are counted, the rest is fitted to logs. The KV cache
# is given to the engine in bytes, so it is exact.
_WEIGHTS_MARGIN = 0.02
_RUNTIME_MARGIN = 0.5


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Bytes per rank, by part."""

    weights_bytes: int = 0
    kv_cache_bytes: int = 0
    activations_bytes: int = 0
    graphs_bytes: int = 0
    context_bytes: int = 0
    """CUDA context and libraries; on the CPU all of the engine's processes."""
    basis: Basis = Basis.ESTIMATED
    margin_ratio: float = 0.0
    """How far the sum may be off, as a share of it."""
    sequences: int | None = None
    """That it was worked out for; None: left to the engine."""
    step_tokens: int | None = None
    """The same for the tokens of one step."""

    @property
    def runtime_bytes(self) -> int:
        """Neither weights nor KV cache."""
        return self.activations_bytes + self.graphs_bytes + self.context_bytes

    @property
    def total_bytes(self) -> int:
        """All parts."""
        return self.weights_bytes + self.kv_cache_bytes + self.runtime_bytes


@dataclass(frozen=True, kw_only=True)
class KvBudgets:
    """KV cache bytes per rank; all 0 for a model without one."""

    smallest: int
    """One request of the whole context: vLLM does not start with less."""
    recommended: int
    """As many requests at once as are planned for."""


def kv_budgets(
    facts: ModelFacts,
    settings: ModelSettings,
    context_length: int,
    kind: DeviceKind = DeviceKind.GPU,
    *,
    sequences: int = SEQUENCES_TO_PLAN_FOR,
    device_bytes: int | None = None,
) -> KvBudgets:
    """For requests of the whole context, `sequences` of them at once."""
    if settings.task is Task.EMBED:
        return KvBudgets(smallest=0, recommended=0)
    options = read_options(facts, settings, kind, device_bytes)
    return _budgets(facts, options, context_length, kind, sequences)


def _budgets(
    facts: ModelFacts, options: EngineOptions, context: int, kind: DeviceKind, sequences: int
) -> KvBudgets:
    if not options.has_windows:
        layout = msgspec.structs.replace(facts.kv, window_layers=0, window=0)
        facts = msgspec.structs.replace(facts, kv=layout)
    split = Split(
        dtype=options.dtype,
        kv_dtype=options.kv_dtype,
        tp_size=options.tp_size,
        step_tokens=options.step_tokens,
    )
    # Only engines on GPUs capture graphs, which is what needs it.
    least = 0
    if kind is DeviceKind.GPU:
        least = least_bytes(facts, split, sequences=options.sequences)
    stage = -(-facts.layers // options.pp_size) / max(facts.layers, 1)

    def budget(at_once: int) -> int:
        needed = kv_bytes(facts, split, context=context, sequences=at_once)
        return max(int(max(needed, least) * stage), _LEAST_KV_CACHE_BYTES)

    return KvBudgets(smallest=budget(1), recommended=budget(min(options.sequences, sequences)))


def kv_budget(
    facts: ModelFacts,
    settings: ModelSettings,
    context_length: int,
    kind: DeviceKind = DeviceKind.GPU,
    *,
    device_bytes: int | None = None,
) -> int:
    """KV cache bytes per rank to start the engine with; 0 for a model without one."""
    if settings.kv_cache_bytes is not None:
        return settings.kv_cache_bytes
    budgets = kv_budgets(facts, settings, context_length, kind, device_bytes=device_bytes)
    return budgets.recommended


def estimate(
    facts: ModelFacts,
    settings: ModelSettings,
    context_length: int,
    kind: DeviceKind,
    *,
    device_bytes: int | None = None,
) -> Estimate:
    """Memory per rank. `memory_bytes` of the settings replaces the sum.

    `device_bytes` is the size of the smallest device that may be used: vLLM works on more at once
    on large ones. Without it the KV cache is planned for the largest.
    """
    options = read_options(facts, settings, kind, device_bytes)
    weights = weight_bytes(facts, options, kind)
    kv_cache = kv_budget(facts, settings, context_length, kind, device_bytes=device_bytes)
    if settings.memory_bytes is not None:
        return _reserved(settings.memory_bytes, weights, kv_cache)
    # vLLM would choose by the device that it gets, which may be larger than the one reckoned with.
    is_sized = kind is DeviceKind.GPU and device_bytes is not None
    is_limited = is_sized and settings.task is Task.GENERATE
    activations = activation_bytes(facts, settings.task, options, kind)
    graphs, context = graph_bytes(facts, options), context_bytes(options, kind)
    off = _WEIGHTS_MARGIN * weights + _RUNTIME_MARGIN * (activations + graphs + context)
    total = weights + kv_cache + activations + graphs + context
    return Estimate(
        weights_bytes=weights,
        kv_cache_bytes=kv_cache,
        activations_bytes=activations,
        graphs_bytes=graphs,
        context_bytes=context,
        margin_ratio=round(off / total, 3),
        sequences=options.sequences if is_limited else None,
        step_tokens=options.step_tokens if is_limited else None,
    )


def _reserved(total: int, weights: int, kv_cache: int) -> Estimate:
    """The owner's figure is the sum; the KV budget stays, the other parts are cut."""
    weights = max(min(weights, total - kv_cache), 0)
    return Estimate(
        weights_bytes=weights,
        kv_cache_bytes=kv_cache,
        context_bytes=max(total - weights - kv_cache, 0),
        basis=Basis.CHOSEN,
    )
