"""What a model's settings mean for the memory of its engine: defaults of vLLM filled in. Pure."""

from dataclasses import dataclass
from itertools import pairwise

from appliance.protocol.devices import DeviceKind
from appliance.protocol.models import ModelSettings, Task
from appliance.registry.facts import ModelFacts
from appliance.units import GIB

_DTYPE_BYTES = {"float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2}
# vLLM's defaults of an API server (arg_utils.py: get_batch_defaults): tokens of one step and
# sequences at once, on devices of at least so many bytes. A100 has the smaller ones at any size.
_DEFAULTS = ((160 * GIB, 16_384, 1024), (70 * GIB, 8192, 1024), (0, 2048, 256))
# CPU engines (platforms/cpu.py) and devices of unknown size.
_MOST_STEP_TOKENS = 16_384
_USUAL_SEQUENCES = 256
_MOST_DIGITS = 9


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How an engine runs, as far as it takes memory."""

    dtype: str
    """Number format of the model, never `auto`."""
    kv_dtype: str
    """As vLLM's --kv-cache-dtype."""
    quantization: str | None
    """Done while loading, to a checkpoint that is not quantized: `fp8` or `bitsandbytes`."""
    tp_size: int
    pp_size: int
    step_tokens: int
    """Of one step at most, as vLLM's --max-num-batched-tokens."""
    sequences: int
    """At once at most, as vLLM's --max-num-seqs."""
    is_eager: bool
    """Captures no CUDA graphs."""
    has_windows: bool
    """Frees what is behind a window; --disable-hybrid-kv-cache-manager turns that off."""


def dtype_bytes(dtype: str) -> int | None:
    """Bytes of an element; None for "auto" and what is unknown."""
    return _DTYPE_BYTES.get(dtype)


def read_options(
    facts: ModelFacts,
    settings: ModelSettings,
    kind: DeviceKind,
    device_bytes: int | None = None,
) -> EngineOptions:
    """From the settings and their extra arguments; `device_bytes` is the size of one device."""
    arguments = settings.extra_args
    step_tokens, sequences = _MOST_STEP_TOKENS, _USUAL_SEQUENCES
    if device_bytes is not None and kind is DeviceKind.GPU:
        step_tokens, sequences = next(
            (tokens, at_once) for least, tokens, at_once in _DEFAULTS if device_bytes >= least
        )
    sequences = settings.max_sequences or _count(arguments, "--max-num-seqs") or sequences
    is_quantized = facts.quantization is not None
    return EngineOptions(
        dtype=_dtype(facts, settings),
        kv_dtype=option(arguments, "--kv-cache-dtype") or "auto",
        quantization=None if is_quantized else option(arguments, "--quantization", "-q"),
        tp_size=settings.ranks,
        pp_size=_count(arguments, "--pipeline-parallel-size", "-pp") or 1,
        step_tokens=_count(arguments, "--max-num-batched-tokens") or step_tokens,
        sequences=sequences,
        is_eager=kind is not DeviceKind.GPU or option(arguments, "--enforce-eager") is not None,
        has_windows=option(arguments, "--disable-hybrid-kv-cache-manager") is None,
    )


def option(arguments: list[str], *names: str) -> str | None:
    """The value of an engine's option in the model's settings; the last one counts."""
    found = None
    for argument, following in pairwise([*arguments, ""]):
        flag, equals, value = argument.partition("=")
        if flag.replace("_", "-") in names:
            found = value if equals else following
    return found


def _count(arguments: list[str], *names: str) -> int | None:
    text = option(arguments, *names) or ""
    return int(text) if text.isdecimal() and len(text) <= _MOST_DIGITS else None


def _dtype(facts: ModelFacts, settings: ModelSettings) -> str:
    """vLLM halves float32 unless it is asked for (config/model.py: _resolve_auto_dtype)."""
    if settings.dtype != "auto":
        return settings.dtype
    if facts.dtype == "float32":
        return "float16" if settings.task is Task.EMBED else "bfloat16"
    return facts.dtype
