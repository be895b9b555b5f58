from datetime import UTC, datetime
from typing import Any

import pytest

from appliance.cli.pull_watch import Lines, progress_text
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


def test_on_a_terminal_one_line_is_rewritten(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    show = Lines()
    show.changed(pull(total_bytes=100, done_bytes=10))
    show.changed(pull(total_bytes=100, done_bytes=20))
    show.say("The server went away.")
    show.say("The server went away.")
    show.changed(pull(state=PullState.COMPLETED, phase=None, total_bytes=100, done_bytes=100))
    said = capsys.readouterr().err
    lines = [line.rsplit("\x1b[K", 1)[-1] for line in said[:-1].split("\n")]
    assert ["20%" in lines[0], lines[1], "100%" in lines[2]] == [
        True,
        "The server went away.",
        True,
    ]
    assert len(lines) == 3
    assert said.endswith("\n")
    assert all(len(line) < 60 for line in lines)


def test_elsewhere_each_state_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    show = Lines()
    for done in range(0, 100, 10):
        show.changed(pull(total_bytes=100, done_bytes=done))
    show.changed(pull(state=PullState.PAUSED, phase=None))
    assert len(capsys.readouterr().err.splitlines()) == 2
