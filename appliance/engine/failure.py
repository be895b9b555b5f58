"""Why an engine failed, read from its last lines. Pure."""

import re
from datetime import datetime

import msgspec

from appliance.protocol.engines import Failure, FailureCause

_Cause = FailureCause
# The first pattern that matches a line decides. vLLM prints the root cause before the errors that
# follow from it, so lines are read from the first one on.
_PATTERNS: tuple[tuple[FailureCause, re.Pattern[str], str], ...] = (
    (
        _Cause.DISK_FULL,
        re.compile(r"No space left on device"),
        "Free some disk space, then load it again.",
    ),
    (
        _Cause.OUT_OF_MEMORY,
        re.compile(
            r"out of memory|OutOfMemoryError|No available memory for the cache blocks"
            r"|is larger than the available KV cache memory"
            r"|larger than the maximum number of tokens that can be stored in KV cache"
            r"|on startup is less than|allocation is less than requested memory"
            r"|Cannot allocate memory|MemoryError",
            re.IGNORECASE,
        ),
        "Use a shorter context, a smaller KV cache, or unload another model first.",
    ),
    (
        _Cause.DRIVER,
        re.compile(
            r"CUDA driver version is insufficient|no CUDA-capable device|Driver/library version"
            r"|CUDA driver initialization failed|NVML Shared Library Not Found"
        ),
        "Check the NVIDIA driver with `nvidia-smi`; after an upgrade a reboot is needed.",
    ),
    (
        _Cause.UNSUPPORTED_MODEL,
        re.compile(
            r"Model architectures .* (are|is) not supported|has no vLLM implementation"
            r"|does not recognize this architecture|Unknown quantization method"
        ),
        "Use a newer engine environment (`appliance engine install`) or another model.",
    ),
    (
        _Cause.MISSING_FILES,
        re.compile(
            r"does not appear to have a file named|FileNotFoundError|No such file or directory"
            r"|Cannot find any model weights|Error while deserializing header"
        ),
        "The checkpoint is incomplete; fetch it again.",
    ),
    (
        _Cause.BAD_ARGUMENT,
        re.compile(
            r"error: (argument|unrecognized arguments|the following arguments|ambiguous option)"
            r"|validation error for|Value error,|is not supported on current platform"
            r"|Invalid value"
        ),
        "Correct the model's settings (extra arguments, context length, dtype).",
    ),
)
_ERROR_LINE = re.compile(r"(?:^|\s)([A-Za-z_][\w.]*(?:Error|Exception|Interrupt)): (.+)")
_GENERIC = ("Engine core initialization failed", "EngineDeadError", "Failed core proc")
_PREFIX = re.compile(r"^\([A-Za-z_]+\d* pid=\d+\) ?(?:\w+ [\d-]+ [\d:]+ \[[^\]]+\] ?)?")
# vLLM reports harmless limits with the word error.
_HARMLESS = ("Found ulimit of", "DeprecationWarning", "FutureWarning")
_CRASH_HINT = "Read the engine's log; loading it again may work."


def classify(
    lines: list[str], *, first_line: int, exit_status: int | None, at: datetime, attempts: int
) -> Failure:
    """The cause by the last lines of the log; `first_line` is the number of `lines[0]`."""
    found = _by_pattern(lines) or _by_error_line(lines)
    if found is not None:
        cause, index, hint = found
        message = _clean(lines[index])
        log_line: int | None = first_line + index
    elif exit_status in {137, 139, 134, 135, 132}:
        cause, message, hint = _by_signal(exit_status)
        log_line = None
    else:
        cause, hint = _Cause.CRASHED, _CRASH_HINT
        message = "The engine ended without saying why."
        if exit_status:
            message = f"The engine ended with status {exit_status} without saying why."
        log_line = None
    return Failure(
        cause=cause,
        message=message,
        hint=hint,
        at=at,
        attempts=attempts,
        log_line=log_line,
        last_lines=[line for line in lines if line.strip()][-12:],
    )


def seen_by_us(failure: Failure, cause: FailureCause, message: str) -> Failure:
    """What the server saw itself beats what the log says."""
    return msgspec.structs.replace(
        failure,
        cause=cause,
        message=message,
        hint="Read the engine's log; loading it again may work.",
    )


def not_looked_after(error: Exception, at: datetime, attempts: int) -> Failure:
    """The engine was ended because the server itself failed with it."""
    return Failure(
        cause=_Cause.CRASHED,
        message=f"The server could not look after the engine: {error}.",
        hint="The server's log says more; loading it again may work.",
        at=at,
        attempts=attempts,
    )


def _by_pattern(lines: list[str]) -> tuple[FailureCause, int, str] | None:
    for index, line in enumerate(lines):
        if any(word in line for word in _HARMLESS):
            continue
        explained = _explained_by(lines, index)
        for cause, pattern, hint in _PATTERNS:
            if pattern.search(lines[explained]) or pattern.search(line):
                return cause, explained, hint
    return None


def _explained_by(lines: list[str], index: int) -> int:
    """pydantic writes what is wrong on the line after its heading."""
    if "validation error for" in lines[index] and index + 1 < len(lines):
        return min(index + 1, len(lines) - 1)
    return index


def _by_error_line(lines: list[str]) -> tuple[FailureCause, int, str] | None:
    for index, line in enumerate(lines):
        if _ERROR_LINE.search(line) and not any(word in line for word in (*_GENERIC, *_HARMLESS)):
            return _Cause.CRASHED, index, _CRASH_HINT
    return None


def _by_signal(status: int) -> tuple[FailureCause, str, str]:
    if status == 137:
        return (
            _Cause.KILLED,
            "The engine was killed (SIGKILL).",
            "If nobody did it, the machine ran out of RAM: see `dmesg`.",
        )
    return (
        _Cause.CRASHED,
        f"The engine crashed with signal {status - 128}.",
        "Read the engine's log; a driver or build problem is likely.",
    )


def _clean(line: str) -> str:
    text = _PREFIX.sub("", line).strip()
    match = _ERROR_LINE.search(text)
    if match is not None:
        text = f"{match[1]}: {match[2]}"
    return text if len(text) <= 500 else text[:499] + "…"
