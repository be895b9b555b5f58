"""What is said when the disk is too small, by the server and by the process that fetches."""

from appliance.protocol.pulls import PullCause, PullProblem
from appliance.units import format_size


def disk_short(need_bytes: int, free_bytes: int, reserve_bytes: int) -> PullProblem:
    """What is needed and what there is."""
    return PullProblem(
        cause=PullCause.INSUFFICIENT_STORAGE,
        message=f"The disk has no room: {format_size(need_bytes)} are still to be fetched"
        f" and {format_size(reserve_bytes)} are to stay free, but"
        f" {format_size(free_bytes)} are free.",
        hint="Make room, or set `pulls.cache` to a larger disk, and resume the pull.",
    )
