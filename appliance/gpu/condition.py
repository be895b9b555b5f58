"""Conditions of a device: health, cause, words and remedy. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from appliance.protocol.devices import DeviceCause as Cause
from appliance.protocol.devices import DeviceHealth
from appliance.units import format_size

_ORDER = [DeviceHealth.HEALTHY, DeviceHealth.DEGRADED, DeviceHealth.QUARANTINED]

_RESET = (
    "Unload what runs on it, stop the server, `sudo nvidia-smi --gpu-reset -i {bus}`, start it"
    " again; reboot if that fails."
)
_LOOK = "Look for `NVRM` in `sudo dmesg`; a reboot is the usual cure."


@dataclass(frozen=True, kw_only=True)
class Condition:
    """How a device is, and what its owner can do. The text has no subject: "fell off the bus"."""

    health: DeviceHealth
    cause: Cause | None = None
    text: str = ""
    remedy: str = ""

    @property
    def is_quarantined(self) -> bool:
        """Whether nothing may be placed there."""
        return self.health is DeviceHealth.QUARANTINED


HEALTHY = Condition(health=DeviceHealth.HEALTHY)


def quarantined(cause: Cause, text: str, remedy: str) -> Condition:
    """Nothing may be placed there."""
    return Condition(health=DeviceHealth.QUARANTINED, cause=cause, text=text, remedy=remedy)


def degraded(cause: Cause, text: str, remedy: str) -> Condition:
    """It is used, but its owner should know."""
    return Condition(health=DeviceHealth.DEGRADED, cause=cause, text=text, remedy=remedy)


def worst(conditions: Iterable[Condition]) -> Condition:
    """The first of the gravest ones."""
    return max(conditions, key=lambda each: _ORDER.index(each.health), default=HEALTHY)


def driver_missing(error: str) -> Condition:
    """There is no NVML, or no kernel module behind it."""
    return quarantined(
        Cause.DRIVER_MISSING,
        f"the NVIDIA driver is not loaded ({error})",
        "`sudo modprobe nvidia`, or install the driver again after a kernel upgrade; `nvidia-smi`"
        " must work.",
    )


def driver_mismatch() -> Condition:
    """Library and kernel module differ, as after an upgrade without a reboot."""
    return quarantined(
        Cause.DRIVER_MISMATCH,
        "the NVIDIA driver and its libraries are of different versions",
        "The driver was upgraded while it was in use: reboot.",
    )


def nvml_lost(error: str) -> Condition:
    """All questions to the driver fail."""
    return quarantined(
        Cause.NVML_LOST,
        f"the NVIDIA driver does not answer ({error})",
        f"It is asked again. {_LOOK} In a container: restart the container.",
    )


def nvml_hangs(seconds: float) -> Condition:
    """A question to the driver has not come back."""
    return quarantined(
        Cause.NVML_HANGS,
        f"the NVIDIA driver has not answered for {seconds:.0f} s",
        _LOOK,
    )


def no_permission() -> Condition:
    """The server's user may not open the device."""
    return quarantined(
        Cause.NO_PERMISSION,
        "this user may not open it",
        "Add the server's user to the group that owns /dev/nvidia* (often `video` or `render`).",
    )


def gpu_lost() -> Condition:
    """It fell off the bus."""
    return quarantined(
        Cause.GPU_LOST,
        "it fell off the bus",
        "Look for `Xid 79` in `sudo dmesg`; reboot, and check its power and seat if it comes back.",
    )


def no_gpus() -> Condition:
    """The driver works and has nothing to drive."""
    return quarantined(
        Cause.GPU_LOST,
        "the NVIDIA driver lists no GPU",
        "`lspci -d 10de:` should list it. " + _LOOK,
    )


def gpu_fails(error: str) -> Condition:
    """It answers with another error."""
    return quarantined(Cause.GPU_FAILS, f"it does not answer ({error})", _LOOK)


def reset_needed(bus: str) -> Condition:
    """The driver wants a reset of this GPU."""
    return quarantined(
        Cause.RESET_NEEDED, "the driver says that it needs a reset", _RESET.format(bus=bus)
    )


def reboot_needed() -> Condition:
    """The driver wants a reboot of the machine."""
    return quarantined(
        Cause.REBOOT_NEEDED, "the driver says that the machine needs a reboot", "Reboot."
    )


def xid_needs_reset(code: int, meaning: str, bus: str) -> Condition:
    """An error after which the GPU is not to be trusted before a reset."""
    return quarantined(Cause.XID, f"Xid {code}: {meaning}", _RESET.format(bus=bus))


def xid_noted(code: int, meaning: str, times: int) -> Condition:
    """An error of a program, or one that the GPU has dealt with."""
    often = f", {times} times" if times > 1 else ""
    return degraded(
        Cause.XID,
        f"Xid {code} a short while ago{often}: {meaning}",
        "If it comes back with different models, suspect the GPU: see `sudo dmesg`.",
    )


def xid_recovered(code: int, meaning: str) -> Condition:
    """A grave error after which the driver wants no reset, or none any more."""
    return degraded(
        Cause.XID,
        f"Xid {code} a short while ago: {meaning}; the driver says that it has recovered",
        "If it comes back, suspect the GPU: see `sudo dmesg`.",
    )


def rows_failed() -> Condition:
    """A broken row of its memory could not be replaced."""
    return quarantined(
        Cause.MEMORY_ERRORS,
        "a broken part of its memory could not be replaced",
        "The GPU is at its end: have it exchanged.",
    )


def memory_errors(count: int, *, is_remap_pending: bool, bus: str) -> Condition:
    """Uncorrectable errors since the driver was loaded."""
    errors = f"{count} uncorrectable memory error{'' if count == 1 else 's'}"
    pending = " and rows wait for their replacement" if is_remap_pending else ""
    return degraded(
        Cause.MEMORY_ERRORS,
        f"{errors} since its last reset{pending}",
        _RESET.format(bus=bus),
    )


def mig_empty() -> Condition:
    """MIG is on, but there is nothing that an engine could use."""
    return quarantined(
        Cause.MIG_EMPTY,
        "MIG is on, but has no instances",
        "`sudo nvidia-smi mig -cgi PROFILE -C` makes one; `sudo nvidia-smi -mig 0` turns MIG off.",
    )


def memory_held(held_bytes: int, holders: Iterable[tuple[int, str]], seconds: float) -> Condition:
    """The memory of an engine that has ended did not come back."""
    names = [f"process {pid}{f' ({name})' if name else ''}" for pid, name in holders]
    by = ", ".join(names) or "a process that the driver does not name"
    first = names[0].split()[1] if names else "PID"
    return quarantined(
        Cause.MEMORY_HELD,
        f"{format_size(held_bytes)} of an engine that has ended are still held after"
        f" {seconds:.0f} s, by {by}",
        f"End it: `sudo kill -9 {first}`; `nvidia-smi` lists what uses the GPU.",
    )
