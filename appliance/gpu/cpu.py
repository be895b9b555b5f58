"""The CPU as a device: its memory budget is RAM."""

from pathlib import Path

from appliance.errors import DeviceError
from appliance.gpu.reading import Reading
from appliance.protocol.devices import DeviceKind, DeviceSource

_DEFAULT_SHARE = 0.75
_PROC = Path("/proc")


class CpuReader:
    """One device with a share of the machine's RAM, or of the container's limit."""

    source = DeviceSource.CPU

    def __init__(self, budget_bytes: int | None, proc: Path = _PROC) -> None:
        self._proc = proc
        self._budget_bytes = budget_bytes
        self._name = _processor_name(proc)
        self._last_times: tuple[int, int] | None = None

    def read(self) -> list[Reading]:
        """The one device. Raises DeviceError."""
        total, available = machine_memory(self._proc)
        budget = self._budget_bytes or int(total * _DEFAULT_SHARE)
        return [
            Reading(
                id="cpu",
                index=0,
                name=self._name,
                kind=DeviceKind.CPU,
                total_bytes=min(budget, total),
                available_bytes=available,
                utilization_ratio=self._utilization(),
            )
        ]

    def close(self) -> None:
        """Nothing is held."""

    def _utilization(self) -> float | None:
        """Busy share of all cores since the last call (proc_stat(5), first line)."""
        fields = (self._proc / "stat").read_text().split("\n", 1)[0].split()[1:]
        times = [int(value) for value in fields[:8]]
        idle, total = times[3] + times[4], sum(times)
        last, self._last_times = self._last_times, (idle, total)
        if last is None or total == last[1]:
            return None
        return min(max(1 - (idle - last[0]) / (total - last[1]), 0.0), 1.0)


def machine_memory(proc: Path = _PROC) -> tuple[int, int]:
    """Total and available bytes of RAM; a container's limit counts where it is lower.

    Raises DeviceError.
    """
    try:
        lines = (proc / "meminfo").read_text().splitlines()
    except OSError as error:
        raise DeviceError(f"The memory of this machine cannot be read: {error}.") from error
    values = {
        name: int(rest.split()[0]) * 1024
        for name, _, rest in (line.partition(":") for line in lines)
    }
    total, available = values["MemTotal"], values["MemAvailable"]
    limit, used = _cgroup_number("memory.max"), _cgroup_number("memory.current")
    if limit is not None and limit < total:
        total = limit
        available = min(available, limit - (used or 0))
    return total, available


def _cgroup_number(name: str) -> int | None:
    """A number of the container's root cgroup (v2); None where there is no limit."""
    try:
        text = (Path("/sys/fs/cgroup") / name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _processor_name(proc: Path) -> str:
    try:
        for line in (proc / "cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return "CPU"
