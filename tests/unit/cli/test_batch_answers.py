"""Answers in words, and what a person sees of progress."""

from typing import Any

import msgspec
import pytest

from appliance.cli.batch.answers import Answer, answer_of, text_of
from appliance.cli.batch.compare import cell_of, names_of
from appliance.cli.batch.watch import progress_text
from appliance.protocol.batches import Batch, BatchProgress, BatchStatus, RequestCounts


def progress(status: BatchStatus = BatchStatus.IN_PROGRESS, **facts: Any) -> BatchProgress:
    counts = facts.pop("counts", RequestCounts(total=50_000, completed=40_500, failed=11))
    batch = Batch(
        id="batch_" + "9f2c" * 8, endpoint="/v1/completions", input_file_id="f", model="qwen3",
        completion_window="24h", status=status, created_at=1, request_counts=counts,
    )  # fmt: skip
    return BatchProgress(batch=batch, **facts)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"choices": [{"message": {"content": "Hi"}}]}, "Hi"),
        ({"choices": [{"text": "Hi"}, {"text": "no"}]}, "Hi"),
        ({"output": [{"type": "reasoning"}, {"content": [{"text": "H"}, {"text": "i"}]}]}, "Hi"),
        ({"data": [{"embedding": [0.5, 0.5]}]}, "embedding of 2"),
        ({"data": [{"embedding": "AAAA"}, {"embedding": "AAAA"}]}, "2 embeddings of base64"),
        ({"data": [{"score": 0.25}, {"score": 1}]}, "0.25 1"),
        ({"results": [{"index": 3, "relevance_score": 0.123456}]}, "3:0.1235"),
        ({"choices": []}, '{"choices":[]}'),
        (
            {"choices": [{"message": {"content": None}}]},
            '{"choices":[{"message":{"content":null}}]}',
        ),
    ],
)
def test_an_answer_in_words(body: dict[str, Any], text: str) -> None:
    assert text_of(body) == text


def line(response: object, error: object = None) -> bytes:
    result = {"id": "x", "custom_id": "r", "response": response, "error": error}
    return msgspec.json.encode(result)


def test_lines_without_an_answer_say_why() -> None:
    body = {"error": {"message": "too long"}}
    refused = answer_of(line({"status_code": 400, "body": body}))
    assert refused == (Answer(status_code=400, error="too long"), None)
    never = answer_of(line(None, {"code": "batch_expired", "message": "too late"}))
    assert never == (Answer(error="too late"), None)
    assert answer_of(line({"status_code": 500, "body": None}))[0].error == "no reason given"


def content(**body: Any) -> bytes | None:
    return answer_of(line({"status_code": 200, "body": body}))[1]


def test_answers_are_the_same_only_if_all_of_them_is() -> None:
    vectors = [content(id=n, data=[{"embedding": [0.5, last]}]) for n, last in enumerate([1, 1, 2])]
    assert vectors[0] == vectors[1] != vectors[2]
    scores = [content(data=[{"score": score}]) for score in (0.123451, 0.123452)]
    assert scores[0] != scores[1]
    texts = [content(id=n, choices=[{"message": {"content": "Hi"}}]) for n in range(2)]
    assert texts[0] == texts[1] != content(choices=[{"message": {"content": "Ho"}}])
    calls = [
        content(choices=[{"message": {"content": None, "tool_calls": [{"id": n, "function": f}]}}])
        for n, f in enumerate([{"name": "a"}, {"name": "a"}, {"name": "b"}])
    ]
    assert calls[0] == calls[1] != calls[2]


def test_a_cell_is_one_line_of_its_width() -> None:
    assert cell_of(Answer(text="one\n two"), 20) == "one two"
    assert cell_of(Answer(text="x" * 30), 20) == "x" * 19 + "…"
    assert cell_of(Answer(error="no"), 20) == "! no"
    assert cell_of(None, 20) == "-"


def test_columns_are_named_by_model_unless_one_comes_twice() -> None:
    one, other = progress(models=["a"]), progress(models=["b"])
    assert names_of([one, other]) == ["a", "b"]
    assert names_of([one, one]) == ["batch_9f2c9f2c"] * 2


def test_progress_says_how_far_how_fast_and_how_long() -> None:
    told = progress_text(progress(lines_per_s=218.4, eta_s=190.0))
    for part in ("batch_9f2c9f2c", "qwen3", " 81%", "40,511/50,000", "11 failed", "218 lines/s",
                 "3:10 left"):  # fmt: skip
        assert part in told
    held = progress_text(progress(is_paused=True, eta_s=190.0, problem="no\x1b[31m room"))
    assert "paused" in held
    assert "left" not in held
    assert held.endswith("no room")
    new = progress_text(progress(BatchStatus.VALIDATING, counts=RequestCounts()))
    assert new == "batch_9f2c9f2c  qwen3  validating"
    over = progress_text(progress(BatchStatus.COMPLETED, lines_per_s=3.0, eta_s=1.0))
    assert "lines/s" not in over
