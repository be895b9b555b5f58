"""Ranges, pages, creations and answers, as odd as clients make them."""

import json
from typing import Any

import pytest

from appliance.batch.content import parse_range
from appliance.batch.request import one_line
from appliance.batch.state import CANCELLED, EXPIRED
from appliance.batch.usage import UsageCounter
from appliance.errors import ApplianceError
from appliance.gateway.asgi import Answer, Message
from appliance.gateway.errors import openai_error
from tests.support.batch_client import FILE, GOOD_LINE, PURPOSE, BatchClient, form
from tests.support.batches import CHAT, World, chat_line, jsonl


@pytest.mark.parametrize(
    ("text", "size", "wanted"),
    [
        (None, 10, (0, 10)),
        ("bytes=0-", 10, (0, 10)),
        ("bytes=2-4", 10, (2, 5)),
        ("Bytes=2-4", 10, (2, 5)),
        (" bytes=9-99 ", 10, (9, 10)),
        ("bytes=-3", 10, (7, 10)),
        ("bytes=-99", 10, (0, 10)),
        ("bytes=-0", 10, None),
        ("bytes=10-", 10, None),
        ("bytes=0-", 0, None),
        ("bytes=-1", 0, None),
        ("bytes=5-2", 10, (0, 10)),
        ("bytes=0-1,3-4", 10, (0, 10)),
        ("bytes=-", 10, (0, 10)),
        ("lines=0-1", 10, (0, 10)),
        ("bytes=" + "9" * 5000 + "-", 10, (0, 10)),
        ("bytes=999999999999999999-", 10, None),
        ("bytes=+1-2", 10, (0, 10)),
        ("bytes=\u0661-\u0662", 10, (0, 10)),
    ],
)
def test_ranges(text: str | None, size: int, wanted: tuple[int, int] | None) -> None:
    assert parse_range(text, size) == wanted


async def test_ranges_put_together_are_the_file(client: BatchClient) -> None:
    content = GOOD_LINE * 50
    status, file = await client.upload(form((FILE[0], content), PURPOSE))
    assert status == 200
    path = f"/v1/files/{file['id']}/content"
    status, headers, body = await client.ask("GET", path)
    assert (status, body, headers["accept-ranges"]) == (200, content, "bytes")
    parts = b""
    for start in range(0, len(content), 700):
        wanted = {"range": f"bytes={start}-{start + 699}"}
        status, headers, body = await client.ask("GET", path, headers=wanted)
        assert status == 206
        end = start + len(body)
        assert headers["content-range"] == f"bytes {start}-{end - 1}/{len(content)}"
        parts += body
    assert parts == content
    beyond = {"range": f"bytes={len(content)}-"}
    status, headers, body = await client.ask("GET", path, headers=beyond)
    assert (status, headers["content-range"], body) == (416, f"bytes */{len(content)}", b"")
    status, headers, body = await client.ask("HEAD", path)
    assert (status, headers["content-length"], body) == (200, str(len(content)), b"")


@pytest.mark.parametrize(
    "file_id",
    [
        "..",
        "%2e%2e",
        "file-../../x",
        "file-",
        "x",
        "file-\x00",
        "file-" + "0" * 5000,
        "\ud7ff",
        "'",
    ],
)
async def test_ids_lead_nowhere(client: BatchClient, file_id: str) -> None:
    for method, path in [
        ("GET", f"/v1/files/{file_id}"),
        ("DELETE", f"/v1/files/{file_id}"),
        ("GET", f"/v1/files/{file_id}/content"),
        ("GET", f"/v1/batches/{file_id}"),
        ("POST", f"/v1/batches/{file_id}/cancel"),
    ]:
        assert (await client.ask(method, path))[0] == 404


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=-1", "limit=x", "limit=" + "1" * 5000, "limit=000000001" + "9" * 20,
     "limit=10001", "limit=\u0661", "order=up", "after=nobody", "limit=1.5", "limit=%00"],
)  # fmt: skip
async def test_odd_pages_are_refused(client: BatchClient, query: str) -> None:
    assert (await client.ask("GET", "/v1/files", query=query))[0] == 400
    if "order" not in query:
        assert (await client.ask("GET", "/v1/batches", query=query))[0] == 400


async def test_pages(client: BatchClient) -> None:
    ids = [(await client.upload(form(FILE, PURPOSE)))[1]["id"] for _ in range(7)]
    for order in ("asc", "desc"):
        wanted = ids if order == "asc" else ids[::-1]
        seen: list[str] = []
        after = ""
        while True:
            query = f"limit=3&order={order}" + (f"&after={after}" if after else "")
            page = json.loads((await client.ask("GET", "/v1/files", query=query))[2])
            seen += [each["id"] for each in page["data"]]
            assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], seen[-1])
            if not page["has_more"]:
                break
            after = page["last_id"]
            # The next page is the same when a file of this one goes.
            await client.ask("DELETE", f"/v1/files/{page['first_id']}")
        assert seen == wanted
        ids = [each for each in ids if (await client.ask("GET", f"/v1/files/{each}"))[0] == 200]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"\xff", b'{"metadata":{"a":"\\ud800"}}',
        b'{"input_file_id":' + b"9" * 5000 + b"}", b'{"metadata":' + b"[" * 5000, b'"x"',
        b'{"input_file_id":"' + b"x" * 2_000_000 + b'"}',
    ],
)  # fmt: skip
async def test_odd_creations_are_refused(client: BatchClient, body: bytes) -> None:
    status, _, _ = await client.ask("POST", "/v1/batches", body)
    assert status in {400, 413}


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"input_file_id": None}, "input_file_id", "missing_required_parameter"),
        ({"endpoint": None}, "endpoint", "missing_required_parameter"),
        ({"completion_window": None}, "completion_window", "missing_required_parameter"),
        ({"input_file_id": 5}, "input_file_id", "invalid_type"),
        ({"endpoint": "/v1/x"}, "endpoint", "invalid_value"),
        ({"endpoint": CHAT + "/"}, "endpoint", "invalid_value"),
        ({"completion_window": "1m"}, "completion_window", "invalid_value"),
        ({"completion_window": "31d"}, "completion_window", "invalid_value"),
        ({"completion_window": "nan"}, "completion_window", "invalid_value"),
        ({"completion_window": "inf"}, "completion_window", "invalid_value"),
        ({"completion_window": "9" * 5000 + "h"}, "completion_window", "invalid_value"),
        ({"completion_window": ""}, "completion_window", "invalid_value"),
        ({"metadata": {"tags": ["a"]}}, "metadata.tags", "invalid_type"),
        ({"metadata": {"n": 1}}, "metadata.n", "invalid_type"),
        ({"metadata": []}, "metadata", "invalid_type"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata", "invalid_value"),
        ({"metadata": {"k" * 65: ""}}, "metadata." + "k" * 64, "invalid_value"),
        ({"metadata": {"k": "v" * 513}}, "metadata.k", "invalid_value"),
        ({"output_expires_after": 1}, "output_expires_after", "invalid_type"),
        (
            {"output_expires_after": {"anchor": "x", "seconds": 3600}},
            "output_expires_after.anchor",
            "invalid_value",
        ),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 3599}},
            "output_expires_after.seconds",
            "invalid_value",
        ),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": True}},
            "output_expires_after.seconds",
            "invalid_type",
        ),
    ],
)
async def test_what_a_creation_may_not_say(
    world: World, changes: dict[str, Any], param: str, code: str
) -> None:
    client = BatchClient(world)
    file = await world.upload(GOOD_LINE)
    wanted = {
        "input_file_id": file.id,
        "endpoint": CHAT,
        "completion_window": "24h",
        **changes,
    }
    body = {name: value for name, value in wanted.items() if value is not None}
    with pytest.raises(ApplianceError) as caught:
        await client._endpoints._answer(
            {"method": "POST", "path": "/v1/batches", "query_string": b"", "headers": []},
            one_message(json.dumps(body).encode()),
            Answer(ignore, b""),
        )
    error = openai_error(caught.value)
    assert (error.param, error.code) == (param, code)
    if code == "missing_required_parameter":
        assert error.message.startswith(f"Missing required parameter: '{param}'.")
    if param == "metadata.tags":
        assert "expected a string, but got an array instead" in error.message
    assert not (await world.service.page(after=None, limit=5)).data


def one_message(body: bytes) -> Any:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


async def ignore(_: Message) -> None:
    return


async def test_the_most_metadata_is_kept_as_it_is(world: World) -> None:
    metadata = {f"{n:02}" + "k" * 62: "\u2028" * 512 for n in range(16)}
    batch = await world.submit(jsonl([chat_line("r1")]), metadata=metadata)
    assert (await world.ended(batch.id)).metadata == metadata


def test_an_answer_becomes_one_line_of_json() -> None:
    assert one_line(b' {"a": 1} \n') == b'{"a": 1}'
    assert json.loads(one_line(b'{\r\n"a":\n[1,\n"\\n"]}')) == {"a": [1, "\n"]}
    for wrong in (b"", b"x", b"{", b'{"a":1}{"b":2}', b"1,2", b'"\xff"', b'{"a":\n}', b"NaN"):
        with pytest.raises(ValueError):  # noqa: PT011 - msgspec has many words
            one_line(wrong)
    with pytest.raises(RecursionError):
        one_line(b"[" * 5000 + b"]" * 5000)


def test_usage_of_every_kind_of_answer() -> None:
    counter = UsageCounter()
    for body in (
        {"usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}},
        {"usage": {"prompt_tokens": 4, "total_tokens": 4, "prompt_tokens_details": None}},
        {"usage": {"prompt_tokens": 1, "prompt_tokens_details": {"cached_tokens": 1}}},
        {
            "usage": {
                "input_tokens": 5,
                "input_tokens_details": {"cached_tokens": 2},
                "output_tokens": 7,
                "output_tokens_details": {"reasoning_tokens": 3},
                "total_tokens": 12,
            }
        },
        {"usage": None},
        {"usage": {"prompt_tokens": None}},
        {"usage": {"prompt_tokens": "many"}},
        {"usage": {"prompt_tokens": 10**40}},
        {},
        [],
    ):
        counter.add(json.dumps(body).encode())
    for broken in (b"", b"{", b"[" * 5000, b"\xff"):
        counter.add(broken)
    total = counter.total()
    assert (total.input_tokens, total.output_tokens, total.total_tokens) == (11, 9, 20)
    assert total.input_tokens_details.cached_tokens == 3
    assert total.output_tokens_details.reasoning_tokens == 3
    assert UsageCounter(total).total() == total


def test_errors_of_lines_that_never_ran() -> None:
    assert EXPIRED == (
        "batch_expired",
        "This request could not be executed before the completion window expired.",
    )
    assert CANCELLED[0] == "batch_cancelled"
