"""Sizes that follow from a config against those that were published.

Configs: the dimensions in config.json of each model on the Hugging Face hub. Sizes: `total_size`
of its model.safetensors.index.json, or the parameters of its model card times their bytes.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from appliance.estimate.estimator import estimate
from appliance.estimate.options import read_options
from appliance.estimate.weights import weight_bytes
from appliance.protocol.devices import DeviceKind
from appliance.protocol.models import ModelSettings, Task
from appliance.registry.facts import ModelFacts, facts_from_config
from appliance.units import GIB


def config(
    model_type: str, layers: int, hidden: int, heads: int, kv_heads: int, inner: int, words: int,
    **more: object,
) -> dict[str, Any]:  # fmt: skip
    return {
        "model_type": model_type,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": inner,
        "vocab_size": words,
        "torch_dtype": "bfloat16",
        **more,
    }


TIED = {"tie_word_embeddings": True}
HALF = {"torch_dtype": "float16"}
SIGLIP = {
    "hidden_size": 1152, "image_size": 896, "intermediate_size": 4304, "num_hidden_layers": 27,
    "patch_size": 14,
}  # fmt: skip


def gemma_3(layers: int, hidden: int, inner: int, **more: object) -> dict[str, Any]:
    text = {
        "model_type": "gemma3_text", "num_hidden_layers": layers, "hidden_size": hidden,
        "intermediate_size": inner, **more,
    }  # fmt: skip
    return {
        "model_type": "gemma3",
        "torch_dtype": "bfloat16",
        "text_config": text,
        "vision_config": SIGLIP,
    }


def bert(layers: int, hidden: int, heads: int, inner: int) -> dict[str, Any]:
    return {
        **config("bert", layers, hidden, heads, heads, inner, 30_522),
        "architectures": ["BertModel"],
        "torch_dtype": "float32",
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
    }


def quantized(method: str, **more: object) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": method, **more}}


def compressed(bits: int, kind: str, group: int | None) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": kind, "group_size": group, "symmetric": True}
    return quantized("compressed-tensors", config_groups={"group_0": {"weights": weights}})


INT4 = {"bits": 4, "group_size": 128}
LLAMA_8B = ("llama", 32, 4096, 32, 8, 14_336, 128_256)
QWEN_2_5_7B = ("qwen2", 28, 3584, 28, 4, 18_944, 152_064)
GPT_OSS = {
    "head_dim": 64, "attention_bias": True, "num_experts_per_tok": 4, "tie_word_embeddings": False,
    "max_position_embeddings": 131_072, "rope_theta": 150_000, **quantized("mxfp4"),
}  # fmt: skip


@dataclass(frozen=True)
class Published:
    """Bytes of a checkpoint, and what of them is not loaded."""

    config: dict[str, Any] = field(repr=False)
    stored: float
    parameters: float | None = None


MODELS = {
    # The reference models.
    "gemma-3-12b-it": Published(
        gemma_3(48, 3840, 15_360, num_attention_heads=16, num_key_value_heads=8), 2 * 12_187_325_040
    ),
    "gpt-oss-20b": Published(
        config("gpt_oss", 24, 2880, 64, 8, 2880, 201_088, num_local_experts=32, **GPT_OSS),
        13_761_264_768,
    ),
    "Mistral-7B-Instruct-v0.1": Published(
        config("mistral", 32, 4096, 32, 8, 14_336, 32_000), 14_483_464_192
    ),
    "Mistral-7B-Instruct-v0.3": Published(
        config("mistral", 32, 4096, 32, 8, 14_336, 32_768), 14_496_047_104
    ),
    "Qwen2.5-14B-Instruct": Published(
        config("qwen2", 48, 5120, 40, 8, 13_824, 152_064), 29_540_067_328
    ),
    "Llama-3.1-8B-Instruct": Published(config(*LLAMA_8B), 16_060_522_496),
    "Meta-Llama-3-70B-Instruct": Published(
        config("llama", 80, 8192, 64, 8, 28_672, 128_256), 141_107_412_992
    ),
    "TinyLlama-1.1B-Chat-v1.0": Published(
        config("llama", 22, 2048, 32, 4, 5632, 32_000), 2 * 1_100_048_384
    ),
    "nomic-embed-text-v1.5": Published(
        {
            "architectures": ["NomicBertModel"], "model_type": "nomic_bert", "n_embd": 768,
            "n_layer": 12, "n_head": 12,
            "n_inner": 3072, "vocab_size": 30_528, "type_vocab_size": 2, "torch_dtype": "float32",
        },
        4 * 136_731_648,
    ),
    # Dense.
    "SmolLM2-135M": Published(
        config("llama", 30, 576, 9, 3, 1536, 49_152, **TIED), 2 * 134_515_008
    ),
    "Llama-2-7b": Published(config("llama", 32, 4096, 32, 32, 11_008, 32_000), 13_476_831_232),
    "Llama-3.2-1B": Published(
        config("llama", 16, 2048, 32, 8, 8192, 128_256, **TIED), 2 * 1_235_814_400
    ),
    "Llama-3.2-3B": Published(
        config("llama", 28, 3072, 24, 8, 8192, 128_256, **TIED), 6_425_499_648
    ),
    "Qwen2.5-0.5B": Published(
        config("qwen2", 24, 896, 14, 2, 4864, 151_936, **TIED), 2 * 494_032_768
    ),
    "Qwen2.5-7B": Published(config(*QWEN_2_5_7B), 15_231_233_024),
    "Qwen2.5-32B": Published(config("qwen2", 64, 5120, 40, 8, 27_648, 152_064), 65_527_752_704),
    "Qwen2.5-72B": Published(config("qwen2", 80, 8192, 64, 8, 29_568, 152_064), 145_412_407_296),
    "Qwen3-4B": Published(
        config("qwen3", 36, 2560, 32, 8, 9728, 151_936, head_dim=128, **TIED), 8_044_936_192
    ),
    "Qwen3-8B": Published(
        config("qwen3", 36, 4096, 32, 8, 12_288, 151_936, head_dim=128), 16_381_470_720
    ),
    "Qwen3-32B": Published(
        config("qwen3", 64, 5120, 64, 8, 25_600, 151_936, head_dim=128), 65_524_246_528
    ),
    "gemma-2-9b": Published(
        config("gemma2", 42, 3584, 16, 8, 14_336, 256_000, head_dim=256), 18_483_411_968
    ),
    "gemma-3-1b-it": Published(
        config("gemma3_text", 26, 1152, 4, 1, 6912, 262_144, head_dim=256), 2 * 999_885_952
    ),
    "gemma-3-4b-it": Published(gemma_3(34, 2560, 10_240), 8_600_158_944),
    "gemma-3-27b-it": Published(
        gemma_3(
            62, 5376, 21_504, num_attention_heads=32, num_key_value_heads=16, head_dim=128
        ),
        54_864_813_280,
    ),
    "Phi-3-mini-4k-instruct": Published(
        config("phi3", 32, 3072, 32, 32, 8192, 32_064), 7_642_159_104
    ),
    "phi-4": Published(config("phi3", 40, 5120, 40, 10, 17_920, 100_352), 29_319_014_400),
    # Experts.
    "Mixtral-8x7B-v0.1": Published(
        config("mixtral", 32, 4096, 32, 8, 14_336, 32_000, num_local_experts=8), 93_405_585_408
    ),
    "Qwen1.5-MoE-A2.7B": Published(
        config(
            "qwen2_moe", 24, 2048, 16, 16, 5632, 151_936, num_experts=60,
            moe_intermediate_size=1408, shared_expert_intermediate_size=5632,
            decoder_sparse_step=1,
        ),
        28_631_568_384,
    ),
    "Qwen3-30B-A3B": Published(
        config(
            "qwen3_moe", 48, 2048, 32, 4, 6144, 151_936, head_dim=128, num_experts=128,
            moe_intermediate_size=768, decoder_sparse_step=1,
        ),
        61_064_245_248,
    ),
    "gpt-oss-120b": Published(
        config("gpt_oss", 36, 2880, 64, 8, 2880, 201_088, num_local_experts=128, **GPT_OSS),
        65_248_815_744,
    ),
    "DeepSeek-V2-Lite": Published(
        config(
            "deepseek_v2", 27, 2048, 16, 16, 10_944, 102_400, kv_lora_rank=512,
            qk_rope_head_dim=64, qk_nope_head_dim=128, v_head_dim=128, n_routed_experts=64,
            n_shared_experts=2, moe_intermediate_size=1408, first_k_dense_replace=1,
            moe_layer_freq=1,
        ),
        31_412_968_448,
    ),
    # 671 billion parameters without the layer for speculation, which vLLM does not load.
    "DeepSeek-V3": Published(
        config(
            "deepseek_v3", 61, 7168, 128, 128, 18_432, 129_280, kv_lora_rank=512,
            q_lora_rank=1536, qk_rope_head_dim=64, qk_nope_head_dim=128, v_head_dim=128,
            n_routed_experts=256, n_shared_experts=1, moe_intermediate_size=2048,
            first_k_dense_replace=3, moe_layer_freq=1, topk_method="noaux_tc",
            **quantized("fp8", weight_block_size=[128, 128]),
        ),
        671_026_419_200,
    ),
    # Recurrent layers.
    "Jamba-v0.1": Published(
        config(
            "jamba", 32, 4096, 32, 8, 14_336, 65_536, attn_layer_offset=4, attn_layer_period=8,
            mamba_d_conv=4, mamba_d_state=16, mamba_expand=2, mamba_dt_rank=256, num_experts=16,
            expert_layer_period=2, expert_layer_offset=1,
        ),
        2 * 51_570_323_328,
    ),
    "granite-4.0-h-small": Published(
        config(
            "granitemoehybrid", 40, 4096, 32, 8, 768, 100_352, mamba_d_conv=4, mamba_d_head=64,
            mamba_d_state=128, mamba_expand=2, mamba_n_groups=1, mamba_n_heads=128,
            num_local_experts=72, shared_intermediate_size=1536, **TIED,
            layer_types=["attention" if layer % 10 == 5 else "mamba" for layer in range(40)],
        ),
        2 * 32.2e9,
    ),
    "Nemotron-H-8B": Published(
        config(
            "nemotron_h", 52, 4096, 32, 8, 21_504, 131_072, head_dim=128, conv_kernel=4,
            ssm_state_size=128, n_groups=8, mamba_num_heads=128, mamba_head_dim=64,
            hybrid_override_pattern="M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-",
        ),
        2 * 8.1e9,
    ),
    "Qwen3-Next-80B-A3B": Published(
        config(
            "qwen3_next", 48, 2048, 16, 2, 5120, 151_936, head_dim=256, num_experts=512,
            moe_intermediate_size=512, shared_expert_intermediate_size=512,
            decoder_sparse_step=1, full_attention_interval=4, linear_conv_kernel_dim=4,
            linear_key_head_dim=128, linear_num_key_heads=16, linear_num_value_heads=32,
            linear_value_head_dim=128,
        ),
        2 * 79.67e9,
    ),
    # Quantized: the sizes of the files on the hub, to the digits it shows.
    "Qwen2.5-7B-Instruct-AWQ": Published(
        config(*QWEN_2_5_7B, **HALF, **quantized("awq", **INT4)), 5.57e9
    ),
    "Qwen2.5-7B-Instruct-GPTQ-Int4": Published(
        config(*QWEN_2_5_7B, **HALF, **quantized("gptq", **INT4)), 5.58e9
    ),
    "Llama-3.1-8B-Instruct-AWQ-INT4": Published(
        config(*LLAMA_8B, **HALF, **quantized("awq", **INT4)), 5.73e9
    ),
    "Llama-3.1-8B-Instruct-quantized.w4a16": Published(
        config(*LLAMA_8B, **compressed(4, "int", 128)), 5.70e9
    ),
    "Llama-3.1-8B-Instruct-FP8": Published(
        config(*LLAMA_8B, **compressed(8, "float", None)), 9.08e9
    ),
    "Llama-3.1-8B-Instruct-bnb-4bit": Published(
        config(
            *LLAMA_8B,
            **quantized("bitsandbytes", load_in_4bit=True, bnb_4bit_use_double_quant=True),
        ),
        5.70e9,
    ),
    # Encoders.
    "all-MiniLM-L6-v2": Published(bert(6, 384, 12, 1536), 4 * 22_713_216),
    "bge-large-en-v1.5": Published(bert(24, 1024, 16, 4096), 4 * 335_141_888),
}  # fmt: skip


def facts_of(name: str) -> ModelFacts:
    return facts_from_config(MODELS[name].config)


@pytest.mark.parametrize("name", MODELS)
def test_checkpoint_is_as_large_as_published(name: str) -> None:
    assert facts_of(name).weights_bytes == pytest.approx(MODELS[name].stored, rel=0.02)


def loaded_gib(name: str, tp_size: int = 1, **settings: Any) -> float:
    facts = facts_of(name)
    chosen = ModelSettings(path="/m", task=facts.task, tp_size=tp_size, **settings)
    options = read_options(facts, chosen, DeviceKind.GPU)
    return weight_bytes(facts, options, DeviceKind.GPU) / GIB


# "Model loading took ... GiB" in logs of vLLM that its users have posted: for Llama 3 8B in
# vllm-project/vllm pull 10511, Llama 3.1 8B in 17122, gpt-oss-120b on an H100 in issue 23278.
@pytest.mark.parametrize(
    ("name", "tp_size", "logged"),
    [
        ("Llama-3.1-8B-Instruct", 1, 14.9889),
        ("Llama-3.1-8B-Instruct", 2, 7.48),
        ("gpt-oss-120b", 1, 65.9651),
    ],
)
def test_rank_loads_what_was_logged(name: str, tp_size: int, logged: float) -> None:
    assert loaded_gib(name, tp_size) == pytest.approx(logged, rel=0.01)


@pytest.mark.parametrize(
    ("argument", "element"), [("--quantization=fp8", 1), ("--quantization=bitsandbytes", 0.5625)]
)
def test_matrices_shrink_that_are_quantized_while_loading(argument: str, element: float) -> None:
    """Of Llama 3.1 8B all but the embedding, the output matrix and the norms."""
    words = 2 * 128_256 * 4096
    norms = 65 * 4096
    expected = 2 * (words + norms) + element * (16_060_522_496 / 2 - words - norms)
    assert loaded_gib("Llama-3.1-8B-Instruct", extra_args=[argument]) * GIB == pytest.approx(
        expected, rel=0.005
    )
    # What is quantized already stays as it is.
    quantized = "Llama-3.1-8B-Instruct-AWQ-INT4"
    assert loaded_gib(quantized, extra_args=[argument]) == loaded_gib(quantized)


@pytest.mark.parametrize("name", MODELS)
def test_ranks_hold_no_less_than_the_whole_and_less_than_twice(name: str) -> None:
    whole, rank = loaded_gib(name), loaded_gib(name, 2)
    assert whole <= rank * 2 * 1.0001
    assert rank < whole * 0.75


@pytest.mark.parametrize("name", MODELS)
def test_stages_share_the_layers(name: str) -> None:
    whole = loaded_gib(name)
    stage = loaded_gib(name, extra_args=["--pipeline-parallel-size", "3"])
    assert whole / 3 <= stage < whole


def test_float32_encoders_are_halved_unless_it_is_wanted() -> None:
    assert loaded_gib("bge-large-en-v1.5") * GIB == pytest.approx(2 * 335_141_888, rel=0.01)
    whole = loaded_gib("bge-large-en-v1.5", dtype="float32")
    assert whole == pytest.approx(2 * loaded_gib("bge-large-en-v1.5"), rel=0.01)


@pytest.mark.parametrize("name", MODELS)
def test_estimate_of_each_model_has_all_its_parts(name: str) -> None:
    facts = facts_of(name)
    settings = ModelSettings(path="/m", task=facts.task)
    wanted = estimate(facts, settings, 4096, DeviceKind.GPU, device_bytes=24 * GIB)
    assert (wanted.kv_cache_bytes == 0) == (facts.task is Task.EMBED)
    assert min(wanted.weights_bytes, wanted.activations_bytes, wanted.graphs_bytes) > 0
    assert 0 < wanted.margin_ratio < 0.5


@pytest.mark.parametrize("name", MODELS)
def test_names_of_the_config_are_the_only_source(name: str, tmp_path: Path) -> None:
    """It survives the way through a file."""
    file = tmp_path / "config.json"
    file.write_text(json.dumps(MODELS[name].config))
    assert facts_from_config(json.loads(file.read_text())) == facts_of(name)
