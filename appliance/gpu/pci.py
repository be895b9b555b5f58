"""NVIDIA GPUs on the PCI bus, as the kernel lists them without NVIDIA's driver."""

from pathlib import Path

SYSFS = Path("/sys/bus/pci/devices")
"""Where the kernel lists what is on the bus."""

_MODULE = Path("/proc/driver/nvidia/version")
_NVIDIA = "0x10de"
# PCI classes: VGA controller, 3D controller.
_CLASSES = ("0x0300", "0x0302")


def nvidia_gpus(sysfs: Path = SYSFS) -> list[str]:
    """Bus addresses in order; empty where the bus cannot be seen."""
    try:
        entries = sorted(sysfs.iterdir())
    except OSError:
        return []
    return [
        entry.name
        for entry in entries
        if _read(entry / "vendor") == _NVIDIA and _read(entry / "class").startswith(_CLASSES)
    ]


def is_module_loaded(module: Path = _MODULE) -> bool:
    """Whether the kernel has NVIDIA's module."""
    return module.exists()


def numa_node(bus: str, sysfs: Path = SYSFS) -> int | None:
    """Of the device at NVML's bus address (`00000000:01:00.0`); None: not told."""
    domain, _, rest = bus.lower().partition(":")
    entry = sysfs / f"{domain[-4:]}:{rest}"
    if _read(entry / "vendor") != _NVIDIA:
        return None
    text = _read(entry / "numa_node")
    return int(text) if text.isdigit() else None


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
