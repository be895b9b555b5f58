import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.slots.arrivals import ArrivalRate

times = st.lists(st.floats(0, 1e6), min_size=1, max_size=50).map(sorted)


def rate_of(arrivals: list[float], **half_lives: float) -> ArrivalRate:
    rate = ArrivalRate(**half_lives)
    for at in arrivals:
        rate.add(at)
    return rate


def test_nothing_came() -> None:
    rate = ArrivalRate()
    assert rate.per_second(5.0) == 0.0
    assert rate.idle_s(5.0) == math.inf


@pytest.mark.parametrize("per_second", [0.01, 0.5, 20.0])
def test_steady_stream_is_measured_within_a_tenth(per_second: float) -> None:
    dice = random.Random(1)
    rate, now, steady_s = ArrivalRate(short_half_life_s=1000 / per_second), 0.0, 20_000 / per_second
    while now < steady_s:
        now += dice.expovariate(per_second)
        rate.add(now)
    assert rate.per_second(now) == pytest.approx(per_second, rel=0.1)


def test_burst_raises_the_rate_at_once_and_is_over_soon() -> None:
    rate = ArrivalRate()
    for number in range(100):
        rate.add(1000.0 + number / 10)
    assert rate.per_second(1010.0) > 1.0
    assert rate.per_second(1010.0 + 600) < 0.03


def test_model_that_is_used_now_and_then_is_remembered_for_hours() -> None:
    rate = rate_of([600.0 * number for number in range(50)])
    assert rate.per_second(600.0 * 49 + 3600) > 0.4 / 600


def test_arrivals_together_count_like_arrivals_one_by_one() -> None:
    together = ArrivalRate()
    together.add(7.0, 3)
    assert together.per_second(20.0) == rate_of([7.0, 7.0, 7.0]).per_second(20.0)


@given(times, st.floats(0, 1e5), st.floats(0, 1e5))
def test_silence_never_raises_the_rate(arrivals: list[float], first: float, more: float) -> None:
    rate = rate_of(arrivals)
    now = arrivals[-1] + first
    assert rate.per_second(now + more) <= rate.per_second(now)
    assert rate.idle_s(now) == pytest.approx(first, abs=1e-6)


@given(times, st.floats(0, 1e5))
def test_each_arrival_raises_the_rate(arrivals: list[float], pause: float) -> None:
    now = arrivals[-1] + pause
    before = rate_of(arrivals).per_second(now)
    assert rate_of([*arrivals, now]).per_second(now) > before >= 0


@given(times, st.floats(-1e6, 1e6))
def test_clock_that_goes_back_does_no_harm(arrivals: list[float], jump: float) -> None:
    rate = rate_of(arrivals)
    now = arrivals[-1] + jump
    rate.add(now)
    assert 0 < rate.per_second(now) < math.inf
    assert rate.idle_s(now) >= 0


def test_who_asks_regularly_is_expected_at_the_time_of_the_next_request() -> None:
    rate = rate_of([0.0, 60.0, 119.0, 181.0, 240.0])
    soon = rate.next_in_s(250.0)
    assert soon is not None
    assert 45 < soon < 55
    assert rate.next_in_s(305.0) == 0.0
    # So late that it has most likely left.
    assert rate.next_in_s(400.0) is None


def test_nothing_is_foretold_of_who_asks_at_random_or_has_just_begun() -> None:
    dice = random.Random(3)
    now, arrivals = 0.0, []
    for _ in range(50):
        now += dice.expovariate(1 / 60)
        arrivals.append(now)
    foretold = [rate_of(arrivals[:count]).next_in_s(arrivals[count - 1]) for count in range(1, 50)]
    assert sum(each is not None for each in foretold) < 10
    assert rate_of([0.0, 60.0, 120.0]).next_in_s(130.0) is None
