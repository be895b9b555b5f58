"""What a checkpoint's own files say about a model."""

import json
from pathlib import Path
from typing import Any

import msgspec

from appliance.errors import InvalidRequestError
from appliance.protocol.models import Task

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
    heads = int(text.get("num_attention_heads", 1))
    hidden = int(text.get("hidden_size", 0))
    return ModelFacts(
        architecture=str(architectures[0]),
        task=_task(directory, str(architectures[0])),
        max_context=_max_context(directory, text),
        weights_bytes=weights,
        layers=int(text.get("num_hidden_layers", 0)),
        heads=heads,
        kv_heads=int(text.get("num_key_value_heads") or heads),
        head_size=int(text.get("head_dim") or hidden // max(heads, 1)),
        vocabulary=int(text.get("vocab_size", 0)),
        dtype=str(text.get("dtype") or text.get("torch_dtype") or "float32"),
        has_chat_template=_has_chat_template(directory),
    )


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
