"""Why an engine failed, read from its last lines, for a person. Pure."""

import errno
import re
import signal
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec

from appliance.engine.failure_rules import (
    AGAIN,
    CONSEQUENCES,
    LAST_WORDS,
    LESS_MEMORY,
    PLACES,
    RULES,
    SIGNALLED,
    Rule,
)
from appliance.engine.tracebacks import Statement, statements
from appliance.protocol.engines import Failure, FailureCause

_Cause = FailureCause
_ERROR_LINE = re.compile(
    r"^[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|\.error)(?:: .+)?$"
    r"|^Fatal Python error: |^terminate called after throwing"
)
_ERROR_CLASS = re.compile(r"^(?:[A-Za-z_][\w.]*(?:Error|Exception|\.error): |Value error, )+")
# What vLLM appends for programmers or as a list of all that it knows.
_TAIL = re.compile(
    r" \[type=\w+, input_value=.*| Supported architectures: .*| Must be one of \[.*"
    r"| See https?://.*| Try increasing `gpu_memory_utilization`.*| Decrease --kv-cache-memory-.*"
)
_LONGEST_MESSAGE = 500
_LINES_BEFORE = 3
_LINES_AFTER = 4
_LINES_WITHOUT_CAUSE = 12
_SIGKILL_STATUS = 128 + signal.SIGKILL
_CRASH_HINT = (
    "`appliance logs {model}` shows its log. It may be a passing fault: `appliance load {model}`"
    " tries it again."
)
_KILLED_HINT = (
    "The kernel reports no lack of memory, so somebody or something else ended it; "
    + AGAIN.removeprefix("then ")
    + "."
)
_OOM_KILLED_HINT = (
    LESS_MEMORY + ". If the server runs in a container or a unit with a memory limit, raise that."
)
_SEEN_HINTS = {
    _Cause.KILLED: _KILLED_HINT,
    _Cause.STALLED: "If it is only slow (a network disk, a very large model), raise `stall_timeout`"
    " in the table [engines] of the configuration. `appliance logs {model}` shows how far it came.",
    _Cause.HUNG: "A fresh engine takes its place when it is wanted. If it hangs again,"
    " `appliance logs {model}` shows its log; `frozen_timeout` and `hang_timeout` in the table"
    " [engines] of the configuration say how long it may take.",
}
_BUS_ERROR_HINT = (
    "Often /dev/shm or the disk under a mapped file is full (`df -h`); in a container give it more"
    " with `--shm-size`."
)


class _Root(NamedTuple):
    """The statement that says why."""

    cause: FailureCause
    statement: Statement
    message: str
    hint: str


def classify(
    lines: Sequence[str],
    *,
    first_line: int,
    exit_status: int | None,
    at: datetime,
    attempts: int,
    model: str = "MODEL",
    oom_killed: bool = False,
) -> Failure:
    """The cause by the last lines of the log; `first_line` is the number of `lines[0]`.

    `oom_killed`: while the engine ran, the kernel killed somebody for want of memory. That counts
    only for an engine that ended by SIGKILL and whose log names nothing else.
    """
    said = statements(lines)
    root = _root(said, model)
    number = _signal(lines, exit_status)
    was_killed = number == signal.SIGKILL or any("died unexpectedly" in line for line in lines)
    if was_killed and root is not None and not _is_certain(root, said):
        # Clients' errors, and what others say of the death: nobody who is killed says why.
        root = None
    if root is not None:
        cause, message, hint = root.cause, root.message, root.hint
    elif was_killed and oom_killed:
        cause, message, hint = _oom_killed()
    else:
        cause, message, hint = _by_end(number, exit_status)
    return Failure(
        cause=cause,
        message=message,
        hint=hint.replace("{model}", model),
        at=at,
        attempts=attempts,
        log_line=first_line + root.statement.line if root else None,
        last_lines=_last_lines(said, root),
    )


def seen_by_us(
    failure: Failure, cause: FailureCause, message: str, model: str = "MODEL"
) -> Failure:
    """What the server saw itself beats what the log says; but the kernel knows better who killed
    a process, and the lines of the log stay.
    """
    if cause is _Cause.KILLED and failure.cause is _Cause.OOM_KILLED:
        return failure
    hint = _SEEN_HINTS.get(cause, _CRASH_HINT).replace("{model}", model)
    return msgspec.structs.replace(failure, cause=cause, message=message, hint=hint)


def not_looked_after(error: Exception, at: datetime, attempts: int) -> Failure:
    """The engine was ended because the server itself failed with it."""
    return Failure(
        cause=_Cause.CRASHED,
        message=f"The server could not look after the engine: {error}.",
        hint="The server's log says more; loading it again may work.",
        at=at,
        attempts=attempts,
    )


def not_started(error: OSError, at: datetime, attempts: int, model: str = "MODEL") -> Failure:
    """No process could be started for it."""
    cause, hint = _Cause.NO_ENVIRONMENT, "`appliance engine list` shows the engine environments."
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        cause = _Cause.DISK_FULL
        hint = f"Free some disk space (`df -h` shows which disk is full), {AGAIN}."
    elif error.errno in {errno.ENOMEM, errno.EAGAIN}:
        cause, hint = _Cause.OUT_OF_MEMORY, f"{LESS_MEMORY}."
    elif error.errno in {errno.EMFILE, errno.ENFILE}:
        cause = _Cause.SOCKET
        hint = "Raise the limit of open files of the server (`LimitNOFILE=`, `ulimit -n`)."
    return Failure(
        cause=cause,
        message=f"The engine could not be started: {error}.",
        hint=hint.replace("{model}", model),
        at=at,
        attempts=attempts,
    )


def _root(said: list[Statement], model: str) -> _Root | None:
    """The first error that is no consequence, and rather one of the engine's last words."""
    last_words = _last_words(said) or 0
    errors = [
        index
        for index, each in enumerate(said)
        if each.is_error and not CONSEQUENCES.search(each.text)
    ]
    late = [index for index in errors if index >= last_words]
    for part in (late, errors):
        for index in part:
            if (found := _by_rule(said, index, model)) is not None:
                return found
    for part in (late, errors):
        for index in part:
            text = said[index].text
            if _ERROR_LINE.match(text):
                return _Root(_Cause.CRASHED, said[index], _shorten(text), _CRASH_HINT)
    return None


def _last_words(said: list[Statement]) -> int | None:
    return next((at for at, each in enumerate(said) if LAST_WORDS.search(each.text)), None)


def _is_certain(root: _Root, said: list[Statement]) -> bool:
    """A known error, or one that the engine itself gives as the reason of its end."""
    if root.cause is not _Cause.CRASHED:
        return True
    begin = _last_words(said)
    return begin is not None and root.statement.line >= said[begin].line


def _by_rule(said: list[Statement], index: int, model: str) -> _Root | None:
    heading, field, explained = said[index], "", said[index]
    if "validation error" in heading.text:
        # pydantic explains it on the next line, or names the field there and explains it after.
        for following in said[index + 1 : index + 3]:
            if following.text.startswith("Value error,") or "[type=" in following.text:
                explained = following
                break
            field = following.text
        else:
            field = ""
    for statement in (explained, heading):
        for rule in RULES:
            if (match := rule.pattern.search(statement.text)) is not None:
                return _found(rule, match, explained, model, field)
    for rule in PLACES:
        if (match := rule.pattern.search(heading.place)) is not None:
            return _found(rule, match, heading, model, field)
    return None


def _found(rule: Rule, match: re.Match[str], statement: Statement, model: str, field: str) -> _Root:
    said = _TAIL.sub("", _ERROR_CLASS.sub("", statement.text)) or statement.text
    where = f"{field}: " if field else ""
    message = _shorten(f"{rule.what}: {where}{said}")
    return _Root(rule.cause, statement, message, rule.hint_for(match, model))


def _signal(lines: Sequence[str], exit_status: int | None) -> int | None:
    """The signal that ended the engine's first process, or one of its others by vLLM's word."""
    if exit_status is not None and 128 < exit_status <= 128 + signal.NSIG:
        return exit_status - 128
    for line in lines:
        if (match := SIGNALLED.search(line)) is not None:
            return int(match["number"])
    return None


def _by_end(number: int | None, status: int | None) -> tuple[FailureCause, str, str]:
    if number == signal.SIGKILL:
        return _Cause.KILLED, "The engine was killed (SIGKILL).", _KILLED_HINT
    if number in {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}:
        return _Cause.KILLED, f"Somebody told the engine to end (signal {number}).", _KILLED_HINT
    if number is not None:
        hint = _BUS_ERROR_HINT if number == signal.SIGBUS else _CRASH_HINT
        return _Cause.CRASHED, f"The engine crashed with signal {number}.", hint
    how = f" with status {status}" if status else ""
    return _Cause.CRASHED, f"The engine ended{how} without saying why.", _CRASH_HINT


def _oom_killed() -> tuple[FailureCause, str, str]:
    message = "The kernel killed the engine, because the memory was used up (OOM killer)."
    return _Cause.OOM_KILLED, message, _OOM_KILLED_HINT


def _last_lines(said: list[Statement], root: _Root | None) -> list[str]:
    """The lines around the cause; without one the last of all."""
    if root is None:
        return [_shorten(each.text) for each in said[-_LINES_WITHOUT_CAUSE:]]
    place = said.index(root.statement)
    chosen = said[max(place - _LINES_BEFORE, 0) : place + 1]
    for each in said[place + 1 : place + 1 + _LINES_AFTER]:
        if CONSEQUENCES.search(each.text) or not each.is_error or each.text == root.statement.text:
            break
        chosen.append(each)
    return [_shorten(each.text) for each in chosen]


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST_MESSAGE else text[: _LONGEST_MESSAGE - 1] + "…"
