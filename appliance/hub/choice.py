"""Which files of a repository vLLM needs. Pure.

Weights are taken in one format: safetensors, else PyTorch's `*.bin`, else `*.pt`, the order in
which vLLM looks for them (vLLM: default_loader.py, `_prepare_weights`). Where an index names the
shards of a safetensors checkpoint, only those are taken (weight_utils.py:
filter_duplicate_safetensors_files).
"""

import re
from collections.abc import Collection, Sequence
from pathlib import PurePosixPath

from appliance.errors import InvalidRequestError
from appliance.protocol.pulls import PullFile

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"

# What else than weights a model may need: configs, tokenizers, templates, custom code, licences.
_SMALL = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".bpe", ".vocab", ".py", ".jsonl")
_LICENCES = re.compile(r"(?:licen[cs]e|notice|use_policy)[^/]*", re.IGNORECASE)
_VERSIONED_TOKENIZER = re.compile(r"tokenizer\.(?:model|mm\.model)\.v\d+(?:m\d+)?")
# The same model for other programs, and what its training left.
_OTHER = {
    "coreml", "eval", "eval_results", "examples", "figures", "flax", "gguf", "logs", "metal",
    "mlx", "onnx", "openvino", "original", "runs", "tensorboard", "tf",
}  # fmt: skip
# Layers after the model itself, as sentence-transformers keep them: `2_Dense/model.safetensors`.
_MODULE = re.compile(r"\d+_[A-Za-z]+")
_TRAINING = re.compile(
    r"(?:training_args|optimizer|scheduler|random_states[^/]*|rng_state[^/]*|scaler)\.(?:bin|pt)"
    r"|trainer_state\.json"
)
_OTHER_WEIGHTS = re.compile(r"(?:consolidated|adapter_)[^/]*")
_INDEXES = {"pytorch_model.bin.index.json": ".bin"}
_OTHER_INDEXES = {"tf_model.h5.index.json", "flax_model.msgpack.index.json"}


def choose(files: Sequence[PullFile], shards: Collection[str] | None = None) -> list[PullFile]:
    """The files to pull, in the order of `files`; `shards` are those that the index names.

    Raises InvalidRequestError where there is no model that vLLM could load.
    """
    paths = {file.path for file in files}
    if CONFIG not in paths:
        raise _unsupported(
            f"there is no {CONFIG} in it", "It may be a dataset, an adapter or a GGUF repository."
        )
    weights = _weights(paths, shards)
    wanted = weights | {path for path in paths if _is_small(path, weights)}
    return [file for file in files if file.path in wanted]


def shards_of(weight_map: dict[str, str]) -> set[str]:
    """Files that an index names (`weight_map`: tensor to file)."""
    return set(weight_map.values())


def _weights(paths: set[str], shards: Collection[str] | None) -> set[str]:
    if shards is not None:
        missing = sorted(set(shards) - paths)
        if missing:
            raise _unsupported(
                f"its index names {missing[0]}, which is not there",
                "Its authors have to complete it; try another revision.",
            )
        return set(shards) | _modules(paths, ".safetensors")
    at_root = {path for path in paths if "/" not in path and not _TRAINING.fullmatch(path)}
    for suffix in (".safetensors", ".bin", ".pt"):
        found = {path for path in at_root if path.endswith(suffix)}
        usual = {path for path in found if not _OTHER_WEIGHTS.fullmatch(path)}
        consolidated = {path for path in found if path.startswith("consolidated")}
        if chosen := usual or consolidated:
            whole = f"model{suffix}"
            kept = {whole} if suffix == ".safetensors" and whole in chosen else chosen
            return kept | _modules(paths, suffix)
    raise _unsupported(
        "it holds no weights that vLLM reads",
        "Take a repository with safetensors; GGUF, ONNX and adapters are not pulled.",
    )


def _modules(paths: set[str], suffix: str) -> set[str]:
    return {
        path
        for path in paths
        if path.endswith(suffix)
        and len(PurePosixPath(path).parts) == 2
        and _MODULE.fullmatch(PurePosixPath(path).parts[0])
    }


def _is_small(path: str, weights: set[str]) -> bool:
    parts = PurePosixPath(path).parts
    name = parts[-1]
    if any(part.startswith(".") or part in _OTHER for part in parts):
        return False
    if any(part.startswith("checkpoint-") for part in parts[:-1]) or _TRAINING.fullmatch(name):
        return False
    if name in _OTHER_INDEXES or (name in _INDEXES and not _has_suffix(weights, _INDEXES[name])):
        return False
    return (
        name.endswith(_SMALL)
        or _LICENCES.fullmatch(name) is not None
        or _VERSIONED_TOKENIZER.fullmatch(name) is not None
    )


def _has_suffix(weights: set[str], suffix: str) -> bool:
    return any(path.endswith(suffix) for path in weights)


def _unsupported(problem: str, hint: str) -> InvalidRequestError:
    return InvalidRequestError(f"vLLM cannot load this repository: {problem}.", hint=hint)
