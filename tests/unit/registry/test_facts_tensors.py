import json
from pathlib import Path

import pytest

from appliance.registry.facts import read_facts
from appliance.registry.facts_tensors import (
    Part,
    Tensor,
    group_tensors,
    part_of,
    read_tensors,
    weight_files,
)

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 16,
    "vocab_size": 32,
    "torch_dtype": "bfloat16",
}
WIDTHS = {"F32": 4, "BF16": 2, "I32": 4, "U8": 1}


def safetensors(file: Path, tensors: list[Tensor]) -> None:
    """Header and as many bytes as it promises."""
    entries, at = {}, 0
    for tensor in tensors:
        size = WIDTHS[tensor.dtype]
        for length in tensor.shape:
            size *= length
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": [at, at + size],
        }
        at += size
    header = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * at)


def llama_tensors() -> list[Tensor]:
    tensors = [
        Tensor("model.embed_tokens.weight", (32, 8)),
        Tensor("model.norm.weight", (8,)),
        Tensor("lm_head.weight", (32, 8)),
    ]
    for layer in range(2):
        base = f"model.layers.{layer}"
        tensors += [
            Tensor(f"{base}.input_layernorm.weight", (8,)),
            Tensor(f"{base}.post_attention_layernorm.weight", (8,)),
            Tensor(f"{base}.self_attn.q_proj.weight", (8, 8)),
            Tensor(f"{base}.self_attn.k_proj.weight", (4, 8)),
            Tensor(f"{base}.self_attn.v_proj.weight", (4, 8)),
            Tensor(f"{base}.self_attn.o_proj.weight", (8, 8)),
            Tensor(f"{base}.mlp.gate_proj.weight", (16, 8)),
            Tensor(f"{base}.mlp.up_proj.weight", (16, 8)),
            Tensor(f"{base}.mlp.down_proj.weight", (8, 16)),
        ]
    return tensors


def checkpoint(directory: Path, **config: object) -> Path:
    (directory / "config.json").write_text(json.dumps({**LLAMA, **config}))
    safetensors(directory / "model.safetensors", llama_tensors())
    return directory


def test_headers_and_config_say_the_same(tmp_path: Path) -> None:
    by_headers = read_facts(checkpoint(tmp_path)).tensors
    (tmp_path / "model.safetensors").write_bytes(b"no header")
    by_config = read_facts(tmp_path).tensors
    assert by_headers == by_config
    assert sum(group.elements for group in by_headers) == sum(
        tensor.shape[0] * (tensor.shape[1] if len(tensor.shape) > 1 else 1)
        for tensor in llama_tensors()
    )


def test_output_matrix_that_is_stored_but_tied_is_not_loaded(tmp_path: Path) -> None:
    parts = {group.part for group in read_facts(checkpoint(tmp_path)).tensors}
    assert Part.HEAD in parts
    tied = read_facts(checkpoint(tmp_path, tie_word_embeddings=True)).tensors
    assert {group.part for group in tied} == parts - {Part.HEAD}


def test_layers_for_speculation_and_tables_are_not_loaded() -> None:
    tensors = [
        Tensor("model.layers.2.mlp.up_proj.weight", (16, 8)),
        Tensor("mtp.layers.0.mlp.up_proj.weight", (16, 8)),
        Tensor("model.layers.0.self_attn.rotary_emb.inv_freq", (4,)),
    ]
    assert group_tensors(tensors, layers=2, is_tied=False) == []


def test_scales_keep_their_format_and_matrices_take_that_of_the_model() -> None:
    tensors = [
        Tensor("model.layers.0.mlp.up_proj.weight", (16, 8), "F32"),
        Tensor("model.layers.0.mlp.up_proj.weight_scale_inv", (2, 2), "F32"),
        Tensor("model.layers.0.mlp.up_proj.qweight", (2, 8), "I32"),
    ]
    floats = {
        group.elements: group.is_float for group in group_tensors(tensors, layers=1, is_tied=False)
    }
    assert floats == {128: True, 20: False}


@pytest.mark.parametrize(
    ("name", "shape", "part"),
    [
        ("model.layers.0.mlp.gate_proj.weight", (8, 8), Part.LINEAR),
        ("model.layers.0.mlp.gate.weight", (8, 8), Part.WHOLE),
        ("model.layers.0.block_sparse_moe.gate.weight", (8, 8), Part.WHOLE),
        ("model.layers.0.mlp.router.weight", (8, 8), Part.WHOLE),
        ("model.layers.0.mlp.shared_expert_gate.weight", (1, 8), Part.WHOLE),
        ("model.layers.0.mlp.shared_expert.up_proj.weight", (8, 8), Part.LINEAR),
        ("model.layers.0.mlp.shared_experts.up_proj.weight", (8, 8), Part.LINEAR),
        ("model.layers.0.mlp.experts.3.up_proj.weight", (8, 8), Part.EXPERTS),
        ("model.layers.0.mlp.experts.gate_up_proj_blocks", (2, 8, 1, 16), Part.EXPERTS),
        ("model.layers.0.block_sparse_moe.input_linear.weight", (2, 8, 8), Part.EXPERTS),
        ("model.layers.0.self_attn.kv_a_proj_with_mqa.weight", (8, 8), Part.WHOLE),
        ("model.layers.0.self_attn.q_a_proj.weight", (8, 8), Part.WHOLE),
        ("model.layers.0.self_attn.kv_b_proj.weight", (8, 8), Part.LINEAR),
        ("model.layers.0.self_attn.v_proj.weight", (8, 8), Part.KEYS_VALUES),
        ("model.layers.0.self_attn.qkv_proj.weight", (8, 8), Part.FUSED),
        ("model.layers.0.input_layernorm.weight", (8,), Part.WHOLE),
        ("model.layers.0.self_attn.q_proj.bias", (8,), Part.WHOLE),
        ("model.embed_tokens.weight", (8, 8), Part.EMBEDDING),
        ("embeddings.position_embeddings.weight", (8, 8), Part.WHOLE),
        ("embeddings.word_embeddings.weight", (8, 8), Part.EMBEDDING),
        ("lm_head.weight", (8, 8), Part.HEAD),
    ],
)
def test_ranks_share_a_tensor_by_its_name(name: str, shape: tuple[int, ...], part: Part) -> None:
    assert part_of(Tensor(name, shape)) is part


def names(directory: Path) -> list[str]:
    return [file.name for file in weight_files(directory)]


def test_other_copies_of_the_same_weights_do_not_count(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    (tmp_path / "original").mkdir()
    safetensors(tmp_path / "original" / "model.safetensors", llama_tensors())
    safetensors(tmp_path / "consolidated.safetensors", llama_tensors())
    (tmp_path / "pytorch_model.bin").write_bytes(b"0")
    assert names(tmp_path) == ["model.safetensors"]
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    safetensors(tmp_path / "extra.safetensors", [])
    assert names(tmp_path) == ["model-00001-of-00001.safetensors"]


def test_mistral_format_alone_counts(tmp_path: Path) -> None:
    safetensors(tmp_path / "consolidated.safetensors", llama_tensors())
    assert names(tmp_path) == ["consolidated.safetensors"]


@pytest.mark.parametrize("index", [b"", b"[]", b"{}", b'{"weight_map": 3}'])
def test_index_that_cannot_be_read_names_nothing(tmp_path: Path, index: bytes) -> None:
    checkpoint(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_bytes(index)
    assert names(tmp_path) == ["model.safetensors"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x02",
        b"\xff" * 16,
        (3).to_bytes(8, "little") + b"[1]",
        (2).to_bytes(8, "little") + b"{x",
        (26).to_bytes(8, "little") + b'{"a": {"dtype": "BF16"}}  ',
        (11).to_bytes(8, "little") + b'{"a": null}',
    ],
)
def test_file_without_a_header_tells_no_tensors(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    assert read_tensors([file]) is None
    assert read_tensors([tmp_path / "pytorch_model.bin"]) is None
