"""Sizes and durations: parsing what people write, printing what they read."""

import re

KIB = 1024
MIB = 1024**2
GIB = 1024**3

_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*$", re.IGNORECASE)
_SIZE_FACTORS = {
    "": 1,
    "k": 1000,
    "m": 1000**2,
    "g": 1000**3,
    "t": 1000**4,
    "ki": KIB,
    "mi": MIB,
    "gi": GIB,
    "ti": 1024**4,
}
_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?\s*$", re.IGNORECASE)
_DURATION_FACTORS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_size(text: str | int) -> int:
    """Bytes from `"8GiB"`, `"500M"` or a plain number; raises ValueError."""
    if isinstance(text, int):
        return text
    match = _SIZE.match(text)
    if match is None:
        raise ValueError(f"{text!r} is no size: write for example 8GiB, 500MiB or 2GB")
    return int(float(match[1]) * _SIZE_FACTORS[(match[2] or "").lower()])


def parse_duration(text: str | float) -> float:
    """Seconds from `"10m"`, `"1.5h"`, `"never"` (-1) or a plain number; raises ValueError."""
    if isinstance(text, int | float):
        return float(text)
    if text.strip().lower() in {"never", "-1"}:
        return -1.0
    match = _DURATION.match(text)
    if match is None:
        raise ValueError(f"{text!r} is no duration: write for example 30s, 10m, 2h or never")
    return float(match[1]) * _DURATION_FACTORS[(match[2] or "").lower()]


def format_size(size_bytes: float) -> str:
    """Binary units with one decimal: `1.5 GiB`."""
    if round(size_bytes / MIB) >= KIB:
        return f"{size_bytes / GIB:.1f} GiB"
    if round(size_bytes / KIB) >= KIB:
        return f"{size_bytes / MIB:.0f} MiB"
    if round(size_bytes) >= KIB:
        return f"{size_bytes / KIB:.0f} KiB"
    return f"{size_bytes:.0f} B"


def format_duration(seconds: float) -> str:
    """Short form for people: `14 s`, `2:05`, `3h 12m`, `4d 2h`."""
    if seconds < 0:
        return "never"
    if round(seconds, 1) < 10:
        return f"{seconds:.1f} s"
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60}m"
    return f"{whole // 86400}d {whole % 86400 // 3600}h"
