from hypothesis import given
from hypothesis import strategies as st

from appliance.engine.loading import Loading
from appliance.protocol.engines import LoadPhase

GIB = 1024**3
MIB = 1024**2


def test_what_is_read_of_one_large_file_is_progress() -> None:
    load = Loading(0.0, [], weights_bytes=10 * GIB)
    # Imports read a lot as well, before the weights.
    load.note_read(3 * GIB, 1.0)
    load.feed(["Starting to load model /models/x..."], 2.0)
    load.note_read(3 * GIB, 2.0)
    first = load.progress(2.0)
    load.note_read(8 * GIB, 3.0)
    half = load.progress(3.0)
    load.note_read(13 * GIB, 4.0)
    whole = load.progress(4.0)
    assert first.phase is half.phase is LoadPhase.WEIGHTS
    ratios = [each.ratio for each in (first, half, whole)]
    assert None not in ratios
    assert ratios == sorted(ratios)  # type: ignore[type-var]
    assert half.ratio is not None
    assert first.ratio is not None
    assert half.ratio > first.ratio


@given(st.lists(st.integers(4 * MIB, GIB), min_size=1, max_size=20))
def test_a_load_that_reads_never_stalls(steps: list[int]) -> None:
    load, total = Loading(0.0, [], weights_bytes=GIB), 0
    for number, step in enumerate(steps):
        total += step
        load.note_read(total, 60.0 * number)
        assert load.stalled_s(60.0 * number + 59.0) == 59.0


def test_a_load_that_only_answers_our_probes_stalls() -> None:
    load = Loading(0.0, [], weights_bytes=GIB)
    for second in range(600):
        load.note_read(second * 2000, float(second))
    assert load.stalled_s(600.0) == 600.0


def test_a_load_that_only_repeats_itself_stalls() -> None:
    load = Loading(0.0, [], weights_bytes=GIB)
    load.feed(["Waiting for 1 core engine proc(s) to start."], 1.0)
    for second in range(2, 600):
        load.feed([f"Waiting for {second} core engine proc(s) to start."], float(second))
    assert load.stalled_s(601.0) == 600.0
