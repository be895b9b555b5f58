"""What an engine's log says about its memory. Pure."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from appliance.units import GIB

# Lines of vLLM 0.24 to 0.33 (gpu_model_runner.py, model_runner.py, kv_cache_utils.py).
_WEIGHTS = re.compile(r"Model loading took ([\d.]+) GiB")
_GRAPHS = re.compile(r"Graph capturing finished in .* took ([\d.]+) GiB")
_TOKENS = re.compile(r"KV cache size: ([\d,]+) tokens")


@dataclass(frozen=True, kw_only=True)
class LoggedMemory:
    """Bytes of the fullest rank, tokens of the engine; 0 for what the log does not say."""

    weights_bytes: int = 0
    graphs_bytes: int = 0
    kv_cache_tokens: int = 0


def read_memory_log(lines: Iterable[str]) -> LoggedMemory:
    """The largest figure of each kind: ranks log for themselves. CPU engines log tokens only."""
    weights, graphs, tokens = 0.0, 0.0, 0
    for line in lines:
        if found := _WEIGHTS.search(line):
            weights = max(weights, _number(found[1]))
        elif found := _GRAPHS.search(line):
            graphs = max(graphs, _number(found[1]))
        elif found := _TOKENS.search(line):
            tokens = max(tokens, int(found[1].replace(",", "") or 0))
    return LoggedMemory(
        weights_bytes=int(weights * GIB), graphs_bytes=int(graphs * GIB), kv_cache_tokens=tokens
    )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
