"""What errors of vLLM, torch, CUDA and the system mean, and what to do about them. Pure data.

A rule's hint may use `{model}` and the named groups of its pattern. The wordings are those of vLLM
0.9 to 0.33, torch 2.6 to 2.14 and CUDA 12 and 13.
"""

import re
from typing import NamedTuple

from appliance.protocol.engines import FailureCause as Cause


class Rule(NamedTuple):
    """An error message and its meaning."""

    cause: Cause
    pattern: re.Pattern[str]
    what: str
    """What happened, for a person; the log's own words follow it."""
    hint: str
    fallback: str = ""
    """Hint where an optional group of the pattern did not match."""

    def hint_for(self, match: re.Match[str], model: str) -> str:
        """The hint, filled in."""
        given = {name: value for name, value in match.groupdict().items() if value}
        complete = len(given) == self.pattern.groups
        text = self.hint if complete or not self.fallback else self.fallback
        return text.format(model=model, **given)


AGAIN = "then load it again: `appliance load {model}`"
LESS_MEMORY = (
    "Use a shorter context (`appliance set {model} --context N`) or a smaller KV cache"
    " (`--kv-cache SIZE`), or unload another model first (`appliance stop MODEL`)"
)
_LIBRARY = (
    "The engine environment and this machine do not go together. Install one that does"
    " (`appliance engine install`, see docs/engine-environments.md), " + AGAIN + "."
)
_DRIVER = (
    "Check the driver with `nvidia-smi`. After an upgrade of the driver this machine must be"
    " restarted; a driver that is too old must be upgraded."
)
_INCOMPLETE = "The model's files are not complete. Fetch them again, " + AGAIN + "."
_ARGUMENTS = (
    "Correct the model's settings: `appliance show {model}` lists them, `appliance set {model}`"
    " changes them (`--arg`, `--context`, `--dtype`)."
)


def _rule(cause: Cause, pattern: str, what: str, hint: str, fallback: str = "") -> Rule:
    return Rule(cause, re.compile(pattern), what, hint, fallback)


# The first rule that matches a line decides, so the narrow ones stand before the wide ones.
RULES: tuple[Rule, ...] = (
    _rule(
        Cause.DISK_FULL,
        r"No space left on device.*/dev/shm|/dev/shm.*No space left on device"
        r"|shared memory.*No space left on device",
        "The shared memory of this machine (/dev/shm) is full",
        "Give it more room (in a container with `--shm-size`) or remove what is in it, "
        + AGAIN + ".",
    ),
    _rule(
        Cause.DISK_FULL,
        r"No space left on device|Disk quota exceeded",
        "The disk is full",
        "Free some disk space (`df -h` shows which disk is full; /dev/shm of a container grows"
        " with `--shm-size`), " + AGAIN + ".",
    ),
    _rule(
        Cause.KV_CACHE_TOO_SMALL,
        r"(?:larger than the available KV cache memory"
        r"|larger than the maximum number of tokens that can be stored in KV cache"
        r"|No available memory for the cache blocks)"
        r"(?:.*(?:estimated maximum model length is|stored in KV cache \() ?(?P<most>\d+))?",
        "The KV cache is too small for the context",
        "Set the context to {most} tokens or less: `appliance set {model} --context {most}`."
        " Or give it a larger KV cache: `appliance set {model} --kv-cache SIZE`.",
        "Set a shorter context (`appliance set {model} --context N`) or a larger KV cache"
        " (`--kv-cache SIZE`).",
    ),
    _rule(
        Cause.OUT_OF_MEMORY,
        r"on startup is less than|allocation is less than requested memory",
        "There is not enough free memory",
        LESS_MEMORY + ".",
    ),
    _rule(
        Cause.OUT_OF_MEMORY,
        r"(?i:out of memory)|OutOfMemoryError|Cannot allocate memory|can't allocate memory"
        r"|not enough memory|CUBLAS_STATUS_ALLOC_FAILED|std::bad_alloc|^MemoryError",
        "It ran out of memory",
        LESS_MEMORY + ".",
    ),
    _rule(
        Cause.SOCKET,
        r"[Aa]ddress already in use|EADDRINUSE|AF_UNIX path too long|is longer than \d+ characters"
        r"|error while attempting to bind|Cannot assign requested address",
        "It could not open its socket or port",
        "Look for an engine that was left behind (`ps -ef | grep VLLM`) and for ports in the"
        " model's arguments; a path that is too long calls for a shorter APPLIANCE_HOME.",
    ),
    _rule(
        Cause.SOCKET,
        r"Too many open files",
        "It may not open as many files and sockets as it needs",
        "Raise the limit of open files of the server (`LimitNOFILE=` of its unit, `ulimit -n`),"
        " then start the server again.",
    ),
    _rule(
        Cause.DRIVER,
        r"CUDA driver version is insufficient|NVIDIA driver on your system is too old"
        r"|Found no NVIDIA driver|no CUDA-capable device|Driver/library version"
        r"|CUDA driver initialization failed|NVML Shared Library Not Found"
        r"|unsupported display driver / cuda driver combination|forward compatibility was attempted"
        r"|No CUDA GPUs are available|[Ss]ystem not yet initialized|CUDA unknown error"
        r"|device\(s\) is/are busy or unavailable|uncorrectable ECC error|has fallen off the bus",
        "The NVIDIA driver does not work with this engine",
        _DRIVER,
    ),
    _rule(
        Cause.DRIVER,
        r"undefined symbol|\.so[.\d]*: cannot open shared object file|version `\S+' not found"
        r"|no kernel image is available|operator torchvision::nms does not exist"
        r"|Illegal instruction|^(?:ModuleNotFoundError|ImportError)\b",
        "A library does not fit",
        _LIBRARY,
    ),
    _rule(
        Cause.GATED_FILES,
        r"gated repo|GatedRepoError|Access to model \S+ is restricted|40[13] Client Error",
        "The files are gated",
        "Accept the model's licence on its page, fetch its files with a token of that account, "
        + AGAIN + ".",
    ),
    _rule(
        Cause.MISSING_FILES,
        r"outgoing traffic has been disabled|OfflineModeIsEnabled|LocalEntryNotFoundError"
        r"|is not a local folder and is not a valid model identifier|We couldn't connect to",
        "Files are missing, and engines fetch none themselves",
        "Fetch the files first, and name their directory instead of a model on a hub.",
    ),
    _rule(
        Cause.CORRUPT_FILES,
        r"Error while deserializing header|incomplete metadata|MetadataIncompleteBuffer"
        r"|is not a valid JSON file|JSONDecodeError|codec can't decode"
        r"|unpack requires a buffer of|PytorchStreamReader failed|invalid load key|UnpicklingError",
        "A file of the model is damaged",
        "Fetch the model's files again, " + AGAIN + ".",
    ),
    _rule(
        Cause.CORRUPT_FILES,
        r"size of tensor a .* must match the size of tensor b|Tried to load weight of size"
        r"|[Tt]here is no module or parameter named|were not initialized from checkpoint",
        "The weights do not fit the model's config.json",
        "Fetch all of the model's files again, from one version of it, " + AGAIN + ".",
    ),
    _rule(
        Cause.BAD_ARGUMENT,
        r"trust_remote_code=True|`trust_remote_code`",
        "The model brings code of its own, which engines do not run unasked",
        "If you trust it: `appliance set {model} --arg=--trust-remote-code`.",
    ),
    _rule(
        Cause.UNSUPPORTED_MODEL,
        r"Model architectures .* (?:are|is) not supported|has no vLLM implementation"
        r"|does not recognize this architecture|Unknown quantization method"
        r"|failed to be inspected",
        "This build of vLLM cannot run the model",
        "Use a newer engine environment (`appliance engine install`, then `appliance set {model}"
        " --environment NAME`) or another model.",
    ),
    _rule(
        Cause.MISSING_FILES,
        r"PermissionError: .*Permission denied",
        "A file may not be read",
        "Let the user that the server runs as read the model's directory, " + AGAIN + ".",
    ),
    _rule(
        Cause.MISSING_FILES,
        r"does not appear to have a file named|^FileNotFoundError|No such file or directory"
        r"|Cannot find any model weights|referenced in index but missing"
        r"|Couldn't instantiate the backend tokenizer|Can't load tokenizer for",
        "Files of the model are missing",
        _INCOMPLETE,
    ),
    _rule(
        Cause.NO_ENVIRONMENT,
        r" cannot be started: ",
        "The engine environment does not work",
        "`appliance engine list` shows the engine environments; install it again with"
        " `appliance engine install`.",
    ),
    _rule(
        Cause.BAD_ARGUMENT,
        r"error: (?:argument|unrecognized arguments|the following arguments|ambiguous option)"
        r"|^\S+: error: |validation errors? for|^Value error,|is not supported on current platform"
        r"|Invalid value|No common block size|only supported on GPUs with compute capability"
        r"|^Input should be ",
        "vLLM refuses an argument",
        _ARGUMENTS,
    ),
)  # fmt: skip

# A frame in which an error means this whatever its words.
PLACES: tuple[Rule, ...] = (
    _rule(
        Cause.CORRUPT_FILES,
        r"in parse_safetensors_file_metadata$",
        "A file of the model is damaged",
        "Fetch the model's files again, " + AGAIN + ".",
    ),
)

# They follow from the cause, which stands elsewhere in the log.
CONSEQUENCES = re.compile(
    r"Engine core initialization failed|EngineDeadError|Failed core proc|See (?:root cause|stack"
    r" trace)|Process \S+:$|died unexpectedly|EngineCore encountered an issue|Executor failed"
    r"|WorkerProc initialization failed|leaked (?:shared_memory|semaphore) objects"
)
# Where an engine begins to tell why it ends.
LAST_WORDS = re.compile(
    r"EngineCore failed to start|EngineCore encountered a fatal error|WorkerProc failed to start"
    r"|WorkerProc hit an exception|^Fatal Python error: |^terminate called after throwing"
)
# vLLM's own word for a process that ended by a signal: `{'EngineCore': -9}`, `exit code: -9`.
SIGNALLED = re.compile(r"(?:Failed core proc\(s\): \{'[^']+': |exit code:? )-(?P<number>\d+)")
