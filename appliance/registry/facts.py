"""What a checkpoint's own files say about a model."""

import json
import logging
from pathlib import Path
from typing import Any

import msgspec

from appliance.errors import InvalidRequestError
from appliance.protocol.models import Task
from appliance.registry.facts_config import number, text_of
from appliance.registry.facts_kv import KvLayout, kv_head_count, kv_layout
from appliance.registry.facts_quantized import Quantization, read_quantization
from appliance.registry.facts_shapes import expert_layers, is_tied, tensors_from_config
from appliance.registry.facts_tensors import (
    Tensor,
    TensorGroup,
    group_tensors,
    read_tensors,
    stored_bytes,
    weight_files,
)

logger = logging.getLogger(__name__)

_MOST_LAYERS = 10_000
_EMBEDDING_ARCHITECTURES = (
    "BertModel", "DistilBertModel", "MPNetModel", "NomicBertModel", "RobertaModel",
    "XLMRobertaModel", "ModernBertModel", "GteModel",
)  # fmt: skip


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
    hidden: int = 0
    """Size of what goes from layer to layer; 0: unknown."""
    mlp_sizes: tuple[int, ...] = ()
    """Inner sizes of the MLPs and of one expert."""
    active_experts: int = 0
    """Experts that a token goes through in a layer."""
    state_heads: tuple[int, ...] = ()
    """Heads of Mamba or linear attention that the ranks share out."""
    rotary_elements: int = 0
    """Of the table of rotary positions that each rank holds."""
    quantization: Quantization | None = None
    tensors: tuple[TensorGroup, ...] = ()
    """Empty where neither headers nor config tell them."""


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
    """The facts of a checkpoint that is in order."""
    config = _read_config(directory)
    files = weight_files(directory)
    architecture = _architecture(config)
    return msgspec.structs.replace(
        _facts(config, read_tensors(files)),
        weights_bytes=sum(file.stat().st_size for file in files),
        task=_task(directory, architecture),
        max_context=_max_context(directory, text_of(config)),
        has_chat_template=_has_chat_template(directory),
    )


def facts_from_config(config: dict[str, Any]) -> ModelFacts:
    """What is known before a download. Raises InvalidRequestError."""
    try:
        return _facts(config, None)
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        raise InvalidRequestError(
            f"This config.json cannot be understood: {error}.",
            hint="Check that it is the config.json of a model in Hugging Face format.",
        ) from error


def _facts(config: dict[str, Any], tensors: list[Tensor] | None) -> ModelFacts:
    """From the config, and from the headers where they could be read.

    The names in config.json are those of Hugging Face transformers; models that nest their
    text dimensions in `text_config` (Gemma 3, Qwen-VL) are read from there.
    """
    text = text_of(config)
    architecture = _architecture(config)
    layers = number(text, "num_hidden_layers", "n_layer")
    heads = number(text, "num_attention_heads", "n_head") or 1
    head_size = number(text, "head_dim", "attention_head_dim")
    facts = ModelFacts(
        architecture=architecture,
        task=Task.EMBED if architecture in _EMBEDDING_ARCHITECTURES else Task.GENERATE,
        max_context=_positions(text),
        weights_bytes=0,
        layers=layers,
        heads=heads,
        kv_heads=kv_head_count(text, heads),
        head_size=head_size or number(text, "hidden_size", "n_embd") // heads,
        vocabulary=int(text.get("vocab_size", 0)),
        dtype=str(text.get("dtype") or text.get("torch_dtype") or "float32"),
        has_chat_template=False,
        kv=kv_layout(text, layers),
    )
    try:
        return _with_dimensions(facts, config, text, tensors)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # vLLM may know what to make of them; the estimate goes by the size of the files then.
        logger.warning("facts.dimensions_unknown architecture=%s error=%s", architecture, error)
        return facts


def _with_dimensions(
    facts: ModelFacts,
    config: dict[str, Any],
    text: dict[str, Any],
    tensors: list[Tensor] | None,
) -> ModelFacts:
    """What only the estimate needs."""
    layers = facts.layers
    if layers > _MOST_LAYERS:
        raise ValueError(f"{layers} layers")
    if tensors is None:
        tensors = tensors_from_config(config) or []
    return msgspec.structs.replace(
        facts,
        weights_bytes=stored_bytes(tensors),
        hidden=number(text, "hidden_size", "n_embd"),
        mlp_sizes=_mlp_sizes(text, layers),
        active_experts=number(text, "num_experts_per_tok", "experts_per_token"),
        state_heads=_state_heads(text),
        rotary_elements=_rotary_elements(text, facts.head_size),
        quantization=read_quantization(
            config.get("quantization_config") or text.get("quantization_config")
        ),
        tensors=tuple(group_tensors(tensors, layers=layers, is_tied=is_tied(text))),
    )


def _architecture(config: dict[str, Any]) -> str:
    return str((config.get("architectures") or ["unknown"])[0])


def _mlp_sizes(text: dict[str, Any], layers: int) -> tuple[int, ...]:
    inner = number(text, "intermediate_size", "n_inner", "ffn_dim")
    inner = inner or 4 * number(text, "n_embd", "hidden_size")
    experts = expert_layers(text, layers)
    each = number(text, "moe_intermediate_size") or inner
    sizes = {each} if experts else set()
    if experts < layers:
        sizes.add(inner)
    if text.get("shared_expert_intermediate_size"):
        sizes.add(number(text, "shared_expert_intermediate_size"))
    return tuple(sorted(size for size in sizes if size))


def _state_heads(text: dict[str, Any]) -> tuple[int, ...]:
    names = ("linear_num_key_heads", "linear_num_value_heads", "mamba_num_heads", "mamba_n_heads")
    return tuple(size for size in (number(text, name) for name in names) if size)


def _rotary_elements(text: dict[str, Any], head_size: int) -> int:
    """Sine and cosine of each position (vLLM: rotary_embedding/base.py, _compute_cos_sin_cache).

    Models with windows have a second table for them (Gemma 3: `rope_local_base_freq`).
    """
    if not any(name.startswith(("rope_", "rotary_")) for name in text):
        return 0
    size = number(text, "qk_rope_head_dim") or head_size
    return _positions(text) * size * (2 if text.get("rope_local_base_freq") else 1)


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


def _positions(text: dict[str, Any]) -> int:
    return int(text.get("max_position_embeddings") or text.get("n_positions") or 2048)


def _max_context(directory: Path, text: dict[str, Any]) -> int:
    positions = _positions(text)
    try:
        sentence = json.loads((directory / "sentence_bert_config.json").read_text("utf-8"))
        return int(sentence.get("max_seq_length") or positions)
    except (OSError, ValueError):
        return positions


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
