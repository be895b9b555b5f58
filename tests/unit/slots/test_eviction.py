import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.slots.eviction import expected_cost_s, reuse_probability

seconds = st.floats(0, 1e7)
rates = st.floats(0, 1e4)


def test_engine_that_nobody_asks_for_costs_nothing() -> None:
    assert expected_cost_s(120.0, rate_per_s=0.0, idle_s=10.0) == 0.0


def test_engine_that_is_asked_for_all_the_time_costs_its_reload() -> None:
    assert expected_cost_s(120.0, rate_per_s=100.0, idle_s=0.0) == pytest.approx(120.0, rel=0.01)


def test_one_request_in_a_horizon_is_an_even_chance() -> None:
    assert reuse_probability(1 / 300, 0.0, 300.0) == pytest.approx(0.5)


def test_engine_that_loads_quickly_goes_before_one_that_is_asked_for_as_often() -> None:
    assert expected_cost_s(3.0, 0.1, 5.0) < expected_cost_s(90.0, 0.1, 5.0)


def test_rare_engine_that_loads_slowly_may_cost_less_than_a_frequent_quick_one() -> None:
    assert expected_cost_s(60.0, 1e-5, 5.0) < expected_cost_s(10.0, 0.1, 5.0)


@given(seconds, rates, seconds, seconds)
def test_cost_lies_between_nothing_and_the_reload(
    reload_s: float, rate: float, idle_s: float, horizon_s: float
) -> None:
    assert 0.0 <= expected_cost_s(reload_s, rate, idle_s, horizon_s) <= reload_s


@given(seconds, rates, seconds, seconds, seconds)
def test_cost_is_monotone(
    reload_s: float, rate: float, idle_s: float, horizon_s: float, more: float
) -> None:
    cost = expected_cost_s(reload_s, rate, idle_s, horizon_s)
    rounding = 1e-9 * cost
    assert expected_cost_s(reload_s + more, rate, idle_s, horizon_s) >= cost - rounding
    assert expected_cost_s(reload_s, rate + more, idle_s, horizon_s) >= cost - rounding
    assert expected_cost_s(reload_s, rate, idle_s, horizon_s + more) >= cost - rounding
    assert expected_cost_s(reload_s, rate, idle_s + more, horizon_s) <= cost + rounding


def test_the_nearer_the_next_request_of_a_regular_the_more_its_engine_is_worth() -> None:
    costs = [
        expected_cost_s(10.0, 0.02, 5.0, next_in_s=next_in_s) for next_in_s in (0.0, 10.0, 60.0)
    ]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] == 10.0
