"""Dimensions are those of the config.json of each model on the Hugging Face hub."""

import json
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.estimate.estimator import kv_budget
from appliance.estimate.kv_cache import (
    Split,
    kv_bytes,
    kv_bytes_per_token,
    least_bytes,
    state_bytes_per_sequence,
)
from appliance.protocol.devices import DeviceKind
from appliance.protocol.models import ModelSettings, Task
from appliance.registry.facts import ModelFacts, read_facts
from appliance.registry.facts_kv import KvLayout


def config(layers: int, heads: int, kv_heads: int, head_size: int, **more: object) -> object:
    dimensions = {
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "hidden_size": heads * head_size,
        "head_dim": head_size,
        "dtype": "bfloat16",
    }
    return {**dimensions, **more}


DEEPSEEK_V3 = config(
    61, 128, 128, 56, model_type="deepseek_v3", kv_lora_rank=512, qk_rope_head_dim=64, head_dim=None
)
DEEPSEEK_V2_LITE = config(
    27, 16, 16, 128, model_type="deepseek_v2", kv_lora_rank=512, qk_rope_head_dim=64
)
GEMMA_2_9B = config(42, 16, 8, 256, model_type="gemma2", sliding_window=4096)
GEMMA_3_1B = config(26, 4, 1, 256, model_type="gemma3_text", sliding_window=512)
GEMMA_3_12B = {
    "model_type": "gemma3",
    "text_config": config(
        48, 16, 8, 256, model_type="gemma3_text", sliding_window=1024, sliding_window_pattern=6
    ),
}
GEMMA_3_27B = config(62, 32, 16, 128, model_type="gemma3_text", sliding_window=1024)
GPT_OSS_20B = config(
    24, 64, 8, 64, model_type="gpt_oss", hidden_size=2880, sliding_window=128,
    layer_types=["sliding_attention", "full_attention"] * 12,
)  # fmt: skip
GPT_OSS_120B = config(36, 64, 8, 64, model_type="gpt_oss", sliding_window=128)
MISTRAL_7B_V01 = config(32, 32, 8, 128, model_type="mistral", sliding_window=4096)
QWEN_3_NEXT = config(
    48, 16, 2, 256, model_type="qwen3_next", hidden_size=2048, full_attention_interval=4,
    linear_conv_kernel_dim=4, linear_key_head_dim=128, linear_num_key_heads=16,
    linear_num_value_heads=32, linear_value_head_dim=128,
)  # fmt: skip
JAMBA = config(
    32, 32, 8, 128, model_type="jamba", attn_layer_offset=4, attn_layer_period=8, mamba_d_conv=4,
    mamba_d_state=16, mamba_expand=2,
)  # fmt: skip
GRANITE_4_H_SMALL = config(
    40, 32, 8, 128, model_type="granitemoehybrid", mamba_d_conv=4, mamba_d_head=64,
    mamba_d_state=128, mamba_expand=2, mamba_n_groups=1, mamba_n_heads=128,
    layer_types=["attention" if layer % 10 == 5 else "mamba" for layer in range(40)],
)  # fmt: skip
NEMOTRON_H_8B = config(
    52, 32, 8, 128, model_type="nemotron_h", conv_kernel=4, ssm_state_size=128, n_groups=8,
    mamba_num_heads=128, mamba_head_dim=64,
    hybrid_override_pattern="M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-",
)  # fmt: skip
FALCON_7B = {
    "model_type": "falcon", "num_hidden_layers": 32, "num_attention_heads": 71,
    "hidden_size": 4544, "multi_query": True, "new_decoder_architecture": False,
    "torch_dtype": "bfloat16",
}  # fmt: skip
STARCODER = {
    "model_type": "gpt_bigcode", "n_layer": 40, "n_head": 48, "n_embd": 6144, "multi_query": True,
    "torch_dtype": "bfloat16",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Case:
    """Bytes in bfloat16: a token in all layers, one beyond the windows, the states."""

    config: object
    token: int
    beyond: int | None = None
    states: int = 0


CASES = {
    "Llama-2-7B": Case(config=config(32, 32, 32, 128), token=524_288),
    "Llama-3.1-8B": Case(config=config(32, 32, 8, 128), token=131_072),
    "Llama-3.1-70B": Case(config=config(80, 64, 8, 128), token=327_680),
    "Llama-3.2-1B": Case(config=config(16, 32, 8, 64), token=32_768),
    "SmolLM2-135M": Case(config=config(30, 9, 3, 64), token=23_040),
    "Qwen2.5-7B": Case(
        config=config(
            28, 28, 4, 128, model_type="qwen2", use_sliding_window=False, sliding_window=131_072
        ),
        token=57_344,
    ),
    "Qwen2.5-14B": Case(config=config(48, 40, 8, 128), token=196_608),
    "Qwen3-0.6B": Case(config=config(28, 16, 8, 128, hidden_size=1024), token=114_688),
    "Qwen3-30B-A3B": Case(config=config(48, 32, 4, 128, hidden_size=2048), token=98_304),
    "Mistral-7B-v0.1": Case(config=MISTRAL_7B_V01, token=131_072, beyond=0),
    "Mistral-7B-v0.3": Case(
        config=config(32, 32, 8, 128, model_type="mistral", sliding_window=None), token=131_072
    ),
    "Mixtral-8x7B-v0.1": Case(
        config=config(32, 32, 8, 128, model_type="mixtral", sliding_window=None), token=131_072
    ),
    "Phi-3-mini-4k": Case(
        config=config(32, 32, 32, 96, model_type="phi3", sliding_window=2047),
        token=393_216,
        beyond=0,
    ),
    "Falcon-7B": Case(config=FALCON_7B, token=8192),
    "StarCoder": Case(config=STARCODER, token=20_480),
    "DeepSeek-V3": Case(config=DEEPSEEK_V3, token=70_272),
    "DeepSeek-V2-Lite": Case(config=DEEPSEEK_V2_LITE, token=31_104),
    "Gemma-2-9B": Case(config=GEMMA_2_9B, token=344_064, beyond=172_032),
    "Gemma-3-1B": Case(config=GEMMA_3_1B, token=26_624, beyond=4096),
    "Gemma-3-12B": Case(config=GEMMA_3_12B, token=393_216, beyond=65_536),
    "Gemma-3-27B": Case(config=GEMMA_3_27B, token=507_904, beyond=81_920),
    "gpt-oss-20b": Case(config=GPT_OSS_20B, token=49_152, beyond=24_576),
    "gpt-oss-120b": Case(config=GPT_OSS_120B, token=73_728, beyond=36_864),
    "Jamba-v0.1": Case(config=JAMBA, token=16_384, states=28 * 622_592),
    "Qwen3-Next-80B-A3B": Case(config=QWEN_3_NEXT, token=24_576, states=36 * 2_195_456),
    "Granite-4.0-H-Small": Case(config=GRANITE_4_H_SMALL, token=16_384, states=36 * 4_295_680),
    "Nemotron-H-8B": Case(config=NEMOTRON_H_8B, token=16_384, states=24 * 4_317_184),
}


def facts(directory: Path, content: object) -> ModelFacts:
    (directory / "config.json").write_text(json.dumps(content))
    (directory / "model.safetensors").write_bytes(b"0")
    return read_facts(directory)


@pytest.mark.parametrize("name", CASES)
def test_well_known_models(tmp_path: Path, name: str) -> None:
    case, model = CASES[name], facts(tmp_path, CASES[name].config)
    assert kv_bytes_per_token(model, Split()) == case.token
    assert state_bytes_per_sequence(model, 1) == case.states
    short, long = (
        kv_bytes(model, Split(), context=length, sequences=1) for length in (100_000, 100_001)
    )
    assert long - short == (case.token if case.beyond is None else case.beyond)


@pytest.mark.parametrize(
    ("content", "split", "expected"),
    [
        (CASES["Llama-3.1-8B"].config, Split(kv_dtype="fp8"), 65_536),
        (CASES["Llama-3.1-8B"].config, Split(kv_dtype="fp8_e5m2", dtype="float32"), 65_536),
        (CASES["Llama-3.1-8B"].config, Split(kv_dtype="bfloat16", dtype="float32"), 131_072),
        (CASES["Llama-3.1-8B"].config, Split(kv_dtype="unheard-of"), 131_072),
        (CASES["Llama-3.1-8B"].config, Split(tp_size=8), 16_384),
        (CASES["Llama-3.1-8B"].config, Split(tp_size=16), 16_384),
        (CASES["Llama-3.1-8B"].config, Split(tp_size=3), 3 * 16_384),
        (DEEPSEEK_V3, Split(tp_size=8), 70_272),
        (DEEPSEEK_V3, Split(kv_dtype="fp8"), 35_136),
        (FALCON_7B, Split(tp_size=71), 8192),
    ],
)
def test_number_format_and_ranks(
    tmp_path: Path, content: object, split: Split, expected: int
) -> None:
    assert kv_bytes_per_token(facts(tmp_path, content), split) == expected


def test_states_are_split_over_the_ranks(tmp_path: Path) -> None:
    model = facts(tmp_path, QWEN_3_NEXT)
    assert state_bytes_per_sequence(model, 2) * 2 == state_bytes_per_sequence(model, 1)


# vLLM wants window - 1 + tokens in flight for one request, and fills up groups of layers.
def test_window_of_one_request_has_room_for_two_steps(tmp_path: Path) -> None:
    model = facts(tmp_path, GEMMA_3_27B)
    layer = 2 * 16 * 128 * 2
    need = layer * (10 * 131_072 + 60 * (1023 + 2 * 16_384))
    assert need <= kv_bytes(model, Split(), context=131_072, sequences=1) < need * 1.01


def test_windows_of_nearly_as_many_layers_are_filled_up(tmp_path: Path) -> None:
    kinds = ["sliding_attention"] * 8 + ["full_attention"] * 9
    model = facts(tmp_path, config(17, 8, 8, 64, sliding_window=64, layer_types=kinds))
    layer = 2 * 8 * 64 * 2
    assert kv_bytes(model, Split(), context=10, sequences=1) == layer * 18 * (10 + 256)


def test_each_sequence_of_a_model_with_states_has_a_block(tmp_path: Path) -> None:
    model = facts(tmp_path, QWEN_3_NEXT)
    assert least_bytes(model, Split(), sequences=255) >= 256 * 12 * 2_195_456
    gpu, cpu = (
        kv_budget(model, ModelSettings(path="/m", task=Task.GENERATE), 4096, kind)
        for kind in (DeviceKind.GPU, DeviceKind.CPU)
    )
    assert gpu == least_bytes(model, Split(), sequences=256)
    assert cpu == kv_bytes(model, Split(), context=4096, sequences=4) < gpu
    assert least_bytes(facts(tmp_path, GPT_OSS_20B), Split(), sequences=255) == 0


def budget(model: ModelFacts, *extra_args: str) -> int:
    settings = ModelSettings(
        path="/m", task=Task.GENERATE, max_sequences=4, extra_args=list(extra_args)
    )
    return kv_budget(model, settings, 131_072)


def test_budget_follows_the_options_of_the_engine(tmp_path: Path) -> None:
    model = facts(tmp_path, GPT_OSS_20B)
    plain = budget(model, "--seed", "1")
    assert plain == 24_576 * (2 * 256 + 4 * 131_072 + 4 * 128 + 2 * 16_384)
    assert budget(model, "--kv-cache-dtype", "fp8") * 2 == plain
    assert budget(model, "--kv_cache_dtype=fp8_e4m3") * 2 == plain
    assert budget(model, "--kv-cache-dtype") == plain
    small = budget(model, "--max-num-batched-tokens", "2048")
    assert plain - small == 24_576 * 2 * (16_384 - 2048)
    assert budget(model, "--max-num-batched-tokens", "9" * 5000) == plain
    whole = budget(model, "--disable-hybrid-kv-cache-manager")
    assert whole == 49_152 * (4 * 131_072 + 256)


NUMBERS = st.integers(0, 40)


@st.composite
def models(draw: st.DrawFn) -> ModelFacts:
    full, window, states, empty = (draw(NUMBERS) for _ in range(4))
    return ModelFacts(
        architecture="Any",
        task=Task.GENERATE,
        max_context=100_000,
        weights_bytes=1,
        layers=full + window + states + empty,
        heads=64,
        kv_heads=draw(st.integers(1, 64)),
        head_size=draw(st.integers(1, 256)),
        vocabulary=1,
        dtype="bfloat16",
        has_chat_template=False,
        kv=KvLayout(
            window_layers=window,
            window=draw(st.integers(1, 10_000)) if window else 0,
            state_layers=states,
            state_bytes=draw(st.integers(1, 10**7)) if states else 0,
            empty_layers=empty,
            latent_size=draw(st.sampled_from([0, 576])),
        ),
    )


CONTEXTS, SEQUENCES = st.integers(1, 200_000), st.integers(1, 300)


@given(models(), CONTEXTS, CONTEXTS, SEQUENCES, SEQUENCES)
def test_more_never_needs_less(
    model: ModelFacts, context: int, longer: int, few: int, more: int
) -> None:
    context, longer = sorted((context, longer))
    few, more = sorted((few, more))
    need = kv_bytes(model, Split(), context=context, sequences=few)
    assert need <= kv_bytes(model, Split(), context=longer, sequences=few)
    assert need <= kv_bytes(model, Split(), context=context, sequences=more)
    assert least_bytes(model, Split(), sequences=few) <= least_bytes(model, Split(), sequences=more)


@given(models(), CONTEXTS, SEQUENCES)
def test_window_never_costs_more_than_one_of_the_whole_context(
    model: ModelFacts, context: int, sequences: int
) -> None:
    wide = msgspec.structs.replace(model.kv, window=context if model.kv.window_layers else 0)
    whole = msgspec.structs.replace(model, kv=wide)
    need = kv_bytes(model, Split(), context=context, sequences=sequences)
    if model.kv.window <= context:
        assert need <= kv_bytes(whole, Split(), context=context, sequences=sequences)
    else:
        assert need == kv_bytes(whole, Split(), context=context, sequences=sequences)


@given(models(), CONTEXTS, SEQUENCES, st.integers(1, 64))
def test_rank_never_needs_more_than_the_whole(
    model: ModelFacts, context: int, sequences: int, tp_size: int
) -> None:
    rank = Split(tp_size=tp_size)
    assert kv_bytes_per_token(model, rank) <= kv_bytes_per_token(model, Split())
    assert state_bytes_per_sequence(model, tp_size) <= state_bytes_per_sequence(model, 1)
    need = kv_bytes(model, rank, context=context, sequences=sequences)
    assert need <= kv_bytes(model, Split(), context=context, sequences=sequences)
