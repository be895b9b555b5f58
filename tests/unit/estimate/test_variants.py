import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.estimate.estimator import estimate, kv_budgets
from appliance.estimate.variants import largest_context, variants
from appliance.estimate.weights import possible_tp_sizes, tp_problem
from appliance.protocol.devices import DeviceKind
from appliance.protocol.models import ModelSettings, Task
from appliance.registry.facts import ModelFacts, facts_from_config
from appliance.units import GIB
from tests.unit.estimate.test_published_sizes import MODELS, facts_of

EIGHT_B = "Llama-3.1-8B-Instruct"


def chosen(**changes: object) -> ModelSettings:
    return ModelSettings(path="/m", **{"task": Task.GENERATE, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "most", "expected"),
    [
        (EIGHT_B, 8, [1, 2, 4, 8]),
        ("Meta-Llama-3-70B-Instruct", 8, [1, 2, 4, 8]),
        ("Qwen2.5-14B-Instruct", 8, [1, 2, 4, 8]),
        ("Qwen2.5-7B", 8, [1, 2, 4]),
        # 18944 / 4 = 4736 inner values are 37 groups of 128; 3584 / 4 = 896 are 7.
        ("Qwen2.5-7B-Instruct-AWQ", 8, [1, 2, 4]),
        ("SmolLM2-135M", 8, [1, 3]),
        ("gpt-oss-20b", 8, [1, 2, 4, 8]),
        ("gemma-3-1b-it", 8, [1, 2, 4]),
        ("all-MiniLM-L6-v2", 8, [1, 2, 3, 4, 6]),
        ("DeepSeek-V2-Lite", 8, [1, 2, 4, 8]),
        (EIGHT_B, 3, [1, 2]),
        (EIGHT_B, 0, [1]),
    ],
)
def test_ways_to_split(name: str, most: int, expected: list[int]) -> None:
    assert possible_tp_sizes(facts_of(name), most) == expected


def odd(**changes: object) -> ModelFacts:
    return facts_from_config({**MODELS[EIGHT_B].config, **changes})


@pytest.mark.parametrize(
    ("model", "size", "word"),
    [
        (odd(), 3, "attention heads"),
        (odd(num_attention_heads=33), 2, "attention heads"),
        (odd(num_attention_heads=30, num_key_value_heads=5), 2, "KV heads"),
        (
            odd(num_attention_heads=48, num_key_value_heads=48, vocab_size=64),
            3,
            "padded vocabulary",
        ),
        (odd(intermediate_size=14_337), 2, "MLP"),
        (
            odd(quantization_config={"quant_method": "awq", "bits": 4, "group_size": 8192}),
            2,
            "keeps 8192 values together",
        ),
    ],
)
def test_why_a_model_cannot_be_split(model: ModelFacts, size: int, word: str) -> None:
    problem = tp_problem(model, size)
    assert problem is not None
    assert word in problem
    assert tp_problem(model, 1) is None


def test_latent_attention_has_no_kv_heads_to_split() -> None:
    assert tp_problem(facts_of("DeepSeek-V3"), 16) is None


@pytest.mark.parametrize("gib", [16, 24, 140])
@pytest.mark.parametrize("sequences", [None, 1])
def test_largest_context_is_the_edge(gib: int, sequences: int | None) -> None:
    model = facts_from_config({**MODELS[EIGHT_B].config, "max_position_embeddings": 131_072})
    device = gib * GIB
    tokens = largest_context(model, chosen(), device, sequences=sequences)

    def total(context: int) -> int:
        wanted = estimate(model, chosen(), context, DeviceKind.GPU, device_bytes=device)
        if sequences is None:
            return wanted.total_bytes
        budgets = kv_budgets(model, chosen(), context, device_bytes=device)
        return wanted.total_bytes - wanted.kv_cache_bytes + budgets.smallest

    if tokens:
        assert total(tokens) <= device
    if tokens < model.max_context:
        assert total(tokens + 1) > device
    assert (tokens == 0) == (gib == 16)
    assert (tokens == model.max_context) == (gib == 140)


def test_largest_context_of_a_budget_that_the_owner_has_set() -> None:
    model = facts_from_config({**MODELS[EIGHT_B].config, "max_position_embeddings": 131_072})
    tokens = largest_context(model, chosen(kv_cache_bytes=GIB), 24 * GIB)
    assert tokens == GIB // 131_072 - 256
    assert largest_context(model, chosen(kv_cache_bytes=GIB), 17 * GIB) == 0


def words(name: str, context: int, devices: int = 1, **changes: object) -> list[str]:
    found = variants(
        facts_of(name),
        chosen(**changes),
        context,
        name="my model",
        kind=DeviceKind.GPU,
        devices=devices,
        device_bytes=24 * GIB,
    )
    return [f"{variant.text} (`{variant.command}`)" for variant in found]


def test_changes_say_the_command_and_begin_with_the_mildest() -> None:
    offered = words(EIGHT_B, 8192, devices=2)
    assert offered[:8] == [
        "at most 64 requests at once (`appliance set 'my model' --max-sequences 64`)",
        "at most 16 requests at once (`appliance set 'my model' --max-sequences 16`)",
        "at most 4 requests at once (`appliance set 'my model' --max-sequences 4`)",
        "a context of 4096 tokens (`appliance set 'my model' --context 4096`)",
        "a context of 2048 tokens (`appliance set 'my model' --context 2048`)",
        "an 8-bit KV cache (`appliance set 'my model' --arg=--kv-cache-dtype=fp8`)",
        "splitting it over 2 devices (`appliance set 'my model' --tp 2`)",
        "quantizing its weights to 8 bits while loading"
        " (`appliance set 'my model' --arg=--quantization=fp8`)",
    ]
    assert (
        "splitting it over 2 devices and at most 64 requests at once and a context of 2048 tokens"
        " (`appliance set 'my model' --tp 2 --max-sequences 64 --context 2048`)"
    ) in offered
    single = "one request at a time (`appliance set 'my model' --max-sequences 1`)"
    last = "quantizing its weights to 4 bits while loading and one request at a time"
    assert offered.index(single) > offered.index(offered[7])
    assert offered[-1].startswith(last)


def test_arguments_that_are_there_are_repeated() -> None:
    offered = words(EIGHT_B, 2048, max_sequences=1, extra_args=["--seed", "1"])
    assert offered[0].endswith("--arg=--seed --arg=1 --arg=--kv-cache-dtype=fp8`)")


@pytest.mark.parametrize(
    "changes",
    [
        {"extra_args": ["--kv-cache-dtype=fp8", "--quantization=fp8"], "max_sequences": 1},
        {"memory_bytes": 3 * GIB},
    ],
)
def test_nothing_is_offered_twice_or_beside_the_point(changes: dict[str, object]) -> None:
    assert words(EIGHT_B, 2048, **changes) == []


def test_a_quantized_model_is_not_quantized_again_and_an_encoder_has_no_cache() -> None:
    assert not any("quantizing" in word for word in words("Qwen2.5-7B-Instruct-AWQ", 8192))
    assert words("bge-large-en-v1.5", 512, task=Task.EMBED) == []


@settings(deadline=None)
@given(
    st.sampled_from(sorted(MODELS)),
    st.integers(1, 200_000),
    st.integers(1, 8),
    st.sampled_from(list(DeviceKind)),
    st.integers(1, 192),
)
def test_each_change_needs_less_and_as_much_as_it_says(
    name: str, context: int, devices: int, kind: DeviceKind, gib: int
) -> None:
    model = facts_of(name)
    settings = chosen(task=model.task)
    size = gib * GIB
    need = estimate(model, settings, context, kind, device_bytes=size).total_bytes
    for variant in variants(
        model, settings, context, name="m", kind=kind, devices=devices, device_bytes=size
    ):
        wanted = estimate(model, variant.settings, variant.context_length, kind, device_bytes=size)
        assert variant.need_bytes == wanted.total_bytes < need
        assert variant.tp_size == variant.settings.tp_size <= devices
        assert tp_problem(model, variant.tp_size) is None
