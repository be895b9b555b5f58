"""Whatever bytes an input has: either its lines are found again as they stand, or each error
names its line. Never an exception.
"""

import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from appliance.batch.index import MOST_INPUTS, Limits, LineIndex, index_file
from appliance.batch.lines import check_line, is_blank, request_of
from appliance.protocol.batches import BatchError
from appliance.protocol.models import Task
from tests.support.batches import CHAT, chat_line, jsonl

LIMITS = Limits(lines=1000, line_bytes=4096)
MODELS = {"a": Task.GENERATE, "b": Task.GENERATE, "e": Task.EMBED}
BOM = b"\xef\xbb\xbf"


@pytest.fixture
def file() -> Iterator[Path]:
    """One file in memory: thousands of them on a disk take minutes."""
    descriptor = os.memfd_create("in.jsonl")
    yield Path(f"/proc/self/fd/{descriptor}")
    os.close(descriptor)


def indexed(
    file: Path, content: bytes, endpoint: str = CHAT, limits: Limits = LIMITS
) -> LineIndex | list[BatchError]:
    file.write_bytes(content)
    return index_file(file, endpoint, MODELS.get, limits)


def reread(file: Path, index: LineIndex) -> list[bytes]:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        return [index.read(descriptor, number) for number in range(len(index))]
    finally:
        os.close(descriptor)


def judge(file: Path, content: bytes) -> LineIndex | list[BatchError]:
    """The property that holds for all bytes."""
    found = indexed(file, content)
    lines = content.split(b"\n")
    if isinstance(found, LineIndex):
        wanted = [line for line in [lines[0].removeprefix(BOM), *lines[1:]] if not is_blank(line)]
        assert reread(file, found) == wanted
        ids = [request_of(line)[0] for line in wanted]
        assert len(set(ids)) == len(ids)
        models = [json.loads(line)["body"]["model"] for line in wanted]
        assert [found.models[number] for number in found.model_numbers] == models
    else:
        assert 1 <= len(found) <= 100
        for error in found:
            of_the_file = {"empty_file", "too_many_tasks", "too_many_inputs"}
            if error.code in of_the_file:
                assert error.line is None
            else:
                assert error.line is not None
                assert 1 <= error.line <= len(lines)
                # What is too long is not looked into, and may be blank.
                is_long = error.code == "line_too_long"
                assert is_long or not is_blank(lines[error.line - 1])
            assert len(error.message) < 1000
    return found


GOOD = st.builds(
    chat_line, st.text(min_size=1, max_size=8), st.sampled_from(["a", "b"]), st.text(max_size=30)
).map(lambda line: json.dumps(line, ensure_ascii=False).encode())
LINES = st.lists(
    st.one_of(GOOD, GOOD, GOOD, st.binary(max_size=20), st.sampled_from([b"", b" \t", b"\r", BOM])),
    max_size=12,
)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None
)
@given(LINES, st.sampled_from([b"\n", b"\r\n", b"\n\n"]), st.booleans(), st.booleans())
def test_files_made_of_good_and_bad_lines(
    file: Path, lines: list[bytes], end: bytes, has_bom: bool, has_end: bool
) -> None:
    judge(file, (BOM if has_bom else b"") + end.join(lines) + (end if has_end else b""))


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None
)
@given(st.binary(max_size=200))
@example(b"")
@example(b"\n")
@example(BOM)
@example(BOM + BOM)
@example(b"null\n[]\n1\n")
def test_any_bytes(file: Path, content: bytes) -> None:
    judge(file, content)


def mutated(chance: random.Random, content: bytes) -> bytes:
    """A few small accidents."""
    data = bytearray(content)
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(data) + 1)
        kind = chance.randrange(7)
        if kind == 0 and at < len(data):
            data[at] = chance.randrange(256)
        elif kind == 1:
            del data[at : at + chance.randrange(1, 40)]
        elif kind == 2:
            data[at:at] = bytes(chance.randrange(256) for _ in range(chance.randrange(1, 6)))
        elif kind == 3:
            data[at:at] = chance.choice(PIECES)
        elif kind == 4:
            other = chance.randrange(len(data) + 1)
            data[at:at] = data[other : other + chance.randrange(1, 200)]
        elif kind == 5:
            del data[at:]
        else:
            number = chance.choice([b"-1", b"1e999", b"9" * 400, b"true", b'"x"', b"{}", b"[]"])
            data = bytearray(bytes(data).replace(b"4", number, chance.randrange(3)))
    return bytes(data)


PIECES = [
    b"\n", b"\r\n", b"\r", b"\0", b"\xe2\x80\xa8", b"\xc2\x85", BOM, b'"', b"\\", b"{", b"}", b"[",
    b"]", b",", b":", b"null", b"\\ud800", b"\\u0000", b"\xed\xa0\x80", b"\xff", b"[" * 2000,
    b'{"a":' * 1500, b"9" * 5000, b'"stream":true,', b'"custom_id":"r1",', b'"model":"nobody",',
    b" " * 5000, b"\n" * 50, b"a" * 3000,
]  # fmt: skip


def test_ten_thousand_mutations(file: Path) -> None:
    """Never an exception, never a hang; every error names its line."""
    seed = random.randrange(10**9)
    chance = random.Random(seed)
    content = jsonl(
        [{**chat_line(f"r{n}", "ab"[n % 2], "4" * n), "more": {"max_tokens": 4}} for n in range(8)]
    )
    sound = 0
    for number in range(10_000):
        data = mutated(chance, content)
        began = time.monotonic()
        try:
            sound += isinstance(judge(file, data), LineIndex)
        except BaseException as error:
            raise AssertionError(f"seed {seed}, mutation {number}: {data!r}") from error
        assert time.monotonic() - began < 5
    assert 100 < sound < 9_900


def test_lines_end_at_line_feeds_alone(file: Path) -> None:
    said = "a\u2028b\u2029c\x85d\x1ce"
    line = json.dumps(chat_line("r\u2028", text=said), ensure_ascii=False).encode()
    found = judge(file, BOM + line + b"\r\n\n \t\r\n" + line.replace(b"r\xe2", b"s\xe2"))
    assert isinstance(found, LineIndex)
    assert len(found) == 2


def test_lines_that_pieces_of_the_file_cut(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [json.dumps(chat_line(f"r{n}", text="x" * n)).encode() for n in range(60)]
    for size in range(1, 400, 7):
        monkeypatch.setattr("appliance.batch.index._PIECE_BYTES", size)
        found = indexed(file, b"\n".join(lines))
        assert isinstance(found, LineIndex)
        assert reread(file, found) == lines


@pytest.mark.parametrize("piece", [16, 100, 1000, 10**6])
def test_lines_that_are_too_long_are_named_and_the_others_judged(
    file: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr("appliance.batch.index._PIECE_BYTES", piece)
    good = json.dumps(chat_line("r1")).encode()
    limits = Limits(lines=10, line_bytes=len(good))
    long = b"x" * (3 * len(good))
    content = b"\n".join([good, long, b"{", good + b" ", good, long])
    found = indexed(file, content, limits=limits)
    assert isinstance(found, list)
    assert [(each.line, each.code) for each in found] == [
        (2, "line_too_long"),
        (3, "invalid_json_line"),
        (4, "line_too_long"),
        (5, "duplicate_custom_id"),
        (6, "line_too_long"),
    ]


def one_error(file: Path, **changes: Any) -> tuple[str, str | None]:
    line = {**chat_line("r1"), **changes}
    found = indexed(file, json.dumps(line).encode())
    assert isinstance(found, list)
    (error,) = found
    assert error.line == 1
    return error.code, error.param


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"custom_id": None}, "missing_required_parameter", "custom_id"),
        ({"custom_id": ""}, "invalid_value", "custom_id"),
        ({"custom_id": 1}, "invalid_type", "custom_id"),
        ({"method": "post"}, "invalid_method", "method"),
        ({"url": "/v1/embeddings"}, "invalid_url", "url"),
        ({"url": ["/v1/chat/completions"]}, "invalid_url", "url"),
        ({"url": "https://x/v1/chat/completions"}, "invalid_url", "url"),
        ({"body": None}, "missing_required_parameter", "body"),
        ({"body": []}, "invalid_type", "body"),
        ({"body": {"messages": []}}, "invalid_request", "body.model"),
        ({"body": {"model": 1, "messages": []}}, "invalid_request", "body.model"),
        ({"body": {"model": "nobody", "messages": []}}, "model_not_found", "body.model"),
        ({"body": {"model": "e", "messages": []}}, "model_not_found", "body.model"),
        ({"body": {"model": "a"}}, "invalid_request", "body.messages"),
        (
            {"body": {"model": "a", "messages": [], "stream": True}},
            "streaming_unsupported",
            "body.stream",
        ),
    ],
)
def test_what_is_wrong_with_a_line(
    file: Path, changes: dict[str, Any], code: str, param: str
) -> None:
    assert one_error(file, **changes) == (code, param)


def test_stream_false_is_no_stream(file: Path) -> None:
    line = chat_line("r1")
    line["body"]["stream"] = False
    assert isinstance(judge(file, jsonl([line])), LineIndex)


def test_ids_are_compared_as_they_stand(file: Path) -> None:
    ids = ["é", "e\u0301", " é", "É", "r", "R", "r ", "0", "00", "\u0000", "x" * 1000]
    assert isinstance(judge(file, jsonl([chat_line(each) for each in ids])), LineIndex)
    # The same text, written differently.
    escaped = json.dumps(chat_line("é")).encode() + b"\n"
    plain = json.dumps(chat_line("é"), ensure_ascii=False).encode()
    found = judge(file, escaped + plain)
    assert isinstance(found, list)
    assert [(each.line, each.code) for each in found] == [(2, "duplicate_custom_id")]


def test_of_two_equal_keys_the_last_counts_everywhere(file: Path) -> None:
    start = b'{"custom_id":"x","method":"POST","url":"/v1/chat/completions",'
    body = b'"body":{"model":"nobody","messages":[],"model":"a"},"custom_id":"y"}'
    found = judge(file, start + body)
    assert isinstance(found, LineIndex)
    assert found.models == ["a"]
    (line,) = reread(file, found)
    assert request_of(line)[0] == "y"


def test_what_was_found_sound_can_be_read_at_any_depth_of_the_stack(file: Path) -> None:
    def deeper(frames: int, line: bytes) -> tuple[str, bytes]:
        return request_of(line) if not frames else deeper(frames - 1, line)

    accepted = 0
    for depth in range(500, 1010, 3):
        line = json.dumps(chat_line("r")).encode()
        line = line.replace(b'"model"', b'"deep":' + b"[" * depth + b"]" * depth + b',"model"')
        found = check_line(line, 1, CHAT, MODELS.get)
        if not isinstance(found, list):
            accepted += 1
            assert deeper(50, line)[0] == "r"
        else:
            assert found[0].code == "invalid_json_line"
    assert accepted
    assert isinstance(found, list)


def test_names_of_models_are_not_repeated_without_end(file: Path) -> None:
    line = chat_line("r", model="m" * 3000)
    found = judge(file, jsonl([line]))
    assert isinstance(found, list)
    assert len(found[0].message) < 300


def test_a_hundred_errors_are_enough(file: Path) -> None:
    found = judge(file, b"{\n" * 500)
    assert isinstance(found, list)
    assert [each.line for each in found] == list(range(1, 101))


def test_too_many_lines_and_too_many_inputs(file: Path) -> None:
    lines = jsonl([chat_line(f"r{n}") for n in range(5)])
    exact = indexed(file, lines, limits=Limits(lines=5, line_bytes=1000))
    assert isinstance(exact, LineIndex)
    found = indexed(file, lines, limits=Limits(lines=4, line_bytes=1000))
    assert isinstance(found, list)
    assert [each.code for each in found] == ["too_many_tasks"]
    url = "/v1/embeddings"
    half = ["x"] * (MOST_INPUTS // 2)
    embed = [
        {"custom_id": str(n), "method": "POST", "url": url, "body": {"model": "e", "input": given}}
        for n, given in enumerate([half, half, [1, 2, 3]])
    ]
    limits = Limits(lines=10, line_bytes=2**20)
    assert isinstance(indexed(file, jsonl(embed[:2]), url, limits), LineIndex)
    too_many = indexed(file, jsonl(embed), url, limits)
    assert isinstance(too_many, list)
    assert [each.code for each in too_many] == ["too_many_inputs"]


def test_a_hundred_thousand_lines_take_little_time_and_memory(file: Path) -> None:
    content = jsonl([chat_line(f"r{n}") for n in range(100_000)])
    began = time.process_time()
    found = indexed(file, content, limits=Limits(lines=100_000, line_bytes=4096))
    assert isinstance(found, LineIndex)
    assert len(found) == 100_000
    assert time.process_time() - began < 10
    arrays = (found.offsets, found.lengths, found.model_numbers)
    assert sum(each.itemsize * len(each) for each in arrays) <= 16 * 100_000
