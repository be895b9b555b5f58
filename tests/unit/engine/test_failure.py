import errno
import os
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.engine.failure import classify, not_started, seen_by_us
from appliance.protocol.engines import Failure, FailureCause

AT = datetime(2026, 1, 1, tzinfo=UTC)
CORE = "(EngineCore pid=4287) ERROR 11-21 08:57:34 [core.py:1099]"
ULIMIT = (
    "(APIServer pid=1) WARNING 11-21 08:57:17 [system_utils.py:255] Found ulimit of 20000 and"
    " failed to automatically increase with error current limit exceeds maximum limit. This can"
    " cause fd limit errors like `OSError: [Errno 24] Too many open files`. Consider increasing"
    " with ulimit -n"
)
GENERIC = (
    "(APIServer pid=1) RuntimeError: Engine core initialization failed."
    " See root cause above. Failed core proc(s): {}"
)


def explain(lines: list[str], exit_status: int | None = 1, first_line: int = 1) -> Failure:
    return classify(lines, first_line=first_line, exit_status=exit_status, at=AT, attempts=2)


@pytest.mark.parametrize(
    ("line", "cause", "message"),
    [
        (
            f"{CORE} torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
            FailureCause.OUT_OF_MEMORY,
            "It ran out of memory: CUDA out of memory. Tried to allocate 2.00 GiB.",
        ),
        (
            f"{CORE} ValueError: Free memory on device cuda:0 (10.0/79.1 GiB) on startup is less"
            " than desired GPU memory utilization (0.9, 71.2 GiB).",
            FailureCause.OUT_OF_MEMORY,
            "There is not enough free memory: Free memory on device cuda:0 (10.0/79.1 GiB) on"
            " startup is less than desired GPU memory utilization (0.9, 71.2 GiB).",
        ),
        (
            f"{CORE} ValueError: To serve at least one request with the models's max seq len"
            " (131072), (16.0 GiB KV cache is needed, which is larger than the available KV cache"
            " memory (4.0 GiB).",
            FailureCause.KV_CACHE_TOO_SMALL,
            None,
        ),
        (
            f"{CORE} ValueError: No available memory for the cache blocks.",
            FailureCause.KV_CACHE_TOO_SMALL,
            None,
        ),
        (f"{CORE} OSError: [Errno 12] Cannot allocate memory", FailureCause.OUT_OF_MEMORY, None),
        (
            "(APIServer pid=1)   Value error, User-specified max_model_len (99999) is greater than"
            " the derived max_model_len (max_position_embeddings=2048)",
            FailureCause.BAD_ARGUMENT,
            None,
        ),
        (
            "api_server.py: error: unrecognized arguments: --no-such-flag",
            FailureCause.BAD_ARGUMENT,
            "vLLM refuses an argument: api_server.py: error: unrecognized arguments:"
            " --no-such-flag",
        ),
        (
            "api_server.py: error: argument --dtype: invalid choice: 'int3'",
            FailureCause.BAD_ARGUMENT,
            None,
        ),
        (
            f"{CORE} ValueError: Model architectures ['FooForCausalLM'] are not supported for now.",
            FailureCause.UNSUPPORTED_MODEL,
            None,
        ),
        (
            f"{CORE} ValueError: The checkpoint has model type `foo` but Transformers does not"
            " recognize this architecture.",
            FailureCause.UNSUPPORTED_MODEL,
            None,
        ),
        (
            f"{CORE} RuntimeError: Cannot find any model weights with `/models/x`",
            FailureCause.MISSING_FILES,
            "Files of the model are missing: Cannot find any model weights with `/models/x`",
        ),
        (
            f"{CORE} FileNotFoundError: [Errno 2] No such file or directory: '/models/x/a'",
            FailureCause.MISSING_FILES,
            None,
        ),
        (
            "safetensors_rust.SafetensorError: Error while deserializing header: HeaderTooLarge",
            FailureCause.CORRUPT_FILES,
            "A file of the model is damaged: Error while deserializing header: HeaderTooLarge",
        ),
        (
            "OSError: [Errno 28] No space left on device: '/cache/x'",
            FailureCause.DISK_FULL,
            "The disk is full: [Errno 28] No space left on device: '/cache/x'",
        ),
        (
            f"{CORE} RuntimeError: CUDA driver initialization failed, you might not have a GPU.",
            FailureCause.DRIVER,
            None,
        ),
        (
            f"{CORE} RuntimeError: The NVIDIA driver: CUDA driver version is insufficient",
            FailureCause.DRIVER,
            None,
        ),
        (
            f"{CORE} KeyError: 'lm_head.weight'",
            FailureCause.CRASHED,
            "KeyError: 'lm_head.weight'",
        ),
    ],
)
def test_cause_is_read_from_the_log(line: str, cause: FailureCause, message: str | None) -> None:
    failure = explain([ULIMIT, "Traceback (most recent call last):", line, GENERIC])
    assert failure.cause is cause
    assert failure.log_line == 3
    assert failure.hint
    if message is not None:
        assert failure.message == message


def test_warning_about_the_ulimit_is_no_failure() -> None:
    failure = explain([ULIMIT], exit_status=1)
    assert failure.cause is FailureCause.CRASHED
    assert failure.log_line is None
    assert "status 1" in failure.message


@pytest.mark.parametrize("order", [1, -1])
def test_root_cause_is_preferred_to_what_follows_from_it(order: int) -> None:
    lines = [f"{CORE} KeyError: 'lm_head.weight'", GENERIC][::order]
    assert explain(lines).message == "KeyError: 'lm_head.weight'"


def test_first_cause_decides() -> None:
    lines = [
        f"{CORE} torch.OutOfMemoryError: CUDA out of memory.",
        "FileNotFoundError: [Errno 2] No such file or directory: '/run/x.sock'",
    ]
    assert explain(lines).cause is FailureCause.OUT_OF_MEMORY


def test_line_numbers_are_those_of_the_log() -> None:
    lines = ["fine", "fine", "OSError: [Errno 28] No space left on device"]
    assert explain(lines, first_line=101).log_line == 103


def test_validation_error_is_told_by_its_explanation() -> None:
    failure = explain(
        [
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig",
            "  Value error, User-specified max_model_len (9) is greater than the derived one.",
        ]
    )
    assert failure.cause is FailureCause.BAD_ARGUMENT
    assert failure.message.startswith("vLLM refuses an argument: User-specified max_model_len")
    assert failure.log_line == 2


def test_validation_error_at_the_very_end_is_told_by_itself() -> None:
    failure = explain(["ValidationError: 1 validation error for ModelConfig"])
    assert failure.log_line == 1


@pytest.mark.parametrize(
    ("status", "cause", "words"),
    [
        (137, FailureCause.KILLED, "SIGKILL"),
        (139, FailureCause.CRASHED, "signal 11"),
        (134, FailureCause.CRASHED, "signal 6"),
        (1, FailureCause.CRASHED, "status 1"),
        (0, FailureCause.CRASHED, "without saying why"),
        (None, FailureCause.CRASHED, "without saying why"),
    ],
)
def test_exit_status_speaks_where_the_log_is_silent(
    status: int | None, cause: FailureCause, words: str
) -> None:
    failure = explain([ULIMIT, "Application startup complete."], exit_status=status)
    assert failure.cause is cause
    assert words in failure.message
    assert failure.log_line is None


def test_log_speaks_before_the_exit_status() -> None:
    lines = [f"{CORE} torch.OutOfMemoryError: CUDA out of memory."]
    assert explain(lines, exit_status=137).cause is FailureCause.OUT_OF_MEMORY


def test_last_lines_are_kept_without_blank_ones() -> None:
    failure = explain([*(f"line {number}" for number in range(20)), "", "  "])
    assert failure.last_lines == [f"line {number}" for number in range(8, 20)]
    assert (failure.at, failure.attempts) == (AT, 2)


def test_message_is_cut_to_a_readable_length() -> None:
    failure = explain([f"KeyError: {'x' * 5000}"])
    assert len(failure.message) == 500
    assert failure.message.endswith("…")


KILLED_CORE = (
    "RuntimeError: Engine core initialization failed. See root cause above."
    " Failed core proc(s): {'EngineCore': -9}"
)
LAST_WORDS = f"{CORE} EngineCore failed to start."


def explain_kill(lines: list[str], exit_status: int | None) -> Failure:
    return classify(
        lines, first_line=1, exit_status=exit_status, at=AT, attempts=1, model="m", oom_killed=True
    )


@pytest.mark.parametrize(
    ("lines", "exit_status"),
    [
        ([], 137),
        ([KILLED_CORE], 1),
        (["(APIServer pid=1) ERROR 11-21 08:57:34 [x.py:1] Worker proc X died unexpectedly"], 0),
        # Follows from the death: it is not what the engine gives as its reason.
        (["ConnectionResetError: [Errno 104] Connection reset by peer"], 137),
    ],
)
def test_kill_by_the_kernel(lines: list[str], exit_status: int) -> None:
    failure = explain_kill(lines, exit_status)
    assert failure.cause is FailureCause.OOM_KILLED
    assert "`appliance set m --context N`" in failure.hint
    assert failure.log_line is None


@pytest.mark.parametrize(
    ("lines", "exit_status", "cause"),
    [
        # It ended by itself; the kernel killed somebody else.
        ([], 1, FailureCause.CRASHED),
        ([], 139, FailureCause.CRASHED),
        ([f"{CORE} OSError: [Errno 28] No space left on device"], 137, FailureCause.DISK_FULL),
        ([LAST_WORDS, f"{CORE} KeyError: 'x'"], 137, FailureCause.CRASHED),
    ],
)
def test_what_is_known_otherwise_is_no_kill_by_the_kernel(
    lines: list[str], exit_status: int, cause: FailureCause
) -> None:
    assert explain_kill(["fine", *lines], exit_status).cause is cause


def test_kill_without_want_of_memory() -> None:
    assert explain([KILLED_CORE]).cause is FailureCause.KILLED
    client = "(APIServer pid=1) ERROR 11-21 08:00:00 [serving.py:1] KeyError: 'x'"
    assert explain([client], exit_status=137).cause is FailureCause.KILLED


@pytest.mark.parametrize(
    "line",
    ["Fatal Python error: Segmentation fault", "terminate called after throwing an instance"],
)
def test_crash_of_native_code_is_told_by_its_last_words(line: str) -> None:
    """The rest of the tree is killed after it, by us."""
    failure = explain([line, "Thread 0x00007f (most recent call first):"], exit_status=137)
    assert failure.cause is FailureCause.CRASHED
    assert failure.message == line


def test_kernel_knows_better_who_killed() -> None:
    by_kernel = explain_kill([], 137)
    assert seen_by_us(by_kernel, FailureCause.KILLED, "gone", "m") == by_kernel
    seen = seen_by_us(explain([], 137), FailureCause.KILLED, "gone", "m")
    assert (seen.cause, seen.message) == (FailureCause.KILLED, "gone")
    assert "`appliance load m`" in seen.hint


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        (FailureCause.STALLED, "stall_timeout"),
        (FailureCause.HUNG, "hang_timeout"),
        (FailureCause.CRASHED, "`appliance logs m`"),
    ],
)
def test_hint_to_what_we_saw(cause: FailureCause, words: str) -> None:
    assert words in seen_by_us(explain([]), cause, "so it was", "m").hint


@pytest.mark.parametrize(
    ("number", "cause"),
    [
        (errno.ENOSPC, FailureCause.DISK_FULL),
        (errno.ENOMEM, FailureCause.OUT_OF_MEMORY),
        (errno.EMFILE, FailureCause.SOCKET),
        (errno.ENOENT, FailureCause.NO_ENVIRONMENT),
    ],
)
def test_engine_that_could_not_be_started(number: int, cause: FailureCause) -> None:
    failure = not_started(OSError(number, os.strerror(number)), AT, 1, "m")
    assert failure.cause is cause
    assert os.strerror(number) in failure.message
    assert "{" not in failure.hint


def test_kv_cache_hint_names_the_context_that_fits() -> None:
    line = (
        f"{CORE} ValueError: To serve at least one request with the model's max seq len (131072),"
        " (0.12 GiB KV cache is needed, which is larger than the available KV cache memory"
        " (0.06 GiB). Based on the available memory, the estimated maximum model length is 65408."
        " Try increasing `gpu_memory_utilization` (which also controls CPU memory on the CPU"
    )
    failure = classify([line], first_line=1, exit_status=1, at=AT, attempts=1, model="org/m")
    assert "`appliance set org/m --context 65408`" in failure.hint
    assert failure.message.endswith("the estimated maximum model length is 65408.")


def test_errors_before_the_engines_last_words_are_no_reason() -> None:
    """A ready engine logs what clients do wrong."""
    lines = [
        "(APIServer pid=1) ERROR 11-21 08:00:00 [serving.py:1] ValueError: Invalid value for n",
        "(EngineCore pid=2) ERROR 11-21 08:57:34 [core.py:1512] EngineCore encountered a fatal"
        " error.",
        f"{CORE} torch.OutOfMemoryError: CUDA out of memory.",
    ]
    assert explain(lines).cause is FailureCause.OUT_OF_MEMORY


def test_source_lines_of_a_traceback_are_no_errors() -> None:
    lines = [
        LAST_WORDS,
        f'{CORE}   File "/env/x.py", line 1, in f',
        f"{CORE}     raise FileNotFoundError(f'No such file or directory: {{x}}')",
        f"{CORE} KeyError: 'lm_head.weight'",
    ]
    assert explain(lines).cause is FailureCause.CRASHED
    assert explain(lines).last_lines == [
        "EngineCore failed to start.",
        "KeyError: 'lm_head.weight'",
    ]


def test_argument_that_pydantic_refuses_is_named() -> None:
    failure = explain(
        [
            "pydantic_core._pydantic_core.ValidationError: 2 validation errors for ModelConfig",
            "hf_overrides.dict[str,any]",
            "  Input should be a valid dictionary [type=dict_type, input_value='{nope']",
        ]
    )
    assert failure.cause is FailureCause.BAD_ARGUMENT
    assert failure.message.endswith(
        "hf_overrides.dict[str,any]: Input should be a valid dictionary"
    )
    assert failure.log_line == 3


@given(
    st.lists(st.text(max_size=60), max_size=20), st.none() | st.integers(-64, 255), st.booleans()
)
def test_anything_is_explained(lines: list[str], exit_status: int | None, killed: bool) -> None:
    failure = classify(
        lines, first_line=5, exit_status=exit_status, at=AT, attempts=1, oom_killed=killed
    )
    assert failure.message
    assert failure.hint
    assert failure.log_line is None or 5 <= failure.log_line < 5 + len(lines)
    assert len(failure.last_lines) <= 12
