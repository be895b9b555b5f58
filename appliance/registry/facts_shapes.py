"""The tensors of a checkpoint, derived from its config alone: for an estimate before a download.

Names and shapes are those of Hugging Face transformers (modeling_*.py of each model type). Pure.
"""

from collections import Counter
from typing import Any

from appliance.registry.facts_config import number, text_of
from appliance.registry.facts_kv import layer_names
from appliance.registry.facts_mixers import (
    delta_net,
    latent_attention,
    mamba,
    plain_attention,
)
from appliance.registry.facts_quantized import quantized
from appliance.registry.facts_tensors import Tensor

_ENCODERS = {"bert", "roberta", "xlm-roberta", "camembert", "mpnet", "electra"}
# Biases of queries, keys and values without a word in the config.
_TIED_BY_DEFAULT = {
    "gemma", "gemma2", "gemma3", "gemma3_text", "gemma4", "falcon", "gpt2", "gpt_bigcode",
    "cohere", "cohere2", "bloom", "mpt", "starcoder2", "t5gemma",
}  # fmt: skip
_FOUR_NORMS = {"gemma2", "gemma3", "gemma3_text", "glm4"}
_ONE_NORM = {"cohere", "cohere2", "phi"}
_UNGATED = {"starcoder2", "phi", "gpt_neox", "nemotron", "nemotron_h"}
_SHORT_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def is_tied(text: dict[str, Any]) -> bool:
    """Whether the output matrix is the embedding. Configs leave out what is the type's default."""
    stated = text.get("tie_word_embeddings")
    return text.get("model_type") in _TIED_BY_DEFAULT if stated is None else bool(stated)


def tensors_from_config(config: dict[str, Any]) -> list[Tensor] | None:
    """What a checkpoint with this config holds; None for models that are not understood.

    A matrix that is tied is not stored. Raises TypeError or ValueError for dimensions that are no
    numbers.
    """
    text = text_of(config)
    model_type = text.get("model_type")
    if model_type in _ENCODERS:
        tensors = _encoder(text)
    elif model_type == "nomic_bert":
        tensors = _nomic(text)
    elif model_type == "falcon":
        tensors = _falcon(text)
    elif model_type in {"gpt2", "gpt_bigcode"}:
        tensors = _gpt2(text)
    else:
        tensors = _decoder(text)
        vision = config.get("vision_config")
        if isinstance(vision, dict):
            tensors += _vision(vision, number(text, "hidden_size"))
    dtype = _SHORT_DTYPES.get(str(text.get("dtype") or text.get("torch_dtype") or "float32"), "F32")
    tensors = [tensor._replace(dtype=dtype) for tensor in tensors if tensor.copies]
    if any(0 in tensor.shape for tensor in tensors) or not tensors:
        return None
    settings = config.get("quantization_config") or text.get("quantization_config")
    return quantized(tensors, settings) if isinstance(settings, dict) else tensors


def _decoder(text: dict[str, Any]) -> list[Tensor]:
    """Llama and all that are built like it: attention or another mixer, then an MLP or experts."""
    hidden, layers = number(text, "hidden_size"), number(text, "num_hidden_layers")
    embedding = (number(text, "vocab_size"), hidden)
    tensors = [
        Tensor("model.embed_tokens.weight", embedding),
        Tensor("model.norm.weight", (hidden,)),
    ]
    if not is_tied(text):
        tensors.append(Tensor("lm_head.weight", embedding))
    kinds = Counter(layer_names(text, layers) or ["full_attention"] * layers)
    for kind, count in kinds.items():
        if kind not in {"mlp", "-", "moe", "E"}:
            tensors += _mixer(text, kind, count)
    tensors.append(Tensor("model.layers.0.input_layernorm.weight", (hidden,), copies=_norms(text)))
    return tensors + _feed_forward(text, layers, kinds)


def _mixer(text: dict[str, Any], kind: str, count: int) -> list[Tensor]:
    """What looks at other tokens in `count` layers of one kind."""
    if kind in {"mamba", "M", "linear_attention"}:
        return delta_net(text, count) if text.get("linear_num_value_heads") else mamba(text, count)
    if number(text, "kv_lora_rank"):
        return latent_attention(text, count)
    return plain_attention(text, count)


def _norms(text: dict[str, Any]) -> int:
    each = {**dict.fromkeys(_FOUR_NORMS, 4), **dict.fromkeys(_ONE_NORM, 1)}
    default = 1 if text.get("hybrid_override_pattern") else 2
    return each.get(str(text.get("model_type")), default) * number(text, "num_hidden_layers")


def _feed_forward(text: dict[str, Any], layers: int, kinds: Counter[str]) -> list[Tensor]:
    if text.get("hybrid_override_pattern"):  # Nemotron-H: a layer is one thing only
        return _mlp(text, number(text, "intermediate_size"), kinds["-"])
    experts = expert_layers(text, layers)
    tensors = _mlp(text, number(text, "intermediate_size", "ffn_dim"), layers - experts)
    return tensors + _experts(text, experts) if experts else tensors


def _mlp(text: dict[str, Any], inner: int, count: int, prefix: str = "mlp") -> list[Tensor]:
    hidden = number(text, "hidden_size")
    base = f"model.layers.0.{prefix}"
    names = ["up_proj"] if text.get("model_type") in _UNGATED else ["gate_proj", "up_proj"]
    tensors = [Tensor(f"{base}.{name}.weight", (inner, hidden), copies=count) for name in names]
    tensors.append(Tensor(f"{base}.down_proj.weight", (hidden, inner), copies=count))
    if text.get("mlp_bias") or text.get("use_bias") or text.get("model_type") == "phi":
        tensors.append(Tensor(f"{base}.up_proj.bias", (inner * len(names) + hidden,), copies=count))
    return tensors


def expert_count(text: dict[str, Any]) -> int:
    """Experts of one layer, of which a router picks some; 0 for dense models."""
    return number(text, "num_local_experts", "n_routed_experts", "num_experts")


def expert_layers(text: dict[str, Any], layers: int) -> int:
    """How many layers have experts instead of one MLP."""
    if not expert_count(text):
        return 0
    dense = range(number(text, "first_k_dense_replace"))
    step = number(text, "decoder_sparse_step", "moe_layer_freq", "expert_layer_period") or 1
    offset = number(text, "expert_layer_offset")
    stated = text.get("mlp_only_layers") or []
    if text.get("decoder_sparse_step"):
        return sum((layer + 1) % step == 0 and layer not in stated for layer in range(layers))
    return sum(layer % step == offset % step and layer not in dense for layer in range(layers))


def _experts(text: dict[str, Any], count: int) -> list[Tensor]:
    hidden, experts = number(text, "hidden_size"), expert_count(text)
    inner = number(text, "moe_intermediate_size", "intermediate_size")
    base = "model.layers.0.mlp"
    gate_up, down = (experts, 2 * inner, hidden), (experts, hidden, inner)
    tensors = [
        Tensor(f"{base}.gate.weight", (experts, hidden), copies=count),
        Tensor(f"{base}.experts.gate_up_proj", gate_up, copies=count),
        Tensor(f"{base}.experts.down_proj", down, copies=count),
    ]
    if text.get("model_type") == "gpt_oss":
        tensors += [
            Tensor(f"{base}.router.bias", (experts,), copies=count),
            Tensor(f"{base}.experts.gate_up_proj_bias", (experts, 2 * inner), copies=count),
            Tensor(f"{base}.experts.down_proj_bias", (experts, hidden), copies=count),
        ]
    shared = number(text, "shared_expert_intermediate_size", "shared_intermediate_size")
    if text.get("n_shared_experts"):
        shared = number(text, "n_shared_experts") * inner
    if shared:
        tensors += _mlp(text, shared, count, "mlp.shared_experts")
    if text.get("shared_expert_intermediate_size"):
        tensors.append(Tensor(f"{base}.shared_expert_gate.weight", (1, hidden), copies=count))
    if text.get("topk_method") == "noaux_tc":
        bias = f"{base}.gate.e_score_correction_bias"
        tensors.append(Tensor(bias, (experts,), copies=count))
    return tensors


def _encoder(text: dict[str, Any]) -> list[Tensor]:
    """BERT: learned positions, biases everywhere."""
    hidden, inner = number(text, "hidden_size"), number(text, "intermediate_size")
    count = number(text, "num_hidden_layers")
    rows = number(text, "max_position_embeddings") + number(text, "type_vocab_size")
    layer = "encoder.layer.0"
    return [
        Tensor("embeddings.word_embeddings.weight", (number(text, "vocab_size"), hidden)),
        Tensor("embeddings.position_embeddings.weight", (rows, hidden)),
        Tensor("embeddings.LayerNorm.weight", (hidden,), copies=2),
        Tensor(f"{layer}.attention.self.query.weight", (hidden, hidden), copies=4 * count),
        Tensor(f"{layer}.intermediate.dense.weight", (inner, hidden), copies=count),
        Tensor(f"{layer}.output.dense.weight", (hidden, inner), copies=count),
        Tensor(f"{layer}.output.dense.bias", (9 * hidden + inner,), copies=count),
        Tensor("pooler.dense.weight", (hidden, hidden)),
        Tensor("pooler.dense.bias", (hidden,)),
    ]


def _nomic(text: dict[str, Any]) -> list[Tensor]:
    hidden, inner = number(text, "n_embd"), number(text, "n_inner") or 4 * number(text, "n_embd")
    count = number(text, "n_layer")
    layer = "encoder.layers.0"
    return [
        Tensor("embeddings.word_embeddings.weight", (number(text, "vocab_size"), hidden)),
        Tensor(
            "embeddings.token_type_embeddings.weight", (number(text, "type_vocab_size"), hidden)
        ),
        Tensor("emb_ln.weight", (hidden,), copies=2),
        Tensor(f"{layer}.attn.Wqkv.weight", (3 * hidden, hidden), copies=count),
        Tensor(f"{layer}.attn.out_proj.weight", (hidden, hidden), copies=count),
        Tensor(f"{layer}.mlp.fc11.weight", (inner, hidden), copies=2 * count),
        Tensor(f"{layer}.mlp.fc2.weight", (hidden, inner), copies=count),
        Tensor(f"{layer}.norm1.weight", (hidden,), copies=4 * count),
    ]


def _falcon(text: dict[str, Any]) -> list[Tensor]:
    hidden, heads = number(text, "hidden_size"), number(text, "num_attention_heads")
    count = number(text, "num_hidden_layers")
    shared = 1 if not text.get("new_decoder_architecture") else number(text, "num_kv_heads")
    width = (heads + 2 * shared) * (hidden // heads)
    layer = "transformer.h.0"
    norms = 4 if text.get("new_decoder_architecture") else 2
    return [
        Tensor("transformer.word_embeddings.weight", (number(text, "vocab_size"), hidden)),
        Tensor(f"{layer}.self_attention.query_key_value.weight", (width, hidden), copies=count),
        Tensor(f"{layer}.self_attention.dense.weight", (hidden, hidden), copies=count),
        Tensor(f"{layer}.mlp.dense_h_to_4h.weight", (4 * hidden, hidden), copies=count),
        Tensor(f"{layer}.mlp.dense_4h_to_h.weight", (hidden, 4 * hidden), copies=count),
        Tensor(f"{layer}.input_layernorm.weight", (hidden,), copies=norms * count + 2),
    ]


def _gpt2(text: dict[str, Any]) -> list[Tensor]:
    hidden, heads = number(text, "n_embd"), number(text, "n_head")
    count, inner = number(text, "n_layer"), number(text, "n_inner") or 4 * number(text, "n_embd")
    width = hidden + 2 * (hidden // heads if text.get("multi_query") else hidden)
    layer = "transformer.h.0"
    return [
        Tensor("transformer.wte.weight", (number(text, "vocab_size"), hidden)),
        Tensor("transformer.wpe.weight", (number(text, "n_positions"), hidden)),
        Tensor(f"{layer}.attn.c_attn.weight", (width, hidden), copies=count),
        Tensor(f"{layer}.attn.c_proj.weight", (hidden, hidden), copies=count),
        Tensor(f"{layer}.mlp.c_fc.weight", (inner, hidden), copies=count),
        Tensor(f"{layer}.mlp.c_proj.weight", (hidden, inner), copies=count),
        Tensor(f"{layer}.ln_1.weight", (4 * hidden + width + 2 * hidden + inner,), copies=count),
        Tensor("transformer.ln_f.weight", (hidden,), copies=2),
    ]


def _vision(vision: dict[str, Any], text_hidden: int) -> list[Tensor]:
    """A vision transformer such as SigLIP, and the matrix that leads into the language model."""
    hidden, inner = number(vision, "hidden_size"), number(vision, "intermediate_size")
    count = number(vision, "num_hidden_layers", "depth")
    if not (hidden and inner and count):
        return []
    patch = number(vision, "patch_size") or 1
    positions = max((number(vision, "image_size") // patch) ** 2, 1)
    layer = "vision_tower.layers.0"
    return [
        Tensor("vision_tower.patch_embedding.weight", (hidden, 3 * patch**2)),
        Tensor("vision_tower.position_embedding.weight", (positions, hidden)),
        Tensor(f"{layer}.self_attn.q_proj.weight", (hidden, hidden), copies=4 * count),
        Tensor(f"{layer}.mlp.fc1.weight", (inner, hidden), copies=2 * count),
        Tensor(f"{layer}.mlp.fc1.bias", (9 * hidden + inner,), copies=count),
        Tensor("multi_modal_projector.weight", (text_hidden, hidden)),
    ]
