from pathlib import Path

import pytest

from appliance.engine.oom import OomKills, oom_kills

VMSTAT = "pgfault 12\noom_kill 3\noom_kill_extra 9\n"
EVENTS = "low 0\nhigh 0\nmax 4\noom 2\noom_kill 1\noom_group_kill 0\n"


def test_counters_are_read(tmp_path: Path) -> None:
    vmstat, events = tmp_path / "vmstat", tmp_path / "memory.events"
    vmstat.write_text(VMSTAT)
    assert oom_kills(vmstat=vmstat) == OomKills(machine=3)
    assert oom_kills(tmp_path, vmstat) == OomKills(machine=3, own=None)
    events.write_text(EVENTS)
    assert oom_kills(tmp_path, vmstat) == OomKills(machine=3, own=1)


@pytest.mark.parametrize("text", ["", "oom_kill", "oom_kill many", "oom_killed 3"])
def test_kernel_that_does_not_tell(tmp_path: Path, text: str) -> None:
    vmstat = tmp_path / "vmstat"
    assert oom_kills(vmstat=vmstat) == OomKills(machine=0)
    vmstat.write_text(text)
    assert oom_kills(vmstat=vmstat) == OomKills(machine=0)


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (OomKills(machine=3), OomKills(machine=3), False),
        (OomKills(machine=3), OomKills(machine=4), True),
        # Somebody else of the machine was killed.
        (OomKills(machine=3, own=0), OomKills(machine=4, own=0), False),
        (OomKills(machine=3, own=0), OomKills(machine=4, own=1), True),
        # The cgroup is gone.
        (OomKills(machine=3, own=0), OomKills(machine=4), True),
        (OomKills(machine=3, own=5), OomKills(machine=3), False),
    ],
)
def test_growth(before: OomKills, now: OomKills, expected: bool) -> None:
    assert now.has_grown_since(before) is expected


def test_this_kernel() -> None:
    assert oom_kills().machine >= 0
