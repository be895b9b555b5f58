import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import InvalidRequestError
from appliance.hub.choice import choose
from appliance.protocol.pulls import PullFile


def names(paths: list[str], shards: set[str] | None = None) -> list[str]:
    files = [PullFile(path=path, size_bytes=1, digest="0" * 40) for path in paths]
    return [file.path for file in choose(files, shards)]


SMALL = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize(
    ("paths", "left_out"),
    [
        (["model.safetensors"], ["pytorch_model.bin", "tf_model.h5", "flax_model.msgpack"]),
        (["pytorch_model.bin"], ["training_args.bin", "optimizer.pt", "model.onnx"]),
        (["model.safetensors"], ["onnx/model.onnx", "onnx/config.json", "openvino/x.json"]),
        (["model.safetensors"], ["model-Q4_K_M.gguf", "gguf/config.json"]),
        (["model.safetensors"], ["consolidated.safetensors", "original/consolidated.00.pth"]),
        (["consolidated.safetensors", "params.json", "tekken.json"], ["consolidated.00.pth"]),
        (["model.safetensors"], ["model.fp16.safetensors", "adapter_model.safetensors"]),
        (["gptq_model-4bit-128g.safetensors", "quantize_config.json"], ["README.md"]),
        (["model.safetensors", "tokenizer.model", "merges.txt", "vocab.json"], [".gitattributes"]),
        (["model.safetensors", "tokenizer.model.v3"], ["metal/model.bin", "figures/a.png"]),
        (["model.safetensors", "modeling_x.py", "chat_template.jinja"], ["a.png", "video.mp4"]),
        (["model.safetensors", "LICENSE", "NOTICE", "USE_POLICY.md"], ["README.md"]),
        (["model.safetensors"], ["checkpoint-500/model.safetensors", "checkpoint-500/config.json"]),
        (["model.safetensors"], ["pytorch_model.bin.index.json", "tf_model.h5.index.json"]),
        (["pytorch_model-1.bin", "pytorch_model.bin.index.json"], ["tf_model.h5"]),
        (
            ["model.safetensors", "modules.json", "1_Pooling/config.json",
             "2_Dense/model.safetensors", "2_Dense/config.json"],
            ["2_Dense/pytorch_model.bin", "vae/model.safetensors"],
        ),
    ],
)  # fmt: skip
def test_only_what_vllm_needs_is_chosen(paths: list[str], left_out: list[str]) -> None:
    assert sorted(names([*left_out, *SMALL, *paths])) == sorted([*SMALL, *paths])


def test_an_index_decides_which_shards_are_taken() -> None:
    shards = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}
    index = "model.safetensors.index.json"
    others = ["model.safetensors", "consolidated.safetensors", "model-old.safetensors"]
    assert set(names([*SMALL, index, *shards, *others], shards)) == {*SMALL, index, *shards}


@pytest.mark.parametrize(
    ("paths", "shards", "what"),
    [
        (["model.safetensors"], None, "config.json"),
        (["config.json", "model-Q4.gguf"], None, "no weights"),
        (["config.json", "adapter_model.safetensors"], None, "no weights"),
        (["config.json", "training_args.bin"], None, "no weights"),
        (["config.json", "a.safetensors"], {"a.safetensors", "b.safetensors"}, "b.safetensors"),
    ],
)
def test_what_cannot_be_loaded_is_refused_before_it_is_fetched(
    paths: list[str], shards: set[str] | None, what: str
) -> None:
    with pytest.raises(InvalidRequestError, match=what):
        names(paths, shards)


_PARTS = st.sampled_from(["model", "config", "1_Pooling", "onnx", ".git", "a-b", "checkpoint-1"])
_ENDS = st.sampled_from([".json", ".safetensors", ".bin", ".pt", ".gguf", ".txt", ".md", ""])


@given(st.lists(st.builds(lambda a, b, end: f"{a}/{b}{end}", _PARTS, _PARTS, _ENDS), unique=True))
def test_weights_of_one_format_only(paths: list[str]) -> None:
    chosen = names(["config.json", "model.safetensors", *paths])
    assert "model.safetensors" in chosen
    assert not [path for path in chosen if path.endswith((".bin", ".pt", ".gguf", ".md"))]
