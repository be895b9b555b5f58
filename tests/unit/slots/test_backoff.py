import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.slots.backoff import SOUND_AFTER_S, WINDOW_S, FailureSeries

LIMITS = {"first_s": 5.0, "most_s": 30.0, "max_attempts": 5}
# Seconds from the end of one engine to the end of the next, and how long that one was ready.
ENDS = st.lists(
    st.tuples(
        st.floats(0.0, 7200.0),
        st.one_of(st.none(), st.floats(0.0, 2 * SOUND_AFTER_S)),
        st.booleans(),
    ),
    max_size=60,
)


def series_of(*ready: float | None, every_s: float = 1.0) -> FailureSeries:
    series = FailureSeries()
    for number, ready_s in enumerate(ready):
        series = series.after_failure(number * every_s, ready_s)
    return series


@pytest.mark.parametrize(
    ("ready", "in_row"),
    [
        ([None], 1),
        ([None] * 4, 4),
        ([None, None, None, 5.0], 4),
        ([None, None, None, SOUND_AFTER_S - 0.1], 4),
        ([None, None, None, SOUND_AFTER_S], 1),
    ],
)
def test_failures_are_counted_until_an_engine_was_sound(
    ready: list[float | None], in_row: int
) -> None:
    assert series_of(*ready).in_row == in_row


@pytest.mark.parametrize(
    ("failures", "was_ready", "expected"),
    [
        (1, False, 5.0),
        (2, False, 10.0),
        (3, False, 20.0),
        (4, False, 30.0),
        (5, False, None),
        (6, False, None),
        (1, True, 0.0),
        (2, True, 10.0),
        (5, True, None),
    ],
)
def test_pause_doubles_up_to_the_longest_and_then_ends(
    failures: int, was_ready: bool, expected: float | None
) -> None:
    assert series_of(*[None] * failures).pause_s(was_ready=was_ready, **LIMITS) == expected


def test_engine_that_worked_until_it_was_asked_to_go_ends_the_row() -> None:
    series = series_of(None, None, None).after_success()
    assert series.after_failure(10.0, None).in_row == 1


def test_engine_that_crashes_every_eleven_minutes_is_given_up_within_the_hour() -> None:
    series = FailureSeries()
    pauses = []
    for number in range(1, 6):
        series = series.after_failure(number * 660.0, 655.0)
        pauses.append(series.pause_s(was_ready=True, **LIMITS))
    assert pauses == [0.0, 0.0, 0.0, 0.0, None]


def test_engine_that_crashes_now_and_then_comes_back_for_ever() -> None:
    series = FailureSeries()
    for number in range(100):
        series = series.after_failure(number * 1000.0, 995.0)
        assert series.pause_s(was_ready=True, **LIMITS) == 0.0


def test_loads_that_take_longer_than_the_window_are_given_up_too() -> None:
    series = series_of(*[None] * 5, every_s=WINDOW_S)
    assert len(series.recent) == 1
    assert series.pause_s(was_ready=False, **LIMITS) is None


def test_pause_after_very_many_failures() -> None:
    limits = {**LIMITS, "max_attempts": 10_000}
    assert series_of(*[None] * 2000).pause_s(was_ready=False, **limits) == 30.0


@given(ENDS, st.integers(1, 10), st.floats(0.0, 60.0), st.floats(0.0, 600.0))
def test_any_history(
    ends: list[tuple[float, float | None, bool]], most: int, first_s: float, most_s: float
) -> None:
    """There is never a further try after too many failures, and a pause is within its limits."""
    series, now, failed_at = FailureSeries(), 0.0, []
    for passed_s, ready_s, is_failure in ends:
        now += passed_s
        if not is_failure:
            series = series.after_success()
            continue
        before = series
        series = series.after_failure(now, ready_s)
        failed_at.append(now)
        recent = [at for at in failed_at if now - at < WINDOW_S]
        assert list(series.recent) == recent
        assert 1 <= series.in_row <= before.in_row + 1
        pause = series.pause_s(
            was_ready=ready_s is not None, first_s=first_s, most_s=most_s, max_attempts=most
        )
        assert (pause is None) == (len(recent) >= most or series.in_row >= most)
        if pause is not None:
            assert 0.0 <= pause <= most_s


def test_failures_that_were_the_fault_of_requests_do_not_count() -> None:
    series = series_of(5.0, 5.0, 5.0, 5.0)
    assert series.without(3) == FailureSeries(1, (0.0,))
    assert series.without(9) == FailureSeries()
    assert series.without(0) == series
    assert series.without(1).after_failure(4.0, 5.0).pause_s(was_ready=True, **LIMITS) is not None
