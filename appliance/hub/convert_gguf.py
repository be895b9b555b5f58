"""Runs with an engine environment's Python: turns a GGUF file into bfloat16 safetensors.

`convert_gguf.py FILE.gguf TARGET`. vLLM does not run GGUF on CPUs.
"""

import importlib
import sys
from pathlib import Path


def main() -> None:
    """Read the file named first, write a checkpoint into the directory named second."""
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    transformers = importlib.import_module("transformers")
    # Else transformers keeps the weights packed and refuses to save them.
    unpacked = transformers.GgufConfig(dequantize=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        str(source.parent), gguf_file=source.name
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        str(source.parent),
        gguf_file=source.name,
        dtype=importlib.import_module("torch").bfloat16,
        quantization_config=unpacked,
    )
    tokenizer.save_pretrained(str(target))
    model.save_pretrained(str(target))


if __name__ == "__main__":
    main()
