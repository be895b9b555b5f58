"""Numbers, sizes and times as people read them; None is always the caller's dash."""

from datetime import datetime

GIB = 1024**3


def gib(size_bytes: int) -> str:
    """GiB with one decimal, without the unit."""
    return f"{size_bytes / GIB:.1f}"


def size(size_bytes: float) -> str:
    """With its unit: `71.2 GiB`, `310 MiB`."""
    if size_bytes >= GIB:
        return f"{size_bytes / GIB:.1f} GiB"
    if size_bytes >= 1024**2:
        return f"{size_bytes / 1024**2:.0f} MiB"
    return f"{size_bytes / 1024:.0f} KiB"


def percent(ratio: float) -> str:
    """Whole percent."""
    return f"{ratio * 100:.0f}%"


def count(number: float) -> str:
    """Whole number with thousands commas."""
    return f"{number:,.0f}"


def rate(number: float) -> str:
    """A rate: one decimal below 100, commas above."""
    return f"{number:.1f}" if 0 < number < 100 else f"{number:,.0f}"


def latency(seconds: float) -> str:
    """`310ms`, `1.2s`, `14s`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    return f"{seconds:.1f}s" if seconds < 10 else f"{seconds:.0f}s"


def countdown(seconds: float) -> str:
    """Time left in at most four cells: `45s`, `29m`, `2h`, `3d`."""
    left = max(0, int(seconds))
    for limit, unit, letter in ((60, 1, "s"), (3600, 60, "m"), (86400, 3600, "h")):
        if left < limit:
            return f"{left // unit}{letter}"
    return f"{left // 86400}d"


def clock_span(seconds: float) -> str:
    """Minutes and seconds, as for an ETA: `0:38`, `12:05`, `1:02:03`."""
    left = max(0, round(seconds))
    hours, rest = divmod(left, 3600)
    minutes, seconds_left = divmod(rest, 60)
    if hours:
        return f"{hours}:{minutes:02d}:{seconds_left:02d}"
    return f"{minutes}:{seconds_left:02d}"


def uptime(seconds: float) -> str:
    """`12d 4h`, `3h 12m`, `5m`."""
    left = max(0, int(seconds))
    days, rest = divmod(left, 86400)
    hours, rest = divmod(rest, 3600)
    if days:
        return f"{days}d {hours}h"
    return f"{hours}h {rest // 60}m" if hours else f"{rest // 60}m"


def tokens(number: int) -> str:
    """A context length: `32k`, `512`."""
    return f"{number // 1024}k" if number >= 1024 else str(number)


def clock(moment: datetime) -> str:
    """Time of day."""
    return f"{moment:%H:%M:%S}"


def index_ranges(indices: list[int]) -> str:
    """Device indices, runs joined: `0,1`, `4-7`, `0-2,5`."""
    runs: list[list[int]] = []
    for index in sorted(set(indices)):
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return ",".join(
        f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs
    )
