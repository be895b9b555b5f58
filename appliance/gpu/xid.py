"""Xid errors: what the driver reports of a GPU, and which of them are to be taken seriously. Pure.

Source: NVIDIA, "Analyzing Xid Errors with the Xid Catalog" (docs.nvidia.com/deploy/xid-errors),
column "Resolution Bucket (Immediate Action)". Drivers since branch 570 also tell what is to be done
(NVML_FI_DEV_GET_GPU_RECOVERY_ACTION); where they do, that decides and an Xid is only noted.
"""

from dataclasses import dataclass

from appliance.gpu.condition import HEALTHY, Condition, xid_needs_reset, xid_noted, xid_recovered

NOTED_FOR_S = 600.0
"""How long an error that needs no reset is shown."""

# Follows from another error, or from the end of a process that was killed, as engines are.
_IGNORED = frozenset({45, 154})

XIDS_THAT_NEED_A_RESET = {
    46: "the GPU stopped processing",
    48: "an uncorrectable memory error",
    62: "a controller inside the GPU halted",
    64: "a broken memory row could not be recorded",
    74: "an NVLink error",
    79: "it fell off the bus",
    95: "an uncontained memory error",
    119: "its firmware (GSP) does not answer",
    120: "an error of its firmware (GSP)",
    140: "an unrecovered memory error",
    143: "it could not be initialised",
}

_NOTED = {
    13: "a program's kernel went wrong",
    31: "a program used an invalid address",
    32: "a program's commands were corrupted",
    43: "a program's work was given up",
    63: "a broken memory row is to be replaced at the next reset",
    68: "the video decoder failed",
    69: "a program's kernel used an invalid class",
    92: "many memory errors were corrected",
    94: "a memory error that hit one program only",
    109: "a program could not be switched away in time",
}


@dataclass(frozen=True)
class _Seen:
    code: int
    times: int
    last_at: float


class XidLog:
    """The errors of each GPU. Times are of one monotonic clock."""

    def __init__(self) -> None:
        self._seen: dict[str, dict[int, _Seen]] = {}

    def add(self, gpu: str, code: int, now: float) -> None:
        """An error was reported."""
        if code in _IGNORED:
            return
        of_gpu = self._seen.setdefault(gpu, {})
        times = of_gpu[code].times if code in of_gpu else 0
        of_gpu[code] = _Seen(code, times + 1, now)

    def forget(self, gpu: str) -> None:
        """The GPU was reset."""
        self._seen.pop(gpu, None)

    def condition(self, gpu: str, now: float, *, bus: str, driver_says_fine: bool) -> Condition:
        """What follows; `driver_says_fine`: it was asked, and wants no reset."""
        grave, noted = None, None
        for seen in self._seen.get(gpu, {}).values():
            is_recent = now - seen.last_at < NOTED_FOR_S
            if seen.code in XIDS_THAT_NEED_A_RESET and not driver_says_fine:
                grave = seen
            elif is_recent and (noted is None or seen.last_at > noted.last_at):
                noted = seen
        if grave is not None:
            return xid_needs_reset(grave.code, XIDS_THAT_NEED_A_RESET[grave.code], bus)
        if noted is None:
            return HEALTHY
        if noted.code in XIDS_THAT_NEED_A_RESET:
            return xid_recovered(noted.code, XIDS_THAT_NEED_A_RESET[noted.code])
        return xid_noted(noted.code, _meaning(noted.code), noted.times)


def _meaning(code: int) -> str:
    return _NOTED.get(code, "see NVIDIA's Xid catalogue")
