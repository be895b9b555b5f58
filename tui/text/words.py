"""Words for what the protocol has values for."""

from collections.abc import Sequence

from appliance.protocol.engines import Failure, FailureCause
from appliance.protocol.launchers import Launcher, LauncherState
from tui.text import format as text
from tui.text.sanitize import sanitize_line

CAUSES = {
    FailureCause.OUT_OF_MEMORY: "out of memory",
    FailureCause.KV_CACHE_TOO_SMALL: "KV cache too small",
    FailureCause.OOM_KILLED: "killed for want of memory",
    FailureCause.DOES_NOT_FIT: "does not fit",
    FailureCause.BAD_ARGUMENT: "setting refused",
    FailureCause.UNSUPPORTED_MODEL: "model not supported",
    FailureCause.MISSING_FILES: "files missing",
    FailureCause.GATED_FILES: "files of a gated model",
    FailureCause.CORRUPT_FILES: "files damaged",
    FailureCause.DISK_FULL: "disk full",
    FailureCause.DRIVER: "driver and libraries disagree",
    FailureCause.SOCKET: "no port or socket",
    FailureCause.NO_ENVIRONMENT: "no engine environment",
    FailureCause.STALLED: "load made no progress",
    FailureCause.HUNG: "hung while requests waited",
    FailureCause.KILLED: "killed by somebody",
    FailureCause.CRASHED: "crashed",
}


def failure_line(failure: Failure) -> str:
    """Cause and message on one line."""
    return f"{CAUSES[failure.cause]}: {sanitize_line(failure.message)}"


def launchers_line(launchers: Sequence[Launcher], measured_bytes: int = 0) -> str:
    """`launcher warm 542 MiB`; failed ones are told by `launcher_problems`.

    `measured_bytes` is what a device tells of them all, which is newer.
    """
    working = [each for each in launchers if each.state is not LauncherState.FAILED]
    if not working:
        return ""
    name = "launcher" if len(working) == 1 else f"{len(working)} launchers"
    states = "/".join(sorted({each.state.value for each in working}))
    held = measured_bytes or sum(each.memory_bytes for each in working)
    return f"{name} {states} {text.size(held) if held else ''}".rstrip()


def launcher_problems(launchers: Sequence[Launcher]) -> list[str]:
    """One line for each launcher that failed."""
    return [
        sanitize_line(f"launcher of {each.environment} failed: {each.problem or 'no reason known'}")
        for each in launchers
        if each.state is LauncherState.FAILED
    ]
