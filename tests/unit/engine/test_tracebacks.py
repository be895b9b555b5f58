from hypothesis import given
from hypothesis import strategies as st

from appliance.engine.tracebacks import statements

CORE = "(EngineCore pid=7) ERROR 11-21 11:55:12 [core.py:1510]"
WORKER = "(Worker_TP1 pid=8) ERROR 11-21 11:55:12 [multiproc_executor.py:953]"


def texts(*lines: str) -> list[str]:
    return [each.text for each in statements(lines)]


def test_frames_code_and_noise_are_left_out() -> None:
    assert texts(
        f"{CORE} EngineCore failed to start.",
        f"{CORE} Traceback (most recent call last):",
        f'{CORE}   File "/env/vllm/v1/engine/core.py", line 1482, in run_engine_core',
        f"{CORE}     raise FileNotFoundError(",
        f"{CORE}           ^^^^^^^^^^^^^^^^^^",
        f"{CORE} FileNotFoundError: gone",
        "Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:01<00:01,  1.0it/s]",
        "  3%|▎         | 1/35 [00:00<00:11,  3.0it/s]",
        "(APIServer pid=6) INFO 11-21 11:55:03 [api_utils.py:347]  ▄▄ ▄█ █     █",
        "",
        "   ",
    ) == ["EngineCore failed to start.", "FileNotFoundError: gone"]


def test_python_warnings_go_with_their_line_of_source() -> None:
    assert texts(
        "/env/vllm/dispatcher.py:138: FutureWarning: `reduce_op` is deprecated",
        '  if hasattr(value, "__dict__"):',
        "[W1121 11:55:12.920732083 utils.cpp:68] Warning: NUMA binding",
        "  Value error, this belongs to nobody's warning",
        "said",
    ) == ["said"]


def test_what_follows_an_error_is_no_source() -> None:
    assert texts("1 validation error for ModelConfig", "  Value error, no") == [
        "1 validation error for ModelConfig",
        "Value error, no",
    ]


def test_only_what_is_logged_as_an_error_counts_as_one() -> None:
    found = statements(
        [
            "(APIServer pid=6) INFO 11-21 11:55:03 [model.py:1] KeyError: 'x'",
            "(APIServer pid=6) WARNING 11-21 11:55:03 [model.py:1] ImportError: x",
            f"{CORE} KeyError: 'x'",
            "KeyError: 'x'",
            "[rank0]: KeyError: 'x'",
        ]
    )
    assert [each.is_error for each in found] == [False, False, True, True, True]
    assert {each.text for each in found[2:]} == {"KeyError: 'x'"}


def test_traceback_that_vllm_goes_on_after_is_no_error() -> None:
    registry = "(APIServer pid=6) ERROR 11-21 11:55:03 [registry.py:1048]"
    found = statements(
        [
            f"{registry} Error saving model info cache.",
            f"{registry} Traceback (most recent call last):",
            f"{registry} OSError: [Errno 28] No space left on device",
            f"{CORE} KeyError: 'x'",
        ]
    )
    assert [each.is_error for each in found] == [False, False, True]


def test_place_of_an_error_is_that_of_its_own_process() -> None:
    found = statements(
        [
            f'{CORE}   File "a.py", line 1, in load',
            f'{WORKER}   File "b.py", line 2, in read',
            f"{CORE} KeyError: 'x'",
            f"{WORKER} OSError: y",
        ]
    )
    assert [each.place for each in found] == [
        'File "a.py", line 1, in load',
        'File "b.py", line 2, in read',
    ]


@given(st.lists(st.text(max_size=80), max_size=30))
def test_any_lines(lines: list[str]) -> None:
    found = [each.line for each in statements(lines)]
    assert found == sorted(set(found))
    assert all(0 <= line < len(lines) for line in found)
