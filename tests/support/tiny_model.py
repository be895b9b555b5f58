"""A tiny Llama with random weights: real enough for a real engine, and fast."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

_SCRIPT = """
import sys
import typing

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

target, corpus = sys.argv[1:]
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
trainer = trainers.BpeTrainer(
    vocab_size=2048,
    special_tokens=["<s>", "</s>"],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
)
# Any text will do, if it is long enough for so many tokens.
tokenizer.train([corpus, typing.__file__], trainer)
fast = PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
)
fast.chat_template = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\\\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
fast.save_pretrained(target)
torch.manual_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=2048,
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
)
model.to(torch.bfloat16).save_pretrained(target)
"""


def make_tiny_model(engine_python: Path, target: Path) -> Path:
    """The model's directory, made with an engine environment's Python if it is not there."""
    if target.is_dir():
        return target
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    corpus = Path(__file__).parents[2] / "LICENSE"
    try:
        subprocess.run(
            [str(engine_python), "-I", "-c", _SCRIPT, str(partial), str(corpus)], check=True
        )
        if not target.exists():
            partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


if __name__ == "__main__":
    print(make_tiny_model(Path(sys.argv[1]), Path(sys.argv[2])))
