"""The page about devices lists the causes and Xids that there are."""

import re
from pathlib import Path

from appliance.gpu.xid import XIDS_THAT_NEED_A_RESET
from appliance.protocol.devices import DeviceCause, DeviceHealth

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/devices.md").read_text()


def test_page_lists_every_health_and_cause_in_the_order_of_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    assert rows == [*(each.value for each in DeviceHealth), *(each.value for each in DeviceCause)]


def test_page_lists_the_xids_that_need_a_reset() -> None:
    listed = " ".join(PAGE.split()).partition("With older drivers ")[2].partition(" quarantine")[0]
    assert {int(code) for code in re.findall(r"\d+", listed)} == set(XIDS_THAT_NEED_A_RESET)


def test_tests_that_the_page_names_are_there() -> None:
    files = re.findall(r"`(tests/[\w/.]+)`", PAGE)
    assert files
    assert [file for file in files if not (ROOT / file).is_file()] == []
