"""What engines really took corrects the next estimate of the same configuration. Pure.

An engine measured here says more than any formula about all but its KV cache, which is given to
it in bytes and therefore exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from appliance.estimate.estimator import Estimate
from appliance.protocol.estimates import Basis

_RECENT = 8
# A measurement so far above all others does not count once there are enough of them.
_OUTLIER = 1.2
_ENOUGH = 3
# Less than this share of what was estimated is no engine that holds all it needs: pages that were
# not touched yet, or are shared with others for now.
_LEAST_PLAUSIBLE = 0.5
# What a measurement may be off by: allocators keep blocks, shared pages are counted by halves.
_SINGLE_MARGIN = 0.05
_LEAST_MARGIN = 0.02


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One engine once it was ready, in bytes."""

    rank_bytes: int
    """Of the fullest rank, with its whole KV cache, touched or not."""
    kv_cache_bytes: int
    """The budget that each rank was started with."""
    weights_bytes: int = 0
    """Of one rank by the engine's own log; 0: it did not say."""
    graphs_bytes: int = 0
    """The same for its CUDA graphs."""


def corrected(wanted: Estimate, measurements: Sequence[Measurement]) -> Estimate:
    """The estimate with the parts that were measured; `measurements` are the oldest first.

    The KV cache stays as planned. The rest is the most of the recent measurements, without one
    that stands out. Nothing changes where nothing was measured or the owner has set the sum.
    """
    if wanted.basis is Basis.CHOSEN:
        return wanted
    plausible = [each for each in measurements if _is_plausible(each, wanted)][-_RECENT:]
    if not plausible:
        return wanted
    rest = sorted(each.rank_bytes - each.kv_cache_bytes for each in plausible)
    if len(rest) >= _ENOUGH and rest[-1] > _OUTLIER * rest[-2]:
        rest.pop()
    left = most = rest[-1]
    logged = max(each.weights_bytes for each in plausible)
    weights = min(logged or wanted.weights_bytes, left)
    left -= weights
    graphs = min(max(each.graphs_bytes for each in plausible) or wanted.graphs_bytes, left)
    left -= graphs
    activations = min(wanted.activations_bytes, left)
    spread = (most - rest[0]) / most if len(rest) > 1 else _SINGLE_MARGIN
    total = most + wanted.kv_cache_bytes
    return replace(
        wanted,
        weights_bytes=weights,
        graphs_bytes=graphs,
        activations_bytes=activations,
        context_bytes=left - activations,
        basis=Basis.MEASURED,
        margin_ratio=round(max(spread, _LEAST_MARGIN) * most / total, 3),
    )


def _is_plausible(measurement: Measurement, wanted: Estimate) -> bool:
    rest = measurement.rank_bytes - measurement.kv_cache_bytes
    return rest > _LEAST_PLAUSIBLE * (wanted.weights_bytes + wanted.runtime_bytes)
