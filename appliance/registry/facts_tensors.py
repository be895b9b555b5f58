"""Tensors of a checkpoint, from the headers of its safetensors files, grouped by their use."""

import json
import math
import re
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import msgspec

from appliance.errors import InvalidRequestError

# https://huggingface.co/docs/safetensors: format, and its limit for a header.
_LENGTH_BYTES = 8
_MOST_HEADER_BYTES = 100_000_000
_DTYPE_BITS = {
    "F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16,
    "I16": 16, "U16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I8": 8, "U8": 8, "BOOL": 8,
    "F4": 4,
}  # fmt: skip
_FLOATS = {"F64", "F32", "F16", "BF16"}

_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks)\.(\d+)\.")
_OTHER_TOWER = re.compile(r"visual|vision|audio|multi_modal|mm_projector|embed_vision")
_NOT_LOADED = re.compile(
    r"inv_freq$|masked_bias$|position_ids$|\.attn\.bias$|^mtp\.|num_batches_tracked$"
)
_EMBEDDING = re.compile(
    r"embed_tokens|(?:^|\.)wte\.|word_embeddings|embed_in|(?:^|\.)embeddings?\.w"
)
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out|output)\.weight")
_EXPERTS = re.compile(r"(?<!shared_)experts?\.|block_sparse_moe\.(?:in|out)put_linear")
# Held whole by each rank: routers, norms, the latent projections of multi-head latent attention
# (vLLM: ReplicatedLinear in deepseek_v2.py, mixtral.py, qwen2_moe.py), positions.
_WHOLE = re.compile(
    r"norm|kv_a_proj|q_a_proj|indexer|patch_embed|position_embedding|token_type|pos_embed"
    r"|\.(?:gate|router|shared_expert_gate)\.(?:weight|layer)|mm_input_projection"
)
_KEYS_VALUES = re.compile(r"\.(?:k_proj|v_proj)\.")
_FUSED = re.compile(r"\.(?:qkv_proj|query_key_value|c_attn|Wqkv|qkv)\.")
_SCALE = re.compile(r"scales?(?:_inv)?$|zeros$|absmax$|A_log$|correction_bias$|quant_map$")


class Tensor(NamedTuple):
    """One tensor, or `copies` of the same kind."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "BF16"
    """As safetensors write it."""
    copies: int = 1


class Part(StrEnum):
    """How the ranks of tensor parallelism share a group of tensors."""

    EMBEDDING = "embedding"
    """By the vocabulary, padded."""
    HEAD = "head"
    """The same, for the output; absent where it is tied to the embedding."""
    LINEAR = "linear"
    """Evenly."""
    KEYS_VALUES = "keys_values"
    """By KV heads, at least one to each rank."""
    FUSED = "fused"
    """Queries evenly, keys and values by KV heads."""
    EXPERTS = "experts"
    """Evenly, each expert in slices."""
    WHOLE = "whole"
    """Each rank has all of it."""


class TensorGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Tensors that a rank gets the same share of. Bytes as stored."""

    part: Part
    in_layers: bool
    """Belongs to the layers, which pipeline parallelism distributes."""
    is_float: bool
    """Plain numbers, which are loaded in the number format of the model; not packed, no scales."""
    elements: int
    stored_bytes: int


def weight_files(directory: Path) -> list[Path]:
    """The files that vLLM would load; the same weights in another format do not count.

    vLLM reads the directory itself, not those below it (`original/`), and what the index names
    where there is one (weight_utils.py: filter_duplicate_safetensors_files). Raises
    InvalidRequestError.
    """
    for pattern in ("*.safetensors", "*.bin", "*.pt"):
        files = sorted(directory.glob(pattern))
        if files:
            named = _named_by_index(directory) if pattern == "*.safetensors" else set()
            listed = [file for file in files if file.name in named]
            plain = [file for file in files if not file.name.startswith("consolidated")]
            return listed or plain or files
    raise InvalidRequestError(
        f"{directory} holds no weights (*.safetensors).",
        hint="The checkpoint is incomplete; fetch it again.",
        param="path",
    )


def _named_by_index(directory: Path) -> set[str]:
    try:
        index = json.loads((directory / "model.safetensors.index.json").read_text("utf-8"))
        return {str(name) for name in index["weight_map"].values()}
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return set()


def read_tensors(files: Iterable[Path]) -> list[Tensor] | None:
    """What the headers list; None if one of the files has no header that can be read."""
    tensors: list[Tensor] = []
    for file in files:
        if file.suffix != ".safetensors":
            return None
        try:
            tensors += _header(file)
        except (OSError, ValueError, TypeError, LookupError, AttributeError):
            return None
    return tensors


def _header(file: Path) -> list[Tensor]:
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        if not 2 <= length <= _MOST_HEADER_BYTES:
            raise ValueError(f"{file} has a header of {length} bytes")
        header = json.loads(stream.read(length))
    return [
        Tensor(name, tuple(int(size) for size in entry["shape"]), str(entry["dtype"]))
        for name, entry in header.items()
        if name != "__metadata__"
    ]


def group_tensors(tensors: Iterable[Tensor], *, layers: int, is_tied: bool) -> list[TensorGroup]:
    """Sum up what vLLM loads: no output matrix that is tied, no layers for speculation."""
    sums: dict[tuple[Part, bool, bool], tuple[int, int]] = {}
    for tensor in tensors:
        in_other = _OTHER_TOWER.search(tensor.name)
        layer = None if in_other else _LAYER.search(tensor.name)
        if _NOT_LOADED.search(tensor.name) or (layer and int(layer[1]) >= layers > 0):
            continue
        part = part_of(tensor)
        if part is Part.HEAD and is_tied:
            continue
        is_float = tensor.dtype in _FLOATS and not _SCALE.search(tensor.name)
        elements = math.prod(tensor.shape) * tensor.copies
        key = (part, layer is not None, is_float)
        known = sums.get(key, (0, 0))
        size = elements * _DTYPE_BITS.get(tensor.dtype, 16) // 8
        sums[key] = (known[0] + elements, known[1] + size)
    return [
        TensorGroup(
            part=part, in_layers=in_layers, is_float=is_float, elements=elements, stored_bytes=size
        )
        for (part, in_layers, is_float), (elements, size) in sorted(sums.items())
    ]


def stored_bytes(tensors: Iterable[Tensor]) -> int:
    """Of all tensors, as the files of the checkpoint hold them."""
    return sum(
        math.prod(tensor.shape) * tensor.copies * _DTYPE_BITS.get(tensor.dtype, 16) // 8
        for tensor in tensors
    )


def part_of(tensor: Tensor) -> Part:
    """What the name and the shape say about how ranks share it."""
    name = tensor.name
    if len(tensor.shape) < 2 and not _EXPERTS.search(name):
        return Part.WHOLE
    for pattern, part in (
        (_HEAD, Part.HEAD),
        (_EXPERTS, Part.EXPERTS),
        (_WHOLE, Part.WHOLE),
        (_EMBEDDING, Part.EMBEDDING),
        (_KEYS_VALUES, Part.KEYS_VALUES),
        (_FUSED, Part.FUSED),
    ):
        if pattern.search(name):
            return part
    return Part.LINEAR
