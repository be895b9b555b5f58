"""Runs with an engine environment's Python: writes a tiny random Llama into a directory.

`tiny_model_inside.py TARGET`. The same Python and packages give the same files.
"""

import argparse
import importlib
import inspect
import sys
import typing
from typing import Any

_VOCABULARY = 2048
_BEGIN, _END = "<s>", "</s>"
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def main() -> None:
    """Tokenizer and weights."""
    transformers = importlib.import_module("transformers")
    save_tokenizer(transformers, sys.argv[1])
    save_weights(transformers, sys.argv[1])


def save_tokenizer(transformers: Any, target: str) -> None:
    """Byte pairs, learnt from what every Python has."""
    tokenizers = importlib.import_module("tokenizers")
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = byte_level(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=[_BEGIN, _END],
        initial_alphabet=byte_level.alphabet(),
        show_progress=False,
    )
    # Any text will do, if it is long enough for so many tokens.
    tokenizer.train([typing.__file__, argparse.__file__, inspect.__file__], trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=_BEGIN, eos_token=_END, pad_token=_END
    )
    fast.chat_template = _CHAT_TEMPLATE
    fast.save_pretrained(target)


def save_weights(transformers: Any, target: str) -> None:
    """Two layers of noise."""
    torch = importlib.import_module("torch")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        tie_word_embeddings=True,
    )
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(target)


if __name__ == "__main__":
    main()
