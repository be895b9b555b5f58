"""What a rank keeps of the tokens and sequences it works on. Pure.

A layer keeps keys and values of the whole context, or of a window, or a state of fixed size for
each sequence, or nothing. What vLLM adds for its blocks is in `kv_bytes`.
"""

from dataclasses import dataclass

from appliance.estimate.options import dtype_bytes
from appliance.registry.facts import ModelFacts

_SPARE_TOKENS = 256
# vLLM's largest default (arg_utils.py: get_batch_defaults); on small GPUs it is an eighth of that.
_STEP_TOKENS = 16384
# Asynchronous scheduling (config/vllm.py: max_concurrent_batches).
_STEPS_AT_ONCE = 2
# vLLM makes a block of attention as large as a state, in steps of so many tokens.
_BLOCK_STEP = 128
_NEARLY_EVEN = 1.5


@dataclass(frozen=True, kw_only=True)
class Split:
    """How an engine keeps its cache: number format, ranks, steps."""

    dtype: str = "auto"
    """Of the model, as in its settings."""
    kv_dtype: str = "auto"
    """Of the cache, as vLLM's --kv-cache-dtype."""
    tp_size: int = 1
    step_tokens: int = _STEP_TOKENS
    """Of one step at most, as vLLM's --max-num-batched-tokens."""


def kv_bytes_per_token(facts: ModelFacts, split: Split) -> int:
    """One token in all layers that keep tokens, on one rank."""
    return _token_layers(facts) * _layer_bytes_per_token(facts, split)


def state_bytes_per_sequence(facts: ModelFacts, tp_size: int) -> int:
    """The fixed states of one sequence in all layers that have one, on one rank."""
    return facts.kv.state_layers * _ceil(facts.kv.state_bytes, tp_size)


def kv_bytes(facts: ModelFacts, split: Split, *, context: int, sequences: int) -> int:
    """Cache of one rank for so many sequences of the whole context.

    Tokens beyond the window cost nothing, but those of a running step do: vLLM keeps
    window - 1 + tokens in flight (kv_cache_interface.py: SlidingWindowSpec); a step is shared by
    all sequences. A sequence has up to two states, in blocks that attention shares with it
    (MambaSpec, cache mode "align"), and vLLM keeps one block for itself.
    """
    full, window, states = _padded_layers(facts)
    tokens = context * sequences
    in_window = min(tokens, facts.kv.window * sequences + _STEPS_AT_ONCE * split.step_tokens)
    in_layers = full * (tokens + _SPARE_TOKENS) + window * (in_window + _SPARE_TOKENS)
    blocks = states * (2 * sequences + 1) + full * sequences if states else 0
    return in_layers * _layer_bytes_per_token(facts, split) + blocks * _block_bytes(facts, split)


def least_bytes(facts: ModelFacts, split: Split, *, sequences: int) -> int:
    """Cache without which vLLM does not start: a block for each sequence it may work on.

    Only for models with states (vLLM: config/compilation.py, "exceeds available Mamba cache").
    """
    if not facts.kv.state_layers:
        return 0
    return _group_size(_layers(facts)) * (sequences + 1) * _block_bytes(facts, split)


def _token_layers(facts: ModelFacts) -> int:
    return facts.layers - facts.kv.state_layers - facts.kv.empty_layers


def _layer_bytes_per_token(facts: ModelFacts, split: Split) -> int:
    """One token in one layer, on one rank.

    2 (key and value) x KV heads x head size x bytes of an element: "Efficient Memory Management
    for Large Language Model Serving with PagedAttention" (Kwon et al., 2023), section 3, with
    the fewer heads of "GQA" (Ainslie et al., 2023). A rank holds at least one KV head: with more
    ranks than heads they are copied. Multi-head latent attention has one latent instead, whole on
    each rank: "DeepSeek-V2" (2024), section 2.1.
    """
    element = _element_bytes(facts, split)
    if facts.kv.latent_size:
        return facts.kv.latent_size * element
    return 2 * max(_ceil(facts.kv_heads, split.tp_size), 1) * facts.head_size * element


def _element_bytes(facts: ModelFacts, split: Split) -> int:
    """The cache has the model's number format, or a byte with any form of fp8."""
    if split.kv_dtype.startswith("fp8"):
        return 1
    of_model = facts.dtype if split.dtype == "auto" else split.dtype
    return dtype_bytes(split.kv_dtype) or dtype_bytes(of_model) or 2


def _layers(facts: ModelFacts) -> tuple[int, int, int]:
    """Layers with the whole context, with a window, with a state."""
    window = facts.kv.window_layers
    return _token_layers(facts) - window, window, facts.kv.state_layers


def _padded_layers(facts: ModelFacts) -> tuple[int, int, int]:
    """The same as vLLM groups them: the last group of a kind is filled up."""
    layers = _layers(facts)
    group = _group_size(layers)
    full, window, states = (_ceil(count, group) * group for count in layers)
    return full, window, states


def _group_size(layers: tuple[int, int, int]) -> int:
    """As many layers as the smallest kind, or the largest if it is less than 1.5 times as many.

    vLLM: kv_cache_utils.py, _get_kv_cache_groups_uniform_page_size.
    """
    some = [count for count in layers if count] or [1]
    return max(some) if max(some) < _NEARLY_EVEN * min(some) else min(some)


def _block_bytes(facts: ModelFacts, split: Split) -> int:
    """A state, filled up to whole steps of attention's blocks (vLLM: models/config.py)."""
    step = max(_BLOCK_STEP * _layer_bytes_per_token(facts, split), 1)
    return _ceil(_ceil(facts.kv.state_bytes, split.tp_size), step) * step


def _ceil(number: int, divisor: int) -> int:
    return -(-number // divisor)
