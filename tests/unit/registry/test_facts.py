import json
from pathlib import Path

import pytest

from appliance.errors import InvalidRequestError
from appliance.protocol.models import Task
from appliance.registry.facts import ModelFacts, read_facts
from appliance.registry.facts_kv import KvLayout

SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 576,
    "max_position_embeddings": 8192,
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "torch_dtype": "bfloat16",
    "vocab_size": 49152,
}


def checkpoint(directory: Path, config: object = SMOLLM2, **files: object) -> Path:
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "model.safetensors").write_bytes(b"\0" * 100)
    for name, content in files.items():
        (directory / name.replace("__", ".")).write_text(json.dumps(content))
    return directory


def test_facts_of_a_plain_checkpoint(tmp_path: Path) -> None:
    assert read_facts(checkpoint(tmp_path)) == ModelFacts(
        architecture="LlamaForCausalLM",
        task=Task.GENERATE,
        max_context=8192,
        weights_bytes=100,
        layers=30,
        heads=9,
        kv_heads=3,
        head_size=64,
        vocabulary=49152,
        dtype="bfloat16",
        has_chat_template=False,
        hidden=576,
        mlp_sizes=(2304,),
    )


def test_dimensions_of_the_language_model_inside_another_one(tmp_path: Path) -> None:
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "dtype": "bfloat16",
        "text_config": {
            "head_dim": 256,
            "hidden_size": 2560,
            "num_attention_heads": 8,
            "num_hidden_layers": 34,
            "num_key_value_heads": 4,
            "max_position_embeddings": 131_072,
            "vocab_size": 262_208,
        },
        "vision_config": {"num_hidden_layers": 27, "hidden_size": 1152},
    }
    facts = read_facts(checkpoint(tmp_path, config))
    assert (facts.layers, facts.heads, facts.kv_heads, facts.head_size) == (34, 8, 4, 256)
    assert (facts.max_context, facts.dtype) == (131_072, "bfloat16")
    assert facts.architecture == "Gemma3ForConditionalGeneration"


@pytest.mark.parametrize(
    ("change", "field", "expected"),
    [
        ({"num_key_value_heads": None}, "kv_heads", 9),
        ({"head_dim": 128}, "head_size", 128),
        ({"head_dim": None}, "head_size", 64),
        ({"dtype": "float16"}, "dtype", "float16"),
        ({"torch_dtype": None}, "dtype", "float32"),
        ({"max_position_embeddings": None, "n_positions": 1024}, "max_context", 1024),
        ({"max_position_embeddings": None}, "max_context", 2048),
        ({"architectures": None}, "architecture", "unknown"),
        ({"architectures": []}, "architecture", "unknown"),
    ],
)
def test_fields_that_are_left_out_have_the_usual_meaning(
    tmp_path: Path, change: dict[str, object], field: str, expected: object
) -> None:
    assert getattr(read_facts(checkpoint(tmp_path, {**SMOLLM2, **change})), field) == expected


WINDOWS = {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"] * 15}
MAMBA = {
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "layer_types": ["mamba", "mamba", "attention"] * 10,
}
MAMBA_BYTES = 4 * (2 * 576 * 16 + 2 * 576 * 3)
GEMMA_3 = {
    "model_type": "gemma3",
    "text_config": {"model_type": "gemma3_text", "hidden_size": 2560},
}
LATENT = {"model_type": "deepseek_v3", "kv_lora_rank": 512, "qk_rope_head_dim": 64}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"layer_types": ["full_attention"] * 30}, KvLayout()),
        ({"sliding_window": 64}, KvLayout()),
        (WINDOWS, KvLayout(window_layers=15, window=64)),
        ({**WINDOWS, "sliding_window": None}, KvLayout()),
        ({**WINDOWS, "sliding_window": 0}, KvLayout()),
        ({**WINDOWS, "use_sliding_window": False}, KvLayout()),
        ({**WINDOWS, "num_hidden_layers": 31}, KvLayout()),
        ({**WINDOWS, "global_head_dim": 512}, KvLayout()),
        ({**WINDOWS, "layer_types": ["sliding_attention", "unheard-of"] * 15}, KvLayout()),
        ({"sliding_window": 64, "model_type": "mistral"}, KvLayout(window_layers=30, window=64)),
        ({"sliding_window": 64, "model_type": "gemma2"}, KvLayout(window_layers=15, window=64)),
        ({"sliding_window": 64, "model_type": "cohere2"}, KvLayout(window_layers=23, window=64)),
        (
            {"sliding_window": 64, "model_type": "cohere2", "sliding_window_pattern": 3},
            KvLayout(window_layers=20, window=64),
        ),
        (MAMBA, KvLayout(state_layers=20, state_bytes=MAMBA_BYTES)),
        ({**MAMBA, "mamba_d_state": None}, KvLayout()),
        (
            {**MAMBA, "layer_types": None, "attn_layer_indices": [9, 18, 27]},
            KvLayout(state_layers=27, state_bytes=MAMBA_BYTES),
        ),
        (
            {**MAMBA, "hybrid_override_pattern": "M-*EM-*EM-" * 3, "layer_types": ["mamba"]},
            KvLayout(state_layers=9, state_bytes=MAMBA_BYTES, empty_layers=15),
        ),
        (LATENT, KvLayout(latent_size=576)),
        ({**LATENT, "index_head_dim": 128}, KvLayout(latent_size=576 + 132)),
        ({**LATENT, "model_type": "minicpm3"}, KvLayout()),
        ({**LATENT, "kv_lora_rank": None}, KvLayout()),
    ],
)
def test_what_the_layers_keep(
    tmp_path: Path, change: dict[str, object], expected: KvLayout
) -> None:
    assert read_facts(checkpoint(tmp_path, {**SMOLLM2, **change})).kv == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"multi_query": True}, 1),
        ({"multi_query": True, "num_kv_heads": 9}, 1),
        ({"multi_query": True, "new_decoder_architecture": True}, 3),
        ({"num_key_value_heads": None, "num_kv_heads": 3}, 3),
        ({"num_key_value_heads": None, "num_kv_heads": [3] * 30}, 9),
    ],
)
def test_heads_that_share_keys_and_values(
    tmp_path: Path, change: dict[str, object], expected: int
) -> None:
    assert read_facts(checkpoint(tmp_path, {**SMOLLM2, **change})).kv_heads == expected


def test_config_that_states_little_has_the_defaults_of_its_type(tmp_path: Path) -> None:
    facts = read_facts(checkpoint(tmp_path, GEMMA_3))
    assert (facts.heads, facts.kv_heads, facts.head_size) == (8, 4, 256)
    assert (facts.hidden, facts.vocabulary, facts.max_context) == (2560, 262_208, 131_072)


def test_dimensions_in_the_words_of_gpt_2(tmp_path: Path) -> None:
    config = {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024}
    facts = read_facts(checkpoint(tmp_path, config))
    assert (facts.layers, facts.heads, facts.kv_heads, facts.head_size) == (12, 12, 12, 64)


def test_sentence_transformer_embeds_and_has_a_length_of_its_own(tmp_path: Path) -> None:
    directory = checkpoint(
        tmp_path,
        {**SMOLLM2, "architectures": ["Qwen3ForCausalLM"]},
        modules__json=[],
        sentence_bert_config__json={"max_seq_length": 256},
    )
    facts = read_facts(directory)
    assert facts.task is Task.EMBED
    assert facts.max_context == 256


@pytest.mark.parametrize("content", [{}, {"max_seq_length": None}])
def test_sentence_transformer_without_a_length_takes_its_positions(
    tmp_path: Path, content: dict[str, object]
) -> None:
    facts = read_facts(checkpoint(tmp_path, sentence_bert_config__json=content))
    assert facts.max_context == 8192


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("BertModel", Task.EMBED),
        ("XLMRobertaModel", Task.EMBED),
        ("LlamaForCausalLM", Task.GENERATE),
    ],
)
def test_task_is_read_from_the_architecture(tmp_path: Path, architecture: str, task: Task) -> None:
    config = {**SMOLLM2, "architectures": [architecture]}
    assert read_facts(checkpoint(tmp_path, config)).task is task


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, False),
        ({"tokenizer_config__json": {}}, False),
        ({"tokenizer_config__json": {"chat_template": None}}, False),
        ({"tokenizer_config__json": {"chat_template": "{{ x }}"}}, True),
        ({"chat_template__jinja": ""}, True),
    ],
)
def test_chat_template(tmp_path: Path, files: dict[str, object], expected: bool) -> None:
    assert read_facts(checkpoint(tmp_path, **files)).has_chat_template is expected


def test_all_parts_of_the_weights_count_and_other_formats_only_without_them(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    (tmp_path / "model-00002.safetensors").write_bytes(b"\0" * 11)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\0" * 999)
    assert read_facts(tmp_path).weights_bytes == 111
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    assert read_facts(tmp_path).weights_bytes == 999


def refusal(directory: Path) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        read_facts(directory)
    assert caught.value.param == "path"
    assert caught.value.hint
    return caught.value


def test_missing_directory(tmp_path: Path) -> None:
    assert "is no directory" in refusal(tmp_path / "none").message


def test_file_instead_of_a_directory(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    assert "is no directory" in refusal(tmp_path / "model.gguf").message


def test_missing_config(tmp_path: Path) -> None:
    assert "no config.json" in refusal(tmp_path).message


def test_missing_weights(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert "holds no weights" in refusal(tmp_path).message


@pytest.mark.parametrize("text", [b"{", b"", b"\xff\xfe", b"[]", b"7", b"null"])
def test_config_that_is_no_object(tmp_path: Path, text: bytes) -> None:
    checkpoint(tmp_path)
    (tmp_path / "config.json").write_bytes(text)
    assert "config.json" in refusal(tmp_path).message


@pytest.mark.parametrize(
    "change",
    [
        {"intermediate_size": "wide"},
        {"num_experts": {"a": 1}},
        {"num_experts": 4, "mlp_only_layers": 7, "decoder_sparse_step": 1},
        {"quantization_config": {"quant_method": "awq", "bits": "four"}},
        {"num_hidden_layers": 10**9},
        {"vision_config": {"hidden_size": "x"}},
    ],
)
def test_dimensions_that_only_the_estimate_needs_refuse_no_model(
    tmp_path: Path, change: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    facts = read_facts(checkpoint(tmp_path, {**SMOLLM2, **change}))
    assert (facts.tensors, facts.weights_bytes) == ((), 100)
    assert "facts.dimensions_unknown" in caplog.text
