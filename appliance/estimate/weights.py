"""What a rank holds of the weights. Pure.

A rank of tensor parallelism has a slice of each matrix ("Megatron-LM", Shoeybi et al., 2019,
section 3), and the small tensors whole; a stage of pipeline parallelism has some of the layers.
"""

from math import gcd

from appliance.estimate.options import EngineOptions, dtype_bytes
from appliance.protocol.devices import DeviceKind
from appliance.registry.facts import ModelFacts
from appliance.registry.facts_tensors import Part, TensorGroup

# vLLM: vocab_parallel_embedding.py.
VOCABULARY_STEP = 64
_IN_FLIGHT = {Part.LINEAR, Part.KEYS_VALUES, Part.FUSED, Part.EXPERTS}
# Bytes of an element quantized while loading. NF4 of bitsandbytes has half a byte, and a float32
# to a block of 64 elements ("QLoRA", Dettmers et al., 2023, section 3; vLLM undoes its second
# quantization).
_IN_FLIGHT_BYTES = {"fp8": 1.0, "bitsandbytes": 0.5 + 4 / 64}
# Steps that MXFP4 kernels fill the hidden and the inner size up to (vLLM: oracle/mxfp4.py).
_MXFP4_GPU_STEPS = (256, 128)
_MXFP4_CPU_STEPS = (32, 32)


def weight_bytes(facts: ModelFacts, options: EngineOptions, kind: DeviceKind) -> int:
    """Parameters and the table of positions on the fullest rank.

    Of the stages of a pipeline the first has the embedding, the last one the output matrix.
    """
    if not facts.tensors:
        return _by_number_format(facts, options)
    layers = embedding = head = other = 0
    for group in facts.tensors:
        size = _rank_bytes(group, facts, options, kind)
        if group.in_layers:
            layers += size
        elif group.part is Part.EMBEDDING:
            embedding += size
        elif group.part is Part.HEAD:
            head += size
        else:
            other += size
    positions = facts.rotary_elements * (dtype_bytes(options.dtype) or 2)
    if options.pp_size == 1:
        return layers + embedding + head + other + positions
    stage = layers * -(-facts.layers // options.pp_size) // max(facts.layers, 1)
    return stage + max(embedding + other, head or embedding) + positions


def _by_number_format(facts: ModelFacts, options: EngineOptions) -> int:
    """Nothing is known but the size of the files."""
    weights = facts.weights_bytes
    loaded, stored = dtype_bytes(options.dtype), dtype_bytes(facts.dtype)
    if loaded and stored:
        weights = weights * loaded // stored
    return weights // (options.tp_size * options.pp_size)


def _rank_bytes(
    group: TensorGroup, facts: ModelFacts, options: EngineOptions, kind: DeviceKind
) -> int:
    size = float(group.stored_bytes)
    if group.is_float:
        element = float(dtype_bytes(options.dtype) or 2)
        if group.part in _IN_FLIGHT and options.quantization:
            element = _IN_FLIGHT_BYTES.get(options.quantization, element)
        size = group.elements * element
    return int(size * _share(group.part, facts, options, kind))


def _share(part: Part, facts: ModelFacts, options: EngineOptions, kind: DeviceKind) -> float:
    """Of a group's bytes, what one rank holds."""
    ranks = options.tp_size
    kv_share = max(1 / facts.kv_heads, 1 / ranks) if facts.kv_heads else 1 / ranks
    match part:
        case Part.WHOLE:
            return 1.0
        case Part.EMBEDDING | Part.HEAD:
            padded = _ceil(facts.vocabulary, VOCABULARY_STEP)
            return padded / facts.vocabulary / ranks if facts.vocabulary else 1 / ranks
        case Part.KEYS_VALUES:
            return kv_share
        case Part.FUSED:
            own = facts.heads / ranks + 2 * facts.kv_heads * kv_share
            return own / (facts.heads + 2 * facts.kv_heads)
        case Part.EXPERTS if facts.quantization and facts.quantization.method == "mxfp4":
            return _padding(facts, ranks, kind) / ranks
        case _:
            return 1 / ranks


def _padding(facts: ModelFacts, ranks: int, kind: DeviceKind) -> float:
    """How much larger MXFP4 experts are once they are filled up."""
    hidden_step, inner_step = _MXFP4_GPU_STEPS if kind is DeviceKind.GPU else _MXFP4_CPU_STEPS
    inner = min(facts.mlp_sizes, default=0)
    if not (inner and facts.hidden):
        return 1.0
    filled = _ceil(facts.hidden, hidden_step) * _ceil(-(-inner // ranks), inner_step) * ranks
    return filled / (facts.hidden * inner)


def _ceil(number: int, step: int) -> int:
    return -(-number // step) * step


def tp_problem(facts: ModelFacts, tp_size: int) -> str | None:
    """Why vLLM does not split this model so many ways; None if it does.

    Heads: config/model.py, verify_with_parallel_config. KV heads: linear.py, QKVParallelLinear.
    Vocabulary: vocab_parallel_embedding.py. Inner sizes and groups: linear.py, marlin_utils.py
    (verify_marlin_supports_shape), fp8_utils.py (validate_fp8_block_shape).
    """
    if tp_size == 1:
        return None
    padded = _ceil(facts.vocabulary, VOCABULARY_STEP)
    whole = [("attention heads", facts.heads), ("words of the padded vocabulary", padded)]
    whole += [("inner values of its MLP", size) for size in facts.mlp_sizes]
    whole += [("heads of its recurrent layers", size) for size in facts.state_heads]
    for what, count in whole:
        if count % tp_size:
            return f"its {count} {what} cannot be split evenly over {tp_size} devices"
    kv_heads = facts.kv_heads
    if not facts.kv.latent_size and gcd(kv_heads, tp_size) != min(kv_heads, tp_size):
        return f"its {kv_heads} KV heads can neither be split over {tp_size} devices nor copied"
    return _group_problem(facts, tp_size)


def _group_problem(facts: ModelFacts, tp_size: int) -> str | None:
    """Input values that share a scale have to stay together; MXFP4 is filled up instead."""
    quantization = facts.quantization
    if quantization is None or quantization.method == "mxfp4" or not quantization.group_size:
        return None
    attention = () if facts.kv.latent_size else (facts.heads * facts.head_size,)
    for size in (*facts.mlp_sizes, *attention):
        if size // tp_size % quantization.group_size:
            return (
                f"its quantization keeps {quantization.group_size} values together, and"
                f" {size} of them over {tp_size} devices would break that"
            )
    return None


def possible_tp_sizes(facts: ModelFacts, most: int) -> list[int]:
    """Ways to split the model, ascending, up to so many devices; 1 is always among them."""
    return [size for size in range(1, max(most, 1) + 1) if tp_problem(facts, size) is None]
