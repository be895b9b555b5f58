"""What the layers of a model keep of the tokens that they have seen, from its config. Pure."""

from collections import Counter
from typing import Any

import msgspec

from appliance.registry.facts_config import number

# What a layer keeps, by its name in `layer_types`, `layers_block_type` and in the letters of
# `hybrid_override_pattern` (transformers: configuration_utils.py, configuration_nemotron_h.py).
_FULL, _WINDOW, _STATE, _NOTHING = "full", "window", "state", "nothing"
_KINDS = {
    "full_attention": _FULL, "attention": _FULL, "*": _FULL, "sliding_attention": _WINDOW,
    "linear_attention": _STATE, "mamba": _STATE, "M": _STATE,
    "mlp": _NOTHING, "moe": _NOTHING, "-": _NOTHING, "E": _NOTHING,
}  # fmt: skip
# Each n-th layer sees the whole context where the config does not list the layers, and each layer
# has the window (transformers: the config classes).
_FULL_EVERY = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "cohere2": 4, "gpt_oss": 2, "olmo3": 4}
_WINDOW_IN_EACH = {"mistral", "mixtral", "phi3", "starcoder2"}
# Heads or head sizes that differ between layers are not understood here.
_UNEVEN = {"global_head_dim", "num_global_key_value_heads", "swa_head_dim", "block_configs",
           "swa_num_key_value_heads", "attention_other_setting", "per_layer_config"}  # fmt: skip
# vLLM keeps a latent only for these (model_arch_config_convertor.py: is_deepseek_mla).
_LATENT = {
    "deepseek_v2", "deepseek_v3", "deepseek_v32", "kimi_k2", "glm4_moe_lite", "glm_moe_dsa",
    "pangu_ultra_moe", "axk1",
}  # fmt: skip
_STATE_ELEMENT_BYTES = 4


class KvLayout(msgspec.Struct, frozen=True, kw_only=True):
    """What layers keep that is not keys and values of each head for the whole context."""

    window_layers: int = 0
    """Layers that look back `window` tokens."""
    window: int = 0
    state_layers: int = 0
    """Layers with a state of fixed size for each sequence: Mamba, linear attention."""
    state_bytes: int = 0
    """Of one such layer and sequence, all ranks together."""
    empty_layers: int = 0
    """Layers that keep nothing."""
    latent_size: int = 0
    """Elements that all heads of a layer share for a token; 0: keys and values of each head."""


def kv_head_count(text: dict[str, Any], heads: int) -> int:
    """Multi-query attention (Falcon 7B, StarCoder) shares one, whatever else the config says."""
    if text.get("multi_query") and not text.get("new_decoder_architecture"):
        return 1
    return number(text, "num_key_value_heads", "num_kv_heads") or heads


def kv_layout(text: dict[str, Any], layers: int) -> KvLayout:
    """Layers that are not understood count as attention over the whole context: the most."""
    latent = _latent_size(text)
    kinds = Counter(_KINDS.get(name) for name in layer_names(text, layers))
    if None in kinds or kinds.total() != layers or not _UNEVEN.isdisjoint(text):
        return KvLayout(latent_size=latent)
    window = 0 if text.get("use_sliding_window") is False else number(text, "sliding_window")
    state_bytes = _state_bytes(text)
    return KvLayout(
        window_layers=kinds[_WINDOW] if window else 0,
        window=window if kinds[_WINDOW] else 0,
        state_layers=kinds[_STATE] if state_bytes else 0,
        state_bytes=state_bytes if kinds[_STATE] else 0,
        empty_layers=kinds[_NOTHING],
        latent_size=latent,
    )


def layer_names(text: dict[str, Any], layers: int) -> list[str]:
    """The kind of each layer in the words of the config; empty where it says nothing."""
    for name in ("hybrid_override_pattern", "layer_types", "layers_block_type"):
        if text.get(name):
            return [str(kind) for kind in text[name]]
    model_type = text.get("model_type")
    if model_type in _WINDOW_IN_EACH:
        return ["sliding_attention"] * layers
    other = "sliding_attention" if model_type in _FULL_EVERY else "linear_attention"
    full = range(0)
    if model_type in _FULL_EVERY:
        every = number(text, "sliding_window_pattern") or _FULL_EVERY[model_type]
        full = range(every - 1, layers, every)
    elif every := number(text, "full_attention_interval"):  # Qwen3-Next
        full = range(every - 1, layers, every)
    elif every := number(text, "attn_layer_period"):  # Jamba
        full = range(number(text, "attn_layer_offset"), layers, every)
    full_layers = {*full, *(text.get("attn_layer_indices") or [])}  # Bamba
    if not full_layers:
        return []
    return ["full_attention" if layer in full_layers else other for layer in range(layers)]


def _latent_size(text: dict[str, Any]) -> int:
    """Compressed key and value, and the rotary key that all heads share.

    "DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts Language Model"
    (2024), section 2.1.3. DeepSeek V3.2 adds the keys of its indexer, of one byte each, with a
    scale of four bytes (vLLM: deepseek_v2.py); they count as full elements here.
    """
    if text.get("model_type") not in _LATENT or not text.get("kv_lora_rank"):
        return 0
    index = number(text, "index_head_dim")
    latent = number(text, "kv_lora_rank") + number(text, "qk_rope_head_dim")
    return latent + (index + 4 if index else 0)


def _state_bytes(text: dict[str, Any]) -> int:
    """State of one layer and sequence; 0 where the dimensions are not there.

    The recurrent state and the inputs of the convolution (vLLM: mamba_utils.py,
    MambaStateShapeCalculator), in float32 though some models keep 16 bits.
    """
    heads = number(text, "linear_num_value_heads")
    if heads:  # gated delta net: Qwen3-Next
        key_size = number(text, "linear_key_head_dim")
        inner = heads * number(text, "linear_value_head_dim")
        state_size, kernel = key_size, number(text, "linear_conv_kernel_dim")
        extra = 2 * key_size * number(text, "linear_num_key_heads")
    else:
        state_size = number(text, "mamba_d_state", "ssm_state_size")
        kernel = number(text, "mamba_d_conv", "conv_kernel")
        inner = number(text, "mamba_expand") * number(text, "hidden_size")
        extra = 0
        if heads := number(text, "mamba_num_heads", "mamba_n_heads"):  # Mamba 2
            inner = heads * number(text, "mamba_head_dim") or inner
            extra = 2 * number(text, "mamba_n_groups", "n_groups") * state_size
    if not (inner and state_size and kernel):
        return 0
    return _STATE_ELEMENT_BYTES * (inner * state_size + (inner + extra) * (kernel - 1))
