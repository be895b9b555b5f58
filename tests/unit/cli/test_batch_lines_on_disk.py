"""Files of requests on their way to a batch."""

import json
from pathlib import Path

import msgspec
import pytest

from appliance.batch.index import Limits
from appliance.cli.batch.requests import (
    InvalidFileError,
    any_model,
    checked,
    endpoint_of,
    limits_of,
    with_model,
)
from appliance.cli.batch.results import split

SOUND = (
    b'{"custom_id": "r1", "method": "POST", "url": "/v1/embeddings", "x": 1e400,'
    b' "body": {"model": "old", "input": "a\xe2\x80\xa8b", "seed": 123456789012345678901}}'
)


def test_only_the_model_of_a_line_is_replaced(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(b"\xef\xbb\xbf" + SOUND + b"\n\n{broken\n" + SOUND.replace(b"old", b"o2"))
    with_model(source, target, 'new "one"')
    first, blank, broken, last, rest = target.read_bytes().split(b"\n")
    assert (blank, broken, rest) == (b"", b"{broken", b"")
    # What no float holds, and more digits than an integer has, stand as they stood.
    assert b"1e400" in first
    assert b"123456789012345678901" in first
    assert "a\u2028b".encode() in first
    body = msgspec.json.decode(first, type=dict[str, msgspec.Raw])["body"]
    assert json.loads(bytes(body))["model"] == 'new "one"'
    assert last == first


def test_a_line_without_a_model_gets_one(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(b'{"custom_id":"r","method":"POST","url":"/v1/rerank","body":{"query":"q"}}')
    with_model(source, target, "m")
    limits = Limits(lines=1, line_bytes=1000)
    assert checked(target, "/v1/rerank", any_model("/v1/rerank"), limits).models == ["m"]


@pytest.mark.parametrize(
    ("content", "endpoint"),
    [
        (b"\n  \n" + SOUND, "/v1/embeddings"),
        (b"\xef\xbb\xbf" + SOUND, "/v1/embeddings"),
        (SOUND.replace(b"/v1/embeddings", b"/v1/unknown"), "/v1/chat/completions"),
        (b"{broken", "/v1/chat/completions"),
        (b'{"url": 5}', "/v1/chat/completions"),
        (b"", "/v1/chat/completions"),
    ],
)
def test_the_endpoint_is_that_of_the_first_line(
    tmp_path: Path, content: bytes, endpoint: str
) -> None:
    file = tmp_path / "in"
    file.write_bytes(content)
    assert endpoint_of(file) == endpoint


def test_problems_come_by_line(tmp_path: Path) -> None:
    file = tmp_path / "in"
    file.write_bytes(SOUND + b"\n" + SOUND)
    with pytest.raises(InvalidFileError) as raised:
        checked(file, "/v1/chat/completions", lambda _: None, Limits(lines=9, line_bytes=999))
    assert {each.line for each in raised.value.errors} == {1, 2}


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_lines_are_split_at_line_feeds_alone(size: int) -> None:
    text = "a\u2028\x0bb\n\nc\r\nlast".encode()
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    assert list(split(pieces)) == ["a\u2028\x0bb".encode(), b"", b"c\r", b"last"]
    assert list(split([b"a\n", b"b\n"])) == [b"a", b"b"]
    assert list(split([])) == []


def test_limits_are_those_of_the_server_that_is_asked(tmp_path: Path) -> None:
    home = {"APPLIANCE_HOME": str(tmp_path)}
    assert limits_of(None, home).lines == 50_000
    (tmp_path / "config").mkdir()
    (tmp_path / "config/config.toml").write_text("[batches]\nmax_lines = 7\nsingle_model = true")
    assert limits_of(None, home) == Limits(lines=7, line_bytes=4 * 1024**2, single_model=True)
    assert limits_of(None, {**home, "APPLIANCE_BATCHES_MAX_LINES": "9"}).lines == 9
    for elsewhere in (
        limits_of("http://box", home),
        limits_of(None, {"APPLIANCE_URL": "http://x"}),
    ):
        assert elsewhere.lines > 10**6
    (tmp_path / "config/config.toml").write_text("[nonsense")
    assert limits_of(None, home).lines == 50_000
