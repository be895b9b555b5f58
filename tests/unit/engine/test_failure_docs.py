"""The page about failures lists the causes that there are, and the code knows each of them."""

import re
from pathlib import Path

from appliance.engine.failure_rules import RULES
from appliance.protocol.engines import FailureCause

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/failures.md").read_text()


def test_page_lists_every_cause_once_in_the_order_of_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \|$", PAGE, re.MULTILINE)
    assert [cause for cause, _, _ in rows] == [cause.value for cause in FailureCause]
    assert all(shows and remedy for _, shows, remedy in rows)


def test_tests_that_the_page_names_are_there() -> None:
    files = re.findall(r"`(tests/[\w/.]+)`", PAGE)
    assert files
    assert [file for file in files if not (ROOT / file).is_file()] == []


def test_settings_that_the_page_names_are_there() -> None:
    settings = (ROOT / "appliance/config/settings.py").read_text()
    for name in ("stall_timeout", "retry_first", "retry_most", "max_attempts"):
        assert f"`{name}`" in PAGE
        assert f"    {name}: " in settings


def test_every_cause_that_a_log_can_tell_has_a_rule() -> None:
    seen_otherwise = {
        FailureCause.OOM_KILLED,
        FailureCause.DOES_NOT_FIT,
        FailureCause.STALLED,
        FailureCause.HUNG,
        FailureCause.KILLED,
        FailureCause.CRASHED,
    }
    assert {rule.cause for rule in RULES} == set(FailureCause) - seen_otherwise


def test_options_that_hints_name_are_those_of_the_command() -> None:
    command = (ROOT / "appliance/cli/add.py").read_text()
    for rule in RULES:
        for option in re.findall(r"`(--[a-z-]+)", rule.hint):
            assert f'"{option}"' in command or option == "--shm-size"
