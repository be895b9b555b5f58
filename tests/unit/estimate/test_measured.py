from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.estimate.estimator import Estimate
from appliance.estimate.measured import Measurement, corrected
from appliance.protocol.estimates import Basis
from appliance.units import GIB, MIB

WANTED = Estimate(
    weights_bytes=16 * GIB,
    kv_cache_bytes=4 * GIB,
    activations_bytes=GIB,
    graphs_bytes=GIB // 2,
    context_bytes=GIB // 2,
    margin_ratio=0.06,
)


def took(rest_gib: float, kv_gib: float = 4, **logged: int) -> Measurement:
    """An engine that needed so much besides its KV cache."""
    kv_cache = int(kv_gib * GIB)
    return Measurement(rank_bytes=int(rest_gib * GIB) + kv_cache, kv_cache_bytes=kv_cache, **logged)


def test_without_measurements_it_stays_an_estimate() -> None:
    assert corrected(WANTED, []) == WANTED


@pytest.mark.parametrize(
    ("rests", "expected"),
    [
        ([17.0], 17.0),
        ([19.5], 19.5),
        ([17.0, 17.5], 17.5),
        ([17.5, 17.0, 17.2], 17.5),
        # One that stands out does not count, if there are others to tell it by.
        ([17.0, 30.0], 30.0),
        ([17.0, 30.0, 17.5], 17.5),
        ([17.0, 30.0, 30.0], 30.0),
        # Only the newest eight.
        ([20.0, *[17.0] * 8], 17.0),
    ],
)
def test_the_most_of_the_recent_engines_counts(rests: list[float], expected: float) -> None:
    measured = corrected(WANTED, [took(rest) for rest in rests])
    assert measured.total_bytes == int(expected * GIB) + WANTED.kv_cache_bytes
    assert measured.kv_cache_bytes == WANTED.kv_cache_bytes
    assert measured.basis is Basis.MEASURED


def test_another_kv_budget_than_the_measured_one_is_planned_in_full() -> None:
    measured = corrected(WANTED, [took(17.0, kv_gib=1)])
    assert measured.total_bytes == 21 * GIB


def test_parts_are_those_of_the_engines_log() -> None:
    parts = corrected(WANTED, [took(18.0, weights_bytes=15 * GIB, graphs_bytes=200 * MIB)])
    assert (parts.weights_bytes, parts.graphs_bytes) == (15 * GIB, 200 * MIB)
    assert parts.activations_bytes == WANTED.activations_bytes
    assert parts.context_bytes == 2 * GIB - 200 * MIB


def test_what_cannot_be_is_not_believed() -> None:
    assert corrected(WANTED, [took(8.9), took(0)]) == WANTED
    assert corrected(WANTED, [took(8.9), took(17.0)]).total_bytes == 21 * GIB


def test_memory_that_the_owner_has_set_stays() -> None:
    chosen = replace(WANTED, basis=Basis.CHOSEN)
    assert corrected(chosen, [took(30.0)]) == chosen


def test_margin_is_the_spread_and_small_for_engines_that_agree() -> None:
    one, agree, differ = (
        corrected(WANTED, [took(rest) for rest in rests]).margin_ratio
        for rests in ([17.0], [17.0, 17.0], [17.0, 14.0])
    )
    assert agree < one < differ
    assert one == pytest.approx(0.05 * 17 / 21, abs=0.001)


@given(st.lists(st.floats(0, 60), max_size=12), st.integers(0, 8))
def test_parts_are_never_negative_and_never_less_than_the_kv_cache(
    rests: list[float], weights_gib: int
) -> None:
    loads = [took(rest, weights_bytes=weights_gib * GIB) for rest in rests]
    measured = corrected(WANTED, loads)
    assert measured.total_bytes >= measured.kv_cache_bytes == WANTED.kv_cache_bytes
    parts = (
        measured.weights_bytes,
        measured.activations_bytes,
        measured.graphs_bytes,
        measured.context_bytes,
    )
    assert min(parts) >= 0
    assert 0 <= measured.margin_ratio <= 1
