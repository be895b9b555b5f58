from datetime import UTC, datetime

import pytest

from appliance.engine.failure import classify
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
