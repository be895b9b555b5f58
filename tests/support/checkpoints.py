"""Small checkpoints in Hugging Face format, as files by path."""

import json
import random
import struct

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "max_position_embeddings": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 64,
    "vocab_size": 100,
    "dtype": "bfloat16",
}


def weights(size: int, seed: int = 0) -> bytes:
    """A safetensors file whose one tensor has that many bytes, a multiple of 128."""
    tensor = {"dtype": "BF16", "shape": [size // 128, 64], "data_offsets": [0, size]}
    header = json.dumps({"model.embed_tokens.weight": tensor}).encode()
    return struct.pack("<Q", len(header)) + header + random.Random(seed).randbytes(size)


def checkpoint(size: int = 1 << 20, *, shards: int = 1, seed: int = 0) -> dict[str, bytes]:
    """Config, tokenizer, weights, and things that nobody needs."""
    files = {
        ".gitattributes": b"*.safetensors filter=lfs\n",
        "README.md": b"# A model\n",
        "config.json": json.dumps(CONFIG | {"seed": seed}).encode(),
        "tokenizer.json": json.dumps({"seed": seed}).encode(),
        "pytorch_model.bin": random.Random(seed + 99).randbytes(20_000),
    }
    if shards == 1:
        return files | {"model.safetensors": weights(size, seed)}
    names = [f"model-{number + 1:05}-of-{shards:05}.safetensors" for number in range(shards)]
    index = {"metadata": {}, "weight_map": {f"layer{n}": name for n, name in enumerate(names)}}
    parts = {name: weights(size, seed + number) for number, name in enumerate(names)}
    return files | parts | {"model.safetensors.index.json": json.dumps(index).encode()}
