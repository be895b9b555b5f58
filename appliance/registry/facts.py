"""What a checkpoint's own files say about a model."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from appliance.errors import InvalidRequestError
from appliance.protocol.models import Task

_EMBEDDING_ARCHITECTURES = (
    "BertModel", "DistilBertModel", "MPNetModel", "NomicBertModel", "RobertaModel",
    "XLMRobertaModel", "ModernBertModel", "GteModel",
)  # fmt: skip
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


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Dimensions of a model. `kv_heads` and `head_size` follow from grouped-query attention."""

    architecture: str
    task: Task
    max_context: int
    """Tokens that its positions allow."""
    weights_bytes: int
    """Of all weight files on disk."""
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    dtype: str
    has_chat_template: bool
    kv: KvLayout = KvLayout()


def read_facts(directory: Path) -> ModelFacts:
    """Read config.json and the sizes of the weight files. Raises InvalidRequestError.

    A config that vLLM could not use either is no reason to fail in any other way.
    """
    try:
        return _read_facts(directory)
    except (OSError, TypeError, ValueError, AttributeError, LookupError) as error:
        raise InvalidRequestError(
            f"The checkpoint in {directory} cannot be read: {error}.",
            hint="Check its config.json and the rights of its files, or fetch it again.",
            param="path",
        ) from error


def _read_facts(directory: Path) -> ModelFacts:
    """The facts of a checkpoint that is in order.

    The names in config.json are those of Hugging Face transformers; models that nest their
    text dimensions in `text_config` (Gemma 3, Qwen-VL) are read from there.
    """
    config = _read_config(directory)
    text = {**config, **(config.get("text_config") or {})}
    architectures = config.get("architectures") or ["unknown"]
    weights = _weights_bytes(directory)
    layers = _number(text, "num_hidden_layers", "n_layer")
    heads = _number(text, "num_attention_heads", "n_head") or 1
    hidden = _number(text, "hidden_size", "n_embd")
    return ModelFacts(
        architecture=str(architectures[0]),
        task=_task(directory, str(architectures[0])),
        max_context=_max_context(directory, text),
        weights_bytes=weights,
        layers=layers,
        heads=heads,
        kv_heads=_kv_heads(text, heads),
        head_size=_number(text, "head_dim", "attention_head_dim") or hidden // heads,
        vocabulary=int(text.get("vocab_size", 0)),
        dtype=str(text.get("dtype") or text.get("torch_dtype") or "float32"),
        has_chat_template=_has_chat_template(directory),
        kv=_kv_layout(text, layers),
    )


def _number(text: dict[str, Any], *names: str) -> int:
    """The first that is there, or 0. A list, of one number for each layer, is no number."""
    found = (text[name] for name in names if not isinstance(text.get(name, []), list))
    return next((int(value) for value in found if value), 0)


def _kv_heads(text: dict[str, Any], heads: int) -> int:
    """Multi-query attention (Falcon 7B, StarCoder) shares one, whatever else the config says."""
    if text.get("multi_query") and not text.get("new_decoder_architecture"):
        return 1
    return _number(text, "num_key_value_heads", "num_kv_heads") or heads


def _kv_layout(text: dict[str, Any], layers: int) -> KvLayout:
    """Layers that are not understood count as attention over the whole context: the most."""
    latent = _latent_size(text)
    kinds = Counter(_KINDS.get(name) for name in _layer_names(text, layers))
    if None in kinds or kinds.total() != layers or not _UNEVEN.isdisjoint(text):
        return KvLayout(latent_size=latent)
    window = 0 if text.get("use_sliding_window") is False else _number(text, "sliding_window")
    state_bytes = _state_bytes(text)
    return KvLayout(
        window_layers=kinds[_WINDOW] if window else 0,
        window=window if kinds[_WINDOW] else 0,
        state_layers=kinds[_STATE] if state_bytes else 0,
        state_bytes=state_bytes if kinds[_STATE] else 0,
        empty_layers=kinds[_NOTHING],
        latent_size=latent,
    )


def _layer_names(text: dict[str, Any], layers: int) -> list[str]:
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
        every = _number(text, "sliding_window_pattern") or _FULL_EVERY[model_type]
        full = range(every - 1, layers, every)
    elif every := _number(text, "full_attention_interval"):  # Qwen3-Next
        full = range(every - 1, layers, every)
    elif every := _number(text, "attn_layer_period"):  # Jamba
        full = range(_number(text, "attn_layer_offset"), layers, every)
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
    index = _number(text, "index_head_dim")
    latent = _number(text, "kv_lora_rank") + _number(text, "qk_rope_head_dim")
    return latent + (index + 4 if index else 0)


def _state_bytes(text: dict[str, Any]) -> int:
    """State of one layer and sequence; 0 where the dimensions are not there.

    The recurrent state and the inputs of the convolution (vLLM: mamba_utils.py,
    MambaStateShapeCalculator), in float32 though some models keep 16 bits.
    """
    heads = _number(text, "linear_num_value_heads")
    if heads:  # gated delta net: Qwen3-Next
        key_size = _number(text, "linear_key_head_dim")
        inner = heads * _number(text, "linear_value_head_dim")
        state_size, kernel = key_size, _number(text, "linear_conv_kernel_dim")
        extra = 2 * key_size * _number(text, "linear_num_key_heads")
    else:
        state_size = _number(text, "mamba_d_state", "ssm_state_size")
        kernel = _number(text, "mamba_d_conv", "conv_kernel")
        inner = _number(text, "mamba_expand") * _number(text, "hidden_size")
        extra = 0
        if heads := _number(text, "mamba_num_heads", "mamba_n_heads"):  # Mamba 2
            inner = heads * _number(text, "mamba_head_dim") or inner
            extra = 2 * _number(text, "mamba_n_groups", "n_groups") * state_size
    if not (inner and state_size and kernel):
        return 0
    return _STATE_ELEMENT_BYTES * (inner * state_size + (inner + extra) * (kernel - 1))


def _read_config(directory: Path) -> dict[str, Any]:
    if not directory.is_dir():
        raise InvalidRequestError(
            f"{directory} is no directory on the server.",
            hint="Give the directory that holds config.json and the weights.",
            param="path",
        )
    file = directory / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InvalidRequestError(
            f"{directory} holds no config.json, so it is no model in Hugging Face format.",
            hint="Give the directory of one checkpoint; GGUF files are not supported by vLLM here.",
            param="path",
        ) from error
    except (OSError, ValueError) as error:
        raise InvalidRequestError(
            f"{file} cannot be read: {error}.", hint="Check the file and its rights.", param="path"
        ) from error
    if not isinstance(config, dict):
        raise InvalidRequestError(f"{file} holds no object.", hint="Fetch it again.", param="path")
    return config


def _weights_bytes(directory: Path) -> int:
    for pattern in ("*.safetensors", "*.bin", "*.pt"):
        sizes = [file.stat().st_size for file in directory.glob(pattern)]
        if sizes:
            return sum(sizes)
    raise InvalidRequestError(
        f"{directory} holds no weights (*.safetensors).",
        hint="The checkpoint is incomplete; fetch it again.",
        param="path",
    )


def _max_context(directory: Path, text: dict[str, Any]) -> int:
    positions = text.get("max_position_embeddings") or text.get("n_positions") or 2048
    try:
        sentence = json.loads((directory / "sentence_bert_config.json").read_text("utf-8"))
        return int(sentence.get("max_seq_length") or positions)
    except (OSError, ValueError):
        return int(positions)


def _task(directory: Path, architecture: str) -> Task:
    is_sentence_model = (directory / "modules.json").exists()
    if is_sentence_model or architecture in _EMBEDDING_ARCHITECTURES:
        return Task.EMBED
    return Task.GENERATE


def _has_chat_template(directory: Path) -> bool:
    if (directory / "chat_template.jinja").exists():
        return True
    try:
        tokenizer = json.loads((directory / "tokenizer_config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return bool(tokenizer.get("chat_template"))
