import json
import math

import pytest

from appliance.engine.sleep import steps_to_wake
from appliance.engine.sleep_check import (
    Answer,
    difference,
    question,
    read_answer,
    too_little_freed,
)
from appliance.protocol.models import Task
from appliance.units import GIB


def answer(tokens: str, logprobs: list[float], *, others: dict[str, float] | None = None) -> Answer:
    return Answer(
        tokens=tuple(tokens),
        logprobs=tuple(logprobs),
        alternatives=tuple({token: at, **(others or {})} for token, at in zip(tokens, logprobs)),  # noqa: B905
    )


BEFORE = answer("abc", [-0.1, -0.7, -0.2], others={"z": -0.8})


@pytest.mark.parametrize(
    "after",
    [
        BEFORE,
        answer("abc", [-0.11, -0.69, -0.2]),
        # Two tokens were about equally likely, and rounding chose the other.
        answer("azq", [-0.1, -0.75, -9.0]),
    ],
)
def test_rounding_is_no_difference(after: Answer) -> None:
    assert difference(BEFORE, after) is None


@pytest.mark.parametrize(
    ("after", "why"),
    [
        (answer("!!!", [-9.0, -9.0, -9.0]), "token 1"),
        (answer("abq", [-0.1, -0.7, -0.2]), "token 3"),
        (answer("abc", [-0.1, -2.0, -0.2]), "token 2"),
        (answer("abc", [math.nan, -0.7, -0.2]), "token 1"),
        (Answer(), "said nothing"),
    ],
)
def test_other_weights_are_noticed(after: Answer, why: str) -> None:
    assert why in (difference(BEFORE, after) or "")


def test_embeddings_are_compared_by_their_direction() -> None:
    before = Answer(vector=(0.6, 0.8))
    assert difference(before, Answer(vector=(0.601, 0.799))) is None
    for other in [(0.8, -0.6), (0.0, 0.0), (math.nan, 0.8), (1.0,), ()]:
        assert "embedding" in (difference(before, Answer(vector=other)) or "")


def test_answers_are_read_as_vllm_writes_them() -> None:
    choice = {
        "text": "ab",
        "finish_reason": "length",
        "logprobs": {
            "tokens": ["a", "b"],
            "token_logprobs": [-0.1, -0.2],
            "top_logprobs": [{"a": -0.1}, {"b": -0.2, "c": -3.0}],
            "text_offset": [0, 1],
        },
    }
    found = read_answer(Task.GENERATE, json.dumps({"choices": [choice]}).encode())
    assert found == Answer(
        tokens=("a", "b"), logprobs=(-0.1, -0.2), alternatives=({"a": -0.1}, {"b": -0.2, "c": -3.0})
    )
    embeddings = {"data": [{"embedding": [0.5, 0.25]}]}
    assert read_answer(Task.EMBED, json.dumps(embeddings).encode()) == Answer(vector=(0.5, 0.25))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"choices": []}',
        b'{"choices": [{"logprobs": null}]}',
        b'{"choices": [{"logprobs": {"tokens": [], "token_logprobs": []}}]}',
        b'{"choices": [{"finish_reason": "abort",'
        b' "logprobs": {"tokens": ["a"], "token_logprobs": [-0.1]}}]}',
    ],
)
def test_what_cannot_be_compared_is_no_answer(body: bytes) -> None:
    assert read_answer(Task.GENERATE, body) is None
    assert read_answer(Task.EMBED, body) is None


def test_the_question_is_greedy() -> None:
    path, body = question("chat", Task.GENERATE)
    assert path == "/v1/completions"
    assert body["model"] == "chat"
    assert body["temperature"] == 0
    assert body["logprobs"] > 0
    assert question("e", Task.EMBED)[0] == "/v1/embeddings"


def test_four_fifths_of_weights_and_kv_cache_have_to_come_back() -> None:
    expected = 10 * GIB
    assert too_little_freed(12 * GIB, 4 * GIB, expected) is None
    assert "7.0 GiB of 12.0 GiB" in (too_little_freed(12 * GIB, 5 * GIB, expected) or "")
    assert too_little_freed(12 * GIB, 12 * GIB, expected) is not None
    assert too_little_freed(12 * GIB, 13 * GIB, expected) is not None


def test_weights_that_were_quantized_on_load_come_back_smaller() -> None:
    # Files of 10 GiB, half of it in memory: what is left counts.
    assert too_little_freed(6 * GIB, GIB, 10 * GIB) is None
    assert too_little_freed(6 * GIB, 2 * GIB, 10 * GIB) is not None


def test_level_2_loads_the_weights_before_the_kv_cache_is_back() -> None:
    assert [path for path, _ in steps_to_wake(1)] == ["/wake_up"]
    paths = [path for path, _ in steps_to_wake(2)]
    assert paths[:3] == ["/wake_up?tags=weights", "/collective_rpc", "/wake_up?tags=kv_cache"]
    assert "/reset_prefix_cache" in paths
