import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.estimate.estimator import Estimate, estimate, kv_budget, kv_budgets
from appliance.estimate.kv_cache import Split, kv_bytes_per_token
from appliance.protocol.devices import DeviceKind
from appliance.protocol.estimates import Basis
from appliance.protocol.models import ModelSettings, Task
from appliance.registry.facts import ModelFacts
from appliance.units import GIB, MIB


def facts(**changes: object) -> ModelFacts:
    fields: dict[str, object] = {
        "architecture": "LlamaForCausalLM",
        "task": Task.GENERATE,
        "max_context": 8192,
        "weights_bytes": 269_060_552,
        "layers": 30,
        "heads": 9,
        "kv_heads": 3,
        "head_size": 64,
        "vocabulary": 49152,
        "dtype": "bfloat16",
        "has_chat_template": True,
    }
    return ModelFacts(**{**fields, **changes})  # type: ignore[arg-type]


SMOLLM2 = facts()
LLAMA_8B = facts(layers=32, heads=32, kv_heads=8, head_size=128, weights_bytes=16 * 10**9)


def settings(**changes: object) -> ModelSettings:
    fields: dict[str, object] = {"path": "/models/x", "task": Task.GENERATE}
    return ModelSettings(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "dtype", "expected"),
    [
        (SMOLLM2, "auto", 23_040),
        (SMOLLM2, "float32", 46_080),
        (LLAMA_8B, "auto", 131_072),
        (facts(layers=80, kv_heads=8, head_size=128), "auto", 327_680),  # Llama 3.1 70B
        (facts(layers=28, kv_heads=2, head_size=128), "bfloat16", 28_672),  # Qwen 2.5 1.5B
        (facts(dtype="float32"), "auto", 46_080),
        (facts(dtype="float32"), "half", 23_040),
        (facts(dtype="unheard-of"), "auto", 23_040),
    ],
)
def test_kv_cache_of_one_token(model: ModelFacts, dtype: str, expected: int) -> None:
    assert kv_bytes_per_token(model, Split(dtype=dtype)) == expected


@pytest.mark.parametrize(
    ("model", "chosen", "context", "expected"),
    [
        # Four requests of the full context, and 256 tokens more.
        (LLAMA_8B, settings(), 8192, 131_072 * (8192 * 4 + 256)),
        (LLAMA_8B, settings(max_sequences=2), 8192, 131_072 * (8192 * 2 + 256)),
        (LLAMA_8B, settings(max_sequences=99), 8192, 131_072 * (8192 * 4 + 256)),
        (LLAMA_8B, settings(tp_size=2), 8192, 65_536 * (8192 * 4 + 256)),
        (LLAMA_8B, settings(dtype="float32"), 1024, 262_144 * (1024 * 4 + 256)),
        (SMOLLM2, settings(max_sequences=1), 16, 64 * MIB),
        (LLAMA_8B, settings(kv_cache_bytes=5), 8192, 5),
        (LLAMA_8B, settings(kv_cache_bytes=5, task=Task.EMBED), 8192, 5),
        (LLAMA_8B, settings(task=Task.EMBED), 8192, 0),
    ],
)
def test_kv_budget(model: ModelFacts, chosen: ModelSettings, context: int, expected: int) -> None:
    assert kv_budget(model, chosen, context) == expected


@pytest.mark.parametrize(
    ("stored", "chosen", "kind", "expected"),
    [
        ("bfloat16", "auto", DeviceKind.GPU, 1000),
        ("bfloat16", "float32", DeviceKind.GPU, 2000),
        ("float32", "bfloat16", DeviceKind.GPU, 500),
        ("float32", "half", DeviceKind.CPU, 500),
        ("float16", "auto", DeviceKind.GPU, 1000),
        ("float16", "auto", DeviceKind.CPU, 1000),
        ("float32", "auto", DeviceKind.CPU, 500),
        ("bfloat16", "auto", DeviceKind.CPU, 1000),
        ("unheard-of", "float32", DeviceKind.GPU, 1000),
    ],
)
def test_weights_follow_the_number_format(
    stored: str, chosen: str, kind: DeviceKind, expected: int
) -> None:
    wanted = estimate(facts(weights_bytes=1000, dtype=stored), settings(dtype=chosen), 64, kind)
    assert wanted.weights_bytes == expected


def test_total_is_the_sum_of_the_parts() -> None:
    parts = Estimate(
        weights_bytes=1,
        kv_cache_bytes=2,
        activations_bytes=4,
        graphs_bytes=8,
        context_bytes=16,
    )
    assert (parts.runtime_bytes, parts.total_bytes) == (28, 31)
    wanted = estimate(LLAMA_8B, settings(), 8192, DeviceKind.GPU)
    assert wanted.weights_bytes == LLAMA_8B.weights_bytes
    assert wanted.kv_cache_bytes == kv_budget(LLAMA_8B, settings(), 8192)
    assert wanted.runtime_bytes > GIB
    assert wanted.basis is Basis.ESTIMATED


def test_memory_that_the_owner_names_replaces_the_sum() -> None:
    wanted = estimate(SMOLLM2, settings(memory_bytes=9 * GIB), 2048, DeviceKind.CPU)
    assert wanted.total_bytes == 9 * GIB
    assert (wanted.basis, wanted.margin_ratio) == (Basis.CHOSEN, 0)


@given(
    st.sampled_from([SMOLLM2, LLAMA_8B]),
    st.integers(16, 100_000),
    st.integers(16, 100_000),
    st.sampled_from(list(DeviceKind)),
)
def test_longer_context_never_needs_less(
    model: ModelFacts, first: int, second: int, kind: DeviceKind
) -> None:
    short, long = sorted((first, second))
    need = [estimate(model, settings(), length, kind).total_bytes for length in (short, long)]
    assert need[0] <= need[1]


@given(st.sampled_from([2, 4, 8]), st.integers(64, 100_000))
def test_ranks_together_hold_the_whole_model(tp_size: int, context: int) -> None:
    whole = estimate(LLAMA_8B, settings(), context, DeviceKind.GPU)
    rank = estimate(LLAMA_8B, settings(tp_size=tp_size), context, DeviceKind.GPU)
    assert rank.weights_bytes * tp_size == whole.weights_bytes
    assert rank.kv_cache_bytes * tp_size >= whole.kv_cache_bytes
    assert rank.context_bytes > whole.context_bytes
    assert rank.graphs_bytes == whole.graphs_bytes
    assert rank.activations_bytes <= whole.activations_bytes


@pytest.mark.parametrize(
    ("device_gib", "extra_args", "expected"),
    [
        (16, [], 256 * 49152 * 41),
        (80, [], 1024 * 49152 * 41),
        (16, ["--max-num-seqs", "2"], 64 * MIB),
        (80, ["--max-num-seqs=2"], 8192 * (4 * 576 + 3 * 1536) * 2),
        (192, ["--max-num-seqs=2"], 16384 * (4 * 576 + 3 * 1536) * 2),
        (16, ["--max-num-seqs=2", "--max-num-batched-tokens=64"], 64 * MIB),
    ],
)
def test_activations_follow_what_vllm_works_on_at_once(
    device_gib: int, extra_args: list[str], expected: int
) -> None:
    model = facts(hidden=576, mlp_sizes=(1536,))
    chosen = settings(extra_args=extra_args)
    wanted = estimate(model, chosen, 64, DeviceKind.GPU, device_bytes=device_gib * GIB)
    assert wanted.activations_bytes == expected


def test_graphs_only_where_they_are_captured() -> None:
    graphs = [
        estimate(SMOLLM2, settings(extra_args=extra), 64, kind).graphs_bytes
        for extra, kind in (
            ([], DeviceKind.GPU),
            (["--max-num-seqs=8"], DeviceKind.GPU),
            (["--enforce-eager"], DeviceKind.GPU),
            ([], DeviceKind.CPU),
        )
    ]
    assert graphs[0] > graphs[1] > graphs[2] == graphs[3] == 0


def test_smallest_budget_holds_one_request_and_the_recommended_one_several() -> None:
    budgets = kv_budgets(LLAMA_8B, settings(), 8192)
    assert budgets.smallest == 131_072 * (8192 + 256)
    assert budgets.recommended == 131_072 * (4 * 8192 + 256)
    assert kv_budgets(LLAMA_8B, settings(), 8192, sequences=16).recommended == 131_072 * (
        16 * 8192 + 256
    )
    assert kv_budgets(LLAMA_8B, settings(task=Task.EMBED), 8192).recommended == 0
