"""Runs in an engine environment: loads a model and tells what vLLM holds of it, as JSON.

    python report_sizes.py MODEL TP_SIZE KV_CACHE_BYTES DIRECTORY

Each rank writes a file into the directory: bytes of its parameters and tables as they were loaded
(the CPU's kernels keep them in a form of their own afterwards), then of its KV cache. vLLM's own
log goes to standard output.
"""

import json
import os
import sys
from pathlib import Path

from vllm import LLM
from vllm.model_executor.model_loader import base_loader

_IN_PROCESS_EXECUTOR = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
_finish_loading = base_loader.process_weights_after_loading


def _tell_and_finish(model, *args):
    """In each rank's process: ranks that are spawned import this module again."""
    _add(parameters=_size(model.parameters()), tables=_size(model.buffers()))
    _finish_loading(model, *args)


base_loader.process_weights_after_loading = _tell_and_finish


def tell_cache(model):
    """Each layer's part of the KV cache."""
    caches = (getattr(module, "kv_cache", None) for module in model.modules())
    _add(kv_cache=_size(each for each in caches if hasattr(each, "data_ptr")))


def _size(tensors):
    held = {each.data_ptr(): each for each in tensors}
    return sum(each.numel() * each.element_size() for each in held.values())


def _add(**sizes):
    file = Path(sys.argv[4]) / f"{os.getpid()}.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**known, **sizes}))


if __name__ == "__main__":
    path, tp_size, kv_cache_bytes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    llm = LLM(
        model=path,
        tensor_parallel_size=tp_size,
        max_model_len=256,
        enforce_eager=True,
        kv_cache_memory_bytes=kv_cache_bytes,
        distributed_executor_backend=_IN_PROCESS_EXECUTOR if tp_size == 1 else "mp",
    )
    llm.apply_model(tell_cache)
