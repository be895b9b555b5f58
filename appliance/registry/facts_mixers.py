"""Tensors of the part of a layer that looks at other tokens: attention, Mamba, delta nets. Pure."""

from typing import Any

from appliance.registry.facts_config import number
from appliance.registry.facts_kv import kv_head_count
from appliance.registry.facts_tensors import Tensor

_ATTENTION = "model.layers.0.self_attn"
_MIXER = "model.layers.0.mixer"
# Biases and norms that the type has without a word in the config.
_QKV_BIAS = {"qwen2", "qwen2_moe", "qwen2_vl", "qwen2_5_vl", "starcoder2", "phi", "gpt_neox"}
_HEAD_NORMS = {"qwen3", "qwen3_moe", "qwen3_next", "gemma3", "gemma3_text", "qwen3_vl"}
_WIDE_NORMS = {"olmo2", "olmo3", "olmoe"}


def head_size_of(text: dict[str, Any]) -> int:
    """Stated, or the hidden size divided by the heads."""
    heads = number(text, "num_attention_heads", "n_head") or 1
    return number(text, "head_dim") or number(text, "hidden_size", "n_embd") // heads


def plain_attention(text: dict[str, Any], count: int) -> list[Tensor]:
    """Queries, keys, values and the output, of each head or grouped; `count` layers."""
    hidden, size = number(text, "hidden_size"), head_size_of(text)
    heads = number(text, "num_attention_heads")
    kv_heads = kv_head_count(text, heads)
    model_type = text.get("model_type")
    # Qwen3-Next gates the output of each head.
    queries = heads * size * (2 if model_type in {"qwen3_next", "qwen3_5"} else 1)
    tensors = [
        Tensor(f"{_ATTENTION}.q_proj.weight", (queries, hidden), copies=count),
        Tensor(f"{_ATTENTION}.k_proj.weight", (kv_heads * size, hidden), copies=2 * count),
        Tensor(f"{_ATTENTION}.o_proj.weight", (hidden, heads * size), copies=count),
    ]
    has_all = bool(text.get("attention_bias") or text.get("use_bias"))
    if has_all or model_type in _QKV_BIAS:
        width = (heads + 2 * kv_heads) * size + (hidden if has_all else 0)
        tensors.append(Tensor(f"{_ATTENTION}.qkv.bias", (width,), copies=count))
    if model_type in _HEAD_NORMS:
        tensors.append(Tensor(f"{_ATTENTION}.q_norm.weight", (size,), copies=2 * count))
    if model_type in _WIDE_NORMS:
        width = (heads + kv_heads) * size
        tensors.append(Tensor(f"{_ATTENTION}.q_norm.weight", (width,), copies=count))
    if model_type == "gpt_oss":
        tensors.append(Tensor(f"{_ATTENTION}.sinks", (heads,), copies=count))
    return tensors


def latent_attention(text: dict[str, Any], count: int) -> list[Tensor]:
    """Multi-head latent attention: "DeepSeek-V2" (2024), section 2.1."""
    hidden, heads = number(text, "hidden_size"), number(text, "num_attention_heads")
    latent, rope = number(text, "kv_lora_rank"), number(text, "qk_rope_head_dim")
    plain, value = number(text, "qk_nope_head_dim"), number(text, "v_head_dim")
    low = number(text, "q_lora_rank")
    queries = heads * (plain + rope)
    tensors = [
        Tensor(f"{_ATTENTION}.kv_a_proj_with_mqa.weight", (latent + rope, hidden), copies=count),
        Tensor(f"{_ATTENTION}.kv_a_layernorm.weight", (latent,), copies=count),
        Tensor(f"{_ATTENTION}.kv_b_proj.weight", (heads * (plain + value), latent), copies=count),
        Tensor(f"{_ATTENTION}.o_proj.weight", (hidden, heads * value), copies=count),
    ]
    if not low:
        return [*tensors, Tensor(f"{_ATTENTION}.q_proj.weight", (queries, hidden), copies=count)]
    return [
        *tensors,
        Tensor(f"{_ATTENTION}.q_a_proj.weight", (low, hidden), copies=count),
        Tensor(f"{_ATTENTION}.q_a_layernorm.weight", (low,), copies=count),
        Tensor(f"{_ATTENTION}.q_b_proj.weight", (queries, low), copies=count),
    ]


def mamba(text: dict[str, Any], count: int) -> list[Tensor]:
    """Mamba 2 where it has heads ("Transformers are SSMs", 2024), else Mamba 1."""
    hidden = number(text, "hidden_size")
    state = number(text, "mamba_d_state", "ssm_state_size")
    kernel = number(text, "mamba_d_conv", "conv_kernel")
    inner = number(text, "mamba_expand", "expand") * hidden
    heads = number(text, "mamba_num_heads", "mamba_n_heads")
    if not heads:
        rank = number(text, "mamba_dt_rank") or -(-hidden // 16)
        return [
            Tensor(f"{_MIXER}.in_proj.weight", (2 * inner, hidden), copies=count),
            Tensor(f"{_MIXER}.conv1d.weight", (inner, 1, kernel + 1), copies=count),
            Tensor(f"{_MIXER}.x_proj.weight", (rank + 2 * state, inner), copies=count),
            Tensor(f"{_MIXER}.dt_proj.weight", (inner, rank + 1), copies=count),
            Tensor(f"{_MIXER}.A_log", (inner, state + 1), copies=count),
            Tensor(f"{_MIXER}.out_proj.weight", (hidden, inner), copies=count),
            Tensor(f"{_MIXER}.dt_layernorm.weight", (rank + 2 * state,), copies=count),
        ]
    inner = heads * number(text, "mamba_head_dim", "mamba_d_head") or inner
    groups = number(text, "mamba_n_groups", "n_groups") * state
    return [
        Tensor(f"{_MIXER}.in_proj.weight", (2 * inner + 2 * groups + heads, hidden), copies=count),
        Tensor(f"{_MIXER}.conv1d.weight", (inner + 2 * groups, 1, kernel + 1), copies=count),
        Tensor(f"{_MIXER}.out_proj.weight", (hidden, inner), copies=count),
        Tensor(f"{_MIXER}.A_log", (3 * heads,), copies=count),
        Tensor(f"{_MIXER}.norm.weight", (inner,), copies=count),
    ]


def delta_net(text: dict[str, Any], count: int) -> list[Tensor]:
    """Gated delta net: Qwen3-Next (transformers: modeling_qwen3_next.py)."""
    hidden = number(text, "hidden_size")
    value_heads = number(text, "linear_num_value_heads")
    keys = number(text, "linear_num_key_heads") * number(text, "linear_key_head_dim")
    value_size = number(text, "linear_value_head_dim")
    values = value_heads * value_size
    kernel = number(text, "linear_conv_kernel_dim")
    return [
        Tensor(f"{_MIXER}.in_proj_qkvz.weight", (2 * keys + 2 * values, hidden), copies=count),
        Tensor(f"{_MIXER}.in_proj_ba.weight", (2 * value_heads, hidden), copies=count),
        Tensor(f"{_MIXER}.conv1d.weight", (2 * keys + values, 1, kernel), copies=count),
        Tensor(f"{_MIXER}.out_proj.weight", (hidden, values), copies=count),
        Tensor(f"{_MIXER}.A_log", (2 * value_heads,), copies=count),
        Tensor(f"{_MIXER}.norm.weight", (value_size,), copies=count),
    ]
