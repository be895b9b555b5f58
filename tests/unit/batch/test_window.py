"""How many requests of batches an engine gets at a time."""

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from appliance.batch.window import FIRST, Load, Window

MOST = 1024


def load(running: int, waiting: int = 0, kv_cache_ratio: float = 0.1) -> Load:
    return Load(running=running, waiting=waiting, kv_cache_ratio=kv_cache_ratio)


def settled(capacity: int, *, most: int = MOST, looks: int = 100) -> Window:
    """Before an engine that runs `capacity` long requests at a time; what is more waits in it."""
    window = Window(most)
    for _ in range(looks):
        running = min(window.size, capacity)
        window.look(load(running, window.size - running), people=False)
    return window


@given(st.integers(1, 600))
def test_an_engine_is_full_and_little_waits_in_it(capacity: int) -> None:
    window = settled(capacity)
    assert capacity <= window.size <= capacity + max(capacity // 4, 4) + 1


@given(st.integers(1, 600))
def test_it_settles(capacity: int) -> None:
    assert settled(capacity, looks=100).size == settled(capacity, looks=101).size


def test_short_requests_in_waves_do_not_shrink_it() -> None:
    # As an engine for 128 at a time was seen with answers of eight tokens.
    waves = deque([(5, 0), (107, 0), (63, 91), (77, 0), (29, 0), (124, 29), (127, 60), (56, 10)])
    window = Window(MOST)
    for _ in range(40):
        window.look(load(*waves[0]), people=False)
        waves.rotate(-1)
        assert window.size >= FIRST


def test_one_look_at_a_crowd_changes_nothing() -> None:
    window = Window(MOST)
    for waiting in (0, FIRST - 10, FIRST - 10, FIRST - 10):
        window.look(load(10, waiting), people=False)
    assert window.size == FIRST


def test_a_full_cache_gets_no_more() -> None:
    window = Window(MOST)
    for _ in range(50):
        window.look(load(FIRST, 0, kv_cache_ratio=0.97), people=False)
    assert window.size == FIRST


def test_people_get_the_engine_at_once_and_leave_it_as_it_was() -> None:
    window = settled(400)
    window.look(load(400, 50), people=True)
    assert window.size == 1
    window.look(load(1), people=True)
    assert window.size == 1
    window.look(load(1), people=False)
    assert window.size == FIRST


def test_an_engine_that_does_not_answer_keeps_its_window() -> None:
    window = settled(40)
    size = window.size
    window.look(None, people=False)
    assert window.size == size


def test_a_fresh_engine_is_judged_anew() -> None:
    window = settled(8)
    assert window.size < FIRST
    window.restart()
    assert window.size == FIRST


@given(
    st.integers(1, 300),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 2000), st.booleans()), max_size=60),
)
def test_it_is_never_empty_and_never_too_large(
    most: int, looks: list[tuple[int, int, bool]]
) -> None:
    window = Window(most)
    for running, waiting, people in looks:
        window.look(load(running, waiting), people=people)
        assert 1 <= window.size <= most
