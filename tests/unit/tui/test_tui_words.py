"""Words for values of the protocol, and the parts of a device's memory."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.protocol.devices import Device, DeviceKind, DeviceSource, Occupant
from appliance.protocol.engines import EngineState, Failure, FailureCause
from appliance.protocol.launchers import Launcher, LauncherState
from appliance.protocol.models import Model, ModelSettings, Task
from appliance.protocol.system import ServerInfo, Snapshot
from tui.once import plain
from tui.text.glyphs import ASCII, UNICODE
from tui.text.rows import row_width, text_of
from tui.text.words import CAUSES, failure_line, launcher_problems, launchers_line
from tui.widgets.vram_bar import Parts, bar_cells, bar_row, legend, parts_of

MIB = 1024**2


@pytest.mark.parametrize("cause", FailureCause)
def test_every_cause_has_words(cause: FailureCause) -> None:
    assert 3 < len(CAUSES[cause]) <= 32
    assert "_" not in CAUSES[cause]
    failure = Failure(
        cause=cause, message="a\x1b[31m b", hint="", at=datetime(2026, 1, 1, tzinfo=UTC)
    )
    assert failure_line(failure) == f"{CAUSES[cause]}: a b"


def test_no_two_causes_share_their_words() -> None:
    assert len(set(CAUSES.values())) == len(FailureCause)


def launcher(state: LauncherState, mib: int = 0, problem: str = "") -> Launcher:
    return Launcher(environment="cpu", state=state, memory_bytes=mib * MIB, problem=problem)


WARM = launcher(LauncherState.WARM, 542)
WARMING = launcher(LauncherState.WARMING)
FAILED = launcher(LauncherState.FAILED, problem="exit\x1b[2J status 1\nsoon")


@pytest.mark.parametrize(
    ("launchers", "line"),
    [
        ([], ""),
        ([FAILED], ""),
        ([WARM], "launcher warm 542 MiB"),
        ([WARMING, FAILED], "launcher warming"),
        ([WARM, WARM], "2 launchers warm 1.1 GiB"),
        ([WARMING, WARM], "2 launchers warm/warming 542 MiB"),
    ],
)
def test_launchers_on_one_line(launchers: list[Launcher], line: str) -> None:
    assert launchers_line(launchers) == line


def test_what_a_device_tells_of_launchers_is_newer() -> None:
    assert launchers_line([launcher(LauncherState.WARM)], 485 * MIB) == "launcher warm 485 MiB"
    assert launchers_line([FAILED], 485 * MIB) == ""


def test_a_launcher_that_failed_says_why() -> None:
    assert launcher_problems([WARM, FAILED]) == ["launcher of cpu failed: exit status 1 soon"]
    assert launcher_problems([launcher(LauncherState.FAILED)])[0].endswith("no reason known")


def device(
    used: int, *, other: int = 0, launchers: int = 0, weights: int = 0, kv: int = 0
) -> Device:
    occupant = Occupant(
        model="m", engine_id="e", reserved_bytes=0, weights_bytes=weights, kv_cache_bytes=kv
    )
    return Device(
        id="cpu", index=0, name="", kind=DeviceKind.CPU, total_bytes=100, used_bytes=used,
        other_bytes=other, launcher_bytes=launchers, reserved_bytes=0, free_bytes=0,
        occupants=[occupant],
    )  # fmt: skip


def test_launchers_are_neither_weights_nor_other_nor_free() -> None:
    parts = parts_of(device(60, other=12, launchers=8, weights=25, kv=10))
    assert parts == Parts(weights=30, kv_cache=10, launchers=8, other=12, total=100)
    assert bar_cells(parts, 100) == (30, 10, 8, 12, 40)
    row = bar_row(device(60, other=12, launchers=8, weights=25, kv=10), 50, UNICODE)
    assert text_of(row) == "█" * 15 + "▓" * 5 + "░" * 4 + "▒" * 6 + "·" * 20


sizes = st.integers(0, 120)


@given(sizes, sizes, sizes, sizes, sizes, st.integers(0, 60))
def test_the_parts_of_a_bar_fill_it(
    ours: int, other: int, launchers: int, weights: int, kv: int, width: int
) -> None:
    used = ours + other + launchers
    given_ = device(used, other=other, launchers=launchers, weights=weights, kv=kv)
    parts = parts_of(given_)
    assert parts.weights + parts.kv_cache + parts.launchers + parts.other == used
    assert min(bar_cells(parts, width)) >= 0
    assert sum(bar_cells(parts, width)) == width
    assert row_width(bar_row(given_, width, ASCII)) == width


def test_the_legend_names_launchers_only_where_there_are_some() -> None:
    without = text_of(legend([device(60)], UNICODE))
    assert without == "█ weights ▓ KV cache ▒ other · free"
    with_one = text_of(legend([device(60), device(60, launchers=1)], UNICODE))
    assert with_one == "█ weights ▓ KV cache ░ launcher ▒ other · free"


def test_printed_once_it_tells_of_launchers_and_of_the_whole_failure() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    failure = Failure(cause=FailureCause.DISK_FULL, message="no space", hint="Free some.", at=now)
    model = Model(
        id="m", settings=ModelSettings(path="/m", task=Task.GENERATE), state=EngineState.FAILED,
        architecture="X", context_length=1, weights_bytes=1, need_bytes=1, created_at=now,
        failure=failure,
    )  # fmt: skip
    server = ServerInfo(
        host="box", version="1", pid=1, started_at=now, listen="http://x",
        device_source=DeviceSource.CPU, launchers=[WARM, FAILED],
    )  # fmt: skip
    snapshot = Snapshot(
        seq=1, server=server, devices=[device(1)], models=[model], engines=[], alerts=[]
    )
    lines = plain(snapshot).splitlines()
    assert lines[0].endswith("http://x/v1  launcher warm 542 MiB")
    assert any(line.endswith("disk full: no space Free some.") for line in lines)
    assert lines[-1] == "warning: launcher of cpu failed: exit status 1 soon"
