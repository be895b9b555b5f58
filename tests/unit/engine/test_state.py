from itertools import pairwise, product

import pytest

from appliance.engine.state import ENDED, may_follow
from appliance.protocol.engines import EngineState as S


@pytest.mark.parametrize(
    "path",
    [
        [S.STARTING, S.LOADING, S.READY, S.DRAINING, S.STOPPING, S.STOPPED],
        [S.STARTING, S.LOADING, S.READY, S.STOPPING, S.STOPPED],
        [S.STARTING, S.FAILED],
        [S.STARTING, S.LOADING, S.FAILED],
        [S.STARTING, S.STOPPING, S.STOPPED],
        [S.READY, S.DRAINING, S.READY],
        [S.READY, S.DRAINING, S.ASLEEP, S.WAKING, S.READY],
        [S.STOPPED, S.QUEUED, S.FREEING, S.STARTING],
    ],
)
def test_usual_lives_are_legal(path: list[S]) -> None:
    assert all(may_follow(before, after) for before, after in pairwise(path))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (S.STARTING, S.READY),
        (S.READY, S.LOADING),
        (S.READY, S.STOPPED),
        (S.STOPPING, S.READY),
        (S.STOPPED, S.READY),
        (S.STOPPED, S.STOPPING),
        (S.ASLEEP, S.READY),
        (S.LOADING, S.STARTING),
    ],
)
def test_short_cuts_are_not(before: S, after: S) -> None:
    assert not may_follow(before, after)


def test_every_pair_has_an_answer_and_no_state_follows_itself() -> None:
    for before, after in product(S, S):
        assert may_follow(before, after) in {True, False}
    assert not any(may_follow(state, state) for state in S)


def test_every_state_can_come_to_an_end() -> None:
    for start in S:
        reached, new = {start}, {start}
        while new:
            new = {after for state in new for after in S if may_follow(state, after)} - reached
            reached |= new
        assert reached >= ENDED


def test_engine_that_lives_can_fail() -> None:
    assert all(may_follow(state, S.FAILED) for state in S if state not in ENDED)
