"""What an engine needs besides weights and KV cache: activations, CUDA graphs, the context. Pure.

The shapes follow from the model; the factors are fitted to what vLLM logs, see docs/estimate.md.
"""

from appliance.estimate.options import EngineOptions, dtype_bytes
from appliance.protocol.devices import DeviceKind
from appliance.protocol.models import Task
from appliance.registry.facts import ModelFacts
from appliance.units import GIB, KIB, MIB

# Private memory of a vLLM 0.32 CPU engine without weights and KV cache: API server and engine
# core about 0.9 GiB, worker about 0.2 GiB.
_CPU_BYTES = int(1.15 * GIB)
# CUDA context with kernels and the workspaces of cuBLAS; communication buffers of NCCL.
_CONTEXT_BYTES = 640 * MIB
_LINK_BYTES = 1 * GIB
# Logits in 16 bits and float32, sorted, their 64-bit indices, probabilities, sums, masks.
_SAMPLER_BYTES_PER_LOGIT = 41
# vLLM captures sequences x 2, at most 512 tokens, in steps of 8 and 16 (config/vllm.py).
_MOST_CAPTURED = 512
_GRAPH_BYTES_PER_LAYER = 320 * KIB
_LEAST_ACTIVATION_BYTES = 64 * MIB


def context_bytes(options: EngineOptions, kind: DeviceKind) -> int:
    """Taken by the processes themselves, whatever the model."""
    if kind is not DeviceKind.GPU:
        return _CPU_BYTES
    return _CONTEXT_BYTES + (_LINK_BYTES if options.tp_size * options.pp_size > 1 else 0)


def activation_bytes(
    facts: ModelFacts, task: Task, options: EngineOptions, kind: DeviceKind
) -> int:
    """The largest step or the sampler's work, whichever is more; 0 on the CPU, in its fixed part.

    vLLM runs both once before it is ready (gpu_model_runner.py: profile_run, _dummy_sampler_run).
    """
    if kind is not DeviceKind.GPU:
        return 0
    sampler = 0
    if task is not Task.EMBED:
        sampler = options.sequences * facts.vocabulary * _SAMPLER_BYTES_PER_LOGIT
    return max(_step_bytes(facts, options), sampler, _LEAST_ACTIVATION_BYTES)


def _step_bytes(facts: ModelFacts, options: EngineOptions) -> int:
    """Residual, input and output of a layer, and the widest that is between them.

    Gate, up and their product in an MLP or in all the experts of a token; queries, keys, values
    and the output in attention.
    """
    ranks = options.tp_size
    mlp = 3 * max(facts.mlp_sizes, default=4 * facts.hidden)
    if facts.active_experts:
        mlp = max(mlp, facts.active_experts * (3 * min(facts.mlp_sizes, default=0) + facts.hidden))
    attention = 2 * (facts.heads + max(facts.kv_heads, ranks)) * facts.head_size
    width = 4 * facts.hidden + -(-max(mlp, attention) // ranks)
    return options.step_tokens * width * (dtype_bytes(options.dtype) or 2)


def graph_bytes(facts: ModelFacts, options: EngineOptions) -> int:
    """For each size that is captured, a graph of each layer."""
    if options.is_eager:
        return 0
    most = min(2 * options.sequences, _MOST_CAPTURED)
    captured = 3 + most // 8 if most <= _MOST_CAPTURED // 2 else 19 + most // 16
    layers = -(-facts.layers // options.pp_size)
    return captured * layers * _GRAPH_BYTES_PER_LAYER
