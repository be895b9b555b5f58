from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from appliance.hub.messages import Going
from appliance.hub.progress import Patience, Rate, at_rest, gone_on, verified
from appliance.protocol.pulls import Pull, PullFile, PullPhase, PullState, without_old

PULL = Pull(
    id="pull_1",
    repo="acme/small",
    model="acme/small",
    state=PullState.RUNNING,
    phase=PullPhase.FETCHING,
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
    total_bytes=1000,
)


def test_the_rate_is_that_of_the_last_seconds() -> None:
    rate = Rate()
    assert rate.per_s() is None
    for second in range(100):
        rate.add(second, 10 * second)
    for second in range(100, 120):
        rate.add(second, 990 + 1000 * (second - 99))
    assert rate.per_s() == 1000


def test_no_rate_of_too_short_a_time() -> None:
    rate = Rate()
    rate.add(5.0, 0)
    rate.add(5.2, 10**9)
    assert rate.per_s() is None


def test_what_is_left_at_that_rate() -> None:
    pull = gone_on(PULL, Going(current=[], done_bytes=400, received_bytes=0), 50.0)
    assert (pull.done_bytes, pull.rate_bytes_per_s, pull.eta_s) == (400, 50, 12.0)
    assert gone_on(PULL, Going(current=[], done_bytes=4, received_bytes=0), 0.0).eta_s is None


@given(st.floats(min_value=0, max_value=1e5), st.integers(min_value=1, max_value=200))
def test_pauses_grow_to_a_limit_and_end(give_up_s: float, tries: int) -> None:
    patience, now, pauses = Patience(0.0), 0.0, []
    for _ in range(tries):
        pause = patience.pause_s(now, give_up_s)
        if pause is None:
            assert now >= give_up_s
            break
        pauses.append(pause)
        now += pause
    assert pauses == sorted(pauses)
    assert all(2.0 <= pause <= 60.0 for pause in pauses)


def test_patience_is_new_once_something_has_come() -> None:
    patience = Patience(0.0)
    assert patience.pause_s(50.0, 100.0) == 2.0
    assert patience.pause_s(60.0, 100.0) == 4.0
    patience.have(99.0, 500)
    assert patience.pause_s(198.0, 100.0) == 2.0
    patience.have(198.5, 500)
    assert patience.pause_s(200.0, 100.0) is None


def test_one_file_is_marked() -> None:
    files = [PullFile(path=path, size_bytes=1, digest="0" * 40) for path in ("a", "b")]
    assert [file.is_verified for file in verified(files, "b")] == [False, True]


def test_at_rest_nothing_moves() -> None:
    moving = gone_on(PULL, Going(current=[], done_bytes=400, received_bytes=0), 50.0)
    for state in (PullState.PAUSED, PullState.CANCELLED):
        rest = at_rest(moving, state)
        assert (rest.phase, rest.eta_s, rest.rate_bytes_per_s) == (None, None, None)
        assert (rest.done_bytes, rest.state) == (400, state)
        assert (rest.ended_at is not None) == state.is_final


def test_only_the_newest_of_those_that_are_over_are_shown() -> None:
    over = {f"p{n:02}": at_rest(PULL, PullState.COMPLETED) for n in range(30)}
    kept = without_old({"open": PULL} | over)
    assert list(kept) == ["open", *sorted(over)[10:]]
