from datetime import UTC, datetime
from typing import Any

import pytest

from appliance.cli.pull_watch import progress_text
from appliance.protocol.pulls import Pull, PullCause, PullPhase, PullProblem, PullState


def pull(**given: Any) -> Pull:
    values = {"state": PullState.RUNNING, "phase": PullPhase.FETCHING} | given
    return Pull(id="pull_1", repo="acme/small", model="m", created_at=datetime.now(UTC), **values)


GIB = 1 << 30
PROBLEM = PullProblem(cause=PullCause.NETWORK, message="The hub cannot be reached.")


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"phase": PullPhase.LISTING}, ["acme/small", "listing"]),
        (
            {"total_bytes": 4 * GIB, "done_bytes": GIB, "rate_bytes_per_s": 50 << 20, "eta_s": 61},
            ["25%", "1.0 GiB of 4.0 GiB", "50 MiB/s", "1:01 left"],
        ),
        ({"total_bytes": 4 * GIB, "done_bytes": 4 * GIB}, ["100%", "verifying"]),
        (
            {"state": PullState.QUEUED, "phase": None, "problem": PROBLEM},
            ["queued", "cannot be reached", "tried again"],
        ),
        ({"state": PullState.PAUSED, "phase": None}, ["paused"]),
    ],
)
def test_a_line_says_how_far_and_what_hinders(given: dict[str, Any], parts: list[str]) -> None:
    line = progress_text(pull(**given))
    for part in parts:
        assert part in line


def test_a_name_from_elsewhere_cannot_steer_the_terminal() -> None:
    problem = PullProblem(cause=PullCause.HUB, message="\x1b[2Jbad")
    line = progress_text(pull(state=PullState.QUEUED, phase=None, problem=problem))
    assert "\x1b" not in line
