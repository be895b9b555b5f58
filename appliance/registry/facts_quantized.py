"""How quantization stores the matrices of a model, from `quantization_config`. Pure."""

import math
from collections.abc import Iterable
from typing import Any

import msgspec

from appliance.registry.facts_config import number
from appliance.registry.facts_tensors import Part, Tensor, part_of

_MATRICES = {Part.LINEAR, Part.KEYS_VALUES, Part.FUSED, Part.EXPERTS}
_LEFT_ALONE = ("vision", "visual", "multi_modal", "conv1d", "A_log")
_USUAL_GROUP = 128
_INT32_BITS = 32
# Microscaling formats have 32 elements to a scale of a byte: OCP "Microscaling Formats (MX)
# Specification" 1.0; NVFP4 has 16.
_MX_GROUP = 32
_NV_GROUP = 16
# bitsandbytes: elements to one absolute maximum, and maxima to one of theirs.
_BNB_BLOCK = 64
_BNB_NESTED = 256


class Quantization(msgspec.Struct, frozen=True, kw_only=True):
    """The format of the large matrices. `method` is the word of `quant_method` in the config."""

    method: str
    bits: int
    group_size: int
    """Input elements that share a scale; 0: a scale for each row or for all."""


def read_quantization(settings: object) -> Quantization | None:
    """From `quantization_config`; None where it is absent or does not say its method."""
    if not isinstance(settings, dict) or not settings.get("quant_method"):
        return None
    method = str(settings["quant_method"]).lower()
    weights = _weights_of(settings)
    bits = number(weights, "num_bits", "bits", "w_bit")
    group = number(weights, "group_size", "q_group_size")
    block = weights.get("weight_block_size")
    if isinstance(block, list) and block:
        group = int(block[-1])
    if method == "mxfp4":
        bits, group = 4, _MX_GROUP
    elif method == "bitsandbytes":
        bits = 8 if settings.get("load_in_8bit") else 4
    elif "fp8" in method:
        bits = 8
    return Quantization(method=method, bits=bits or 4, group_size=max(group, 0))


def _weights_of(settings: dict[str, Any]) -> dict[str, Any]:
    """compressed-tensors and ModelOpt have groups of layers; the first one counts."""
    groups = settings.get("config_groups")
    if not isinstance(groups, dict):
        return settings
    first = next((group for group in groups.values() if isinstance(group, dict)), {})
    weights = first.get("weights")
    return weights if isinstance(weights, dict) else settings


def quantized(tensors: Iterable[Tensor], settings: dict[str, Any]) -> list[Tensor]:
    """The tensors as a checkpoint with these settings stores them; unknown methods change none."""
    quantization = read_quantization(settings)
    if quantization is None:
        return list(tensors)
    found: list[Tensor] = []
    for tensor in tensors:
        found += _stored(tensor, quantization, settings) if _is_matrix(tensor) else [tensor]
    return found


def _is_matrix(tensor: Tensor) -> bool:
    is_left_alone = any(word in tensor.name for word in _LEFT_ALONE)
    is_small = len(tensor.shape) < 2 or "bias" in tensor.name
    is_latent = "_a_proj" in tensor.name
    return (part_of(tensor) in _MATRICES or is_latent) and not is_small and not is_left_alone


def _stored(tensor: Tensor, format_: Quantization, settings: dict[str, Any]) -> list[Tensor]:
    if format_.method == "mxfp4":
        if part_of(tensor) is not Part.EXPERTS:
            return [tensor]
        return _blocks(tensor, _MX_GROUP)
    if format_.method in {"awq", "gptq"}:
        has_zeros = True
        return _packed(tensor, format_, has_zeros=has_zeros, has_order=format_.method == "gptq")
    if format_.method == "bitsandbytes":
        return _bitsandbytes(tensor, format_, settings)
    if format_.method.startswith("modelopt") and format_.bits == 4:
        return _blocks(tensor, _NV_GROUP)
    if format_.method == "compressed-tensors":
        weights = _weights_of(settings)
        if format_.bits < 8:
            return _packed(tensor, format_, has_zeros=weights.get("symmetric") is False)
        return _bytes(tensor, format_)
    if "fp8" in format_.method:
        return _bytes(tensor, format_)
    return [tensor]


def _blocks(tensor: Tensor, group: int) -> list[Tensor]:
    """Two elements to a byte, and a byte for the scale of each block."""
    *rows, inner = tensor.shape
    return [
        tensor._replace(name=f"{tensor.name}_blocks", shape=(*rows, inner // 2), dtype="U8"),
        tensor._replace(name=f"{tensor.name}_scales", shape=(*rows, inner // group), dtype="U8"),
    ]


def _packed(
    tensor: Tensor, format_: Quantization, *, has_zeros: bool, has_order: bool = False
) -> list[Tensor]:
    """Integers packed into int32, a scale of 16 bits to a group, perhaps a zero point each.

    AWQ, GPTQ and compressed-tensors (vLLM: auto_awq.py, auto_gptq.py,
    compressed_tensors_wNa16.py).
    """
    *rows, inner = tensor.shape
    packed = max(_INT32_BITS // format_.bits, 1)
    groups = -(-inner // (format_.group_size or _USUAL_GROUP))
    found = [
        tensor._replace(name=f"{tensor.name}.qweight", shape=(*rows, inner // packed), dtype="I32"),
        tensor._replace(name=f"{tensor.name}.scales", shape=(*rows, groups)),
    ]
    if has_zeros:
        shape = (*rows[:-1], -(-rows[-1] // packed), groups)
        found.append(tensor._replace(name=f"{tensor.name}.qzeros", shape=shape, dtype="I32"))
    if has_order:
        found.append(tensor._replace(name=f"{tensor.name}.g_idx", shape=(inner,), dtype="I32"))
    return found


def _bytes(tensor: Tensor, format_: Quantization) -> list[Tensor]:
    """A byte for each element; scales for blocks of both directions, or one for each row."""
    *rows, inner = tensor.shape
    block = format_.group_size
    shape = (*rows[:-1], -(-rows[-1] // block), -(-inner // block)) if block else (*rows, 1)
    return [
        tensor._replace(dtype="F8_E4M3"),
        tensor._replace(name=f"{tensor.name}_scale_inv", shape=shape, dtype="F32"),
    ]


def _bitsandbytes(tensor: Tensor, format_: Quantization, settings: dict[str, Any]) -> list[Tensor]:
    elements = math.prod(tensor.shape)
    if format_.bits == 8:
        return _bytes(tensor, Quantization(method="int8", bits=8, group_size=0))
    maxima = elements // _BNB_BLOCK
    found = [tensor._replace(shape=(elements // 2, 1), dtype="U8")]
    if settings.get("bnb_4bit_use_double_quant"):
        name = f"{tensor.name}.absmax"
        found.append(tensor._replace(name=name, shape=(maxima, 1), dtype="U8"))
        maxima //= _BNB_NESTED
    name = f"{tensor.name}.nested_absmax"
    return [*found, tensor._replace(name=name, shape=(maxima, 1), dtype="F32")]
