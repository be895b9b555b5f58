"""config.json of a checkpoint: dimensions of its language model. Pure."""

from typing import Any

# Of configs that state little; their types' own defaults (transformers: configuration_gemma3.py).
_DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma3_text": {
        "vocab_size": 262_208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131_072,
        "sliding_window": 4096,
        "rope_local_base_freq": 10_000,
    },
}


def text_of(config: dict[str, Any]) -> dict[str, Any]:
    """The config with the language model's own dimensions on top, where they are nested."""
    nested = config.get("text_config") or {}
    model_type = nested.get("model_type") or config.get("model_type")
    stated = {name: value for name, value in {**config, **nested}.items() if value is not None}
    return {**_DEFAULTS.get(str(model_type), {}), **stated}


def number(text: dict[str, Any], *names: str) -> int:
    """The first that is there, or 0. A list, of one number for each layer, is no number."""
    found = (text[name] for name in names if not isinstance(text.get(name, []), list))
    return next((int(value) for value in found if value), 0)
