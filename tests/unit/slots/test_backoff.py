import pytest

from appliance.slots.backoff import attempts_after, pause_s


@pytest.mark.parametrize(
    ("attempts", "ready_s", "expected"),
    [
        (0, None, 1),
        (3, None, 4),
        (3, 5.0, 4),
        (3, 599.9, 4),
        (3, 600.0, 1),
    ],
)
def test_failures_are_counted_until_an_engine_was_sound(
    attempts: int, ready_s: float | None, expected: int
) -> None:
    assert attempts_after(attempts, ready_s) == expected


@pytest.mark.parametrize(
    ("attempts", "was_ready", "expected"),
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
    attempts: int, was_ready: bool, expected: float | None
) -> None:
    pause = pause_s(attempts, was_ready=was_ready, first_s=5.0, most_s=30.0, max_attempts=5)
    assert pause == expected
