"""Uploads, ranges, bodies and answers, as odd as clients make them."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from appliance.batch.content import first_line, parse_range
from appliance.batch.endpoints import BatchEndpoints
from appliance.batch.request import one_line
from appliance.batch.state import CANCELLED, EXPIRED
from appliance.batch.usage import UsageCounter
from appliance.errors import ApplianceError, BodyTooLargeError, InsufficientStorageError
from appliance.gateway.asgi import Answer, ClientGoneError, Message, Scope
from appliance.gateway.errors import openai_error, status_of
from tests.support.batches import CHAT, World, chat_line, jsonl

BOUNDARY = "b0undary"
FORM = f"multipart/form-data; boundary={BOUNDARY}"


def form(*parts: tuple[str, bytes]) -> bytes:
    """Parts by what stands behind `form-data; ` and their content."""
    texts = [
        f"--{BOUNDARY}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + body + b"\r\n"
        for head, body in parts
    ]
    return b"".join(texts) + f"--{BOUNDARY}--\r\n".encode()


GOOD_LINE = json.dumps(chat_line("r1")).encode() + b"\n"
FILE = ('name="file"; filename="in.jsonl"', GOOD_LINE)
PURPOSE = ('name="purpose"', b"batch")


class Client:
    """Speaks ASGI to the endpoints of a world."""

    def __init__(self, world: World) -> None:
        self._endpoints = BatchEndpoints(world.files, world.service)

    async def ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        headers: dict[str, str] | None = None,
        query: str = "",
        piece: int = 1000,
        is_cut_off: bool = False,
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body; errors as the gateway would send them."""
        scope: Scope = {
            "method": method,
            "path": path,
            "query_string": query.encode(),
            "headers": [(k.lower().encode(), v.encode()) for k, v in (headers or {}).items()],
        }
        pieces = [body[at : at + piece] for at in range(0, len(body), piece)] or [b""]
        messages: list[Message] = [
            {"type": "http.request", "body": each, "more_body": True} for each in pieces
        ]
        if is_cut_off:
            messages.append({"type": "http.disconnect"})
        else:
            messages[-1]["more_body"] = False
        sent: list[Message] = []

        async def receive() -> Message:
            await asyncio.sleep(0)
            return messages.pop(0)

        async def send(message: Message) -> None:
            sent.append(message)

        answer = Answer(send, b"req_1")
        try:
            await self._endpoints(scope, receive, answer)
        except ApplianceError as error:
            return status_of(error), {}, json.dumps({"code": openai_error(error).code}).encode()
        given = {k.decode(): v.decode() for k, v in sent[0]["headers"]}
        return sent[0]["status"], given, b"".join(each["body"] for each in sent[1:])

    async def upload(self, body: bytes, kind: str = FORM, **given: Any) -> tuple[int, Any]:
        headers = {"content-type": kind, **given.pop("headers", {})}
        status, _, answer = await self.ask("POST", "/v1/files", body, headers=headers, **given)
        return status, json.loads(answer)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with World(tmp_path) as world:
        yield world
        left = [each.name for each in (tmp_path / "files").iterdir()]
        assert not [name for name in left if name.endswith(".part")]


@pytest.fixture
def client(world: World) -> Client:
    return Client(world)


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


async def test_ranges_put_together_are_the_file(client: Client) -> None:
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


@pytest.mark.parametrize("piece", [1, 3, 64, 10_000])
async def test_a_form_in_pieces_of_any_size(client: Client, piece: int) -> None:
    content = GOOD_LINE + f"\r\n--{BOUNDARY[:-1]}\r\n--\r\r\n\n-".encode()
    status, file = await client.upload(form(PURPOSE, (FILE[0], content)), piece=piece)
    assert status == 200
    _, _, body = await client.ask("GET", f"/v1/files/{file['id']}/content")
    assert body == content


@pytest.mark.parametrize(
    "kind",
    [
        "",
        "application/json",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary=""',
        "multipart/form-data; boundary=" + "x" * 5000,
        "multipart/form-data; boundary=\u00e9",
        "multipart/form-data; boundary=other",
        "multipart/form-data; xboundary=" + BOUNDARY,
    ],
)
async def test_what_is_no_form_is_refused(client: Client, kind: str) -> None:
    status, _ = await client.upload(form(FILE, PURPOSE), kind)
    assert status == 400


@pytest.mark.parametrize("kind", [f'multipart/form-data; boundary="{BOUNDARY}"', FORM.upper()])
async def test_boundaries_may_be_quoted(client: Client, kind: str) -> None:
    body = form(FILE, PURPOSE)
    if kind.isupper():
        body = body.replace(BOUNDARY.encode(), BOUNDARY.upper().encode())
    assert (await client.upload(body, kind))[0] == 200


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [PURPOSE],
        [FILE],
        [FILE, ('name="purpose"', b"")],
        [FILE, ('name="purpose"', b"batch_output")],
        [FILE, ('name="purpose"', b"\xff")],
        [FILE, ('name="purpose"', b"x" * 100_000)],
        [FILE, FILE, PURPOSE],
        [FILE, PURPOSE, *[(f'name="n{n}"', b"") for n in range(50)]],
        [FILE, PURPOSE, ('name="expires_after[seconds]"', b"3600")],
        [FILE, PURPOSE, ('name="expires_after[anchor]"', b"created_at")],
        *(
            [
                FILE,
                PURPOSE,
                ('name="expires_after[anchor]"', b"created_at"),
                ('name="expires_after[seconds]"', seconds),
            ]
            for seconds in (b"3599", b"2592001", b"-1", b"1e4", b"", b"9" * 4096)
        ),
        [(FILE[0], b""), PURPOSE],
        [(FILE[0], b"\n\n \n"), PURPOSE],
        [(FILE[0], b"\xef\xbb\xbf"), PURPOSE],
        [(FILE[0], b"[1]\n" + GOOD_LINE), PURPOSE],
        [(FILE[0], b"\x89PNG\r\n\x1a\n" + bytes(5000)), PURPOSE],
        [(FILE[0], b"[" * 100_000), PURPOSE],
        [(FILE[0], b'{"a":' + b"9" * 5000 + b"}"), PURPOSE],
        [(FILE[0], b'{"a":"\\ud800"}'), PURPOSE],
        [(FILE[0], b'{"a":"\xff"}'), PURPOSE],
    ],
)
async def test_forms_that_are_refused_leave_nothing(
    world: World, client: Client, parts: list[tuple[str, bytes]]
) -> None:
    status, _ = await client.upload(form(*parts))
    assert status == 400
    page = await world.files.page(after=None, limit=10, newest_first=True, purpose=None)
    assert not page.data


async def test_uploads_that_are_cut_off_leave_nothing(world: World, client: Client) -> None:
    body = form(FILE, PURPOSE)
    for end in range(0, len(body) - 1, 9):
        with pytest.raises(ClientGoneError):
            await client.upload(body[:end], is_cut_off=True)
        status, _ = await client.upload(body[: min(end, len(body) - 4)])
        assert status == 400
    page = await world.files.page(after=None, limit=10, newest_first=True, purpose=None)
    assert not page.data


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("in.jsonl", "in.jsonl"),
        ("../../etc/passwd", "../../etc/passwd"),
        ("a%0D%0Ab", None),
        ("\u202e\u2028", None),
        ("x" * 2000, "x" * 255),
        ("", "upload"),
        ("a;b", "a;b"),
        ("%22%ED%A0%80", None),
    ],
)
async def test_names_are_labels(
    tmp_path: Path, client: Client, given: str, wanted: str | None
) -> None:
    status, file = await client.upload(
        form((f'name="file"; filename="{given}"', GOOD_LINE), PURPOSE)
    )
    assert status == 200
    assert wanted is None or file["filename"] == wanted
    status, headers, body = await client.ask("GET", f"/v1/files/{file['id']}/content")
    assert (status, body) == (200, GOOD_LINE)
    assert headers["content-disposition"].isprintable()
    assert [each.name for each in (tmp_path / "files").iterdir()] == [file["id"]]


async def test_sizes(client: Client, world: World) -> None:
    world.files.most_bytes = 5000
    exact = GOOD_LINE + b" " * (5000 - len(GOOD_LINE))
    body = form((FILE[0], exact), PURPOSE)
    declared = {"content-length": str(len(body))}
    assert (await client.upload(body, headers=declared))[0] == 200
    assert (await client.upload(body))[0] == 200
    over = form((FILE[0], exact + b" "), PURPOSE)
    status, answer = await client.upload(over)
    assert (status, answer["code"]) == (413, "body_too_large")
    declared = {"content-length": str(10**9)}
    assert (await client.upload(over, headers=declared))[0] == 413


async def test_a_disk_without_room_is_507(
    client: Client, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = form(FILE, PURPOSE)
    with monkeypatch.context() as patch:
        patch.setattr(world.files, "has_space", lambda *_: False)
        assert (await client.upload(body))[0] == 507
    with monkeypatch.context() as patch:
        patch.setattr("appliance.batch.files._CHECK_EVERY_BYTES", 1)
        spaces = iter([True])
        patch.setattr(world.files, "has_space", lambda *_: next(spaces, False))
        assert (await client.upload(body))[0] == 507

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        assert (await client.upload(body))[0] == 507
    with monkeypatch.context() as patch:
        patch.setattr("appliance.batch.files.put_file", full)
        with pytest.raises(OSError, match="No space"):
            await client.upload(body)
    assert not list(world.files.path("x").parent.iterdir())


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
async def test_ids_lead_nowhere(client: Client, file_id: str) -> None:
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
async def test_odd_pages_are_refused(client: Client, query: str) -> None:
    assert (await client.ask("GET", "/v1/files", query=query))[0] == 400
    if "order" not in query:
        assert (await client.ask("GET", "/v1/batches", query=query))[0] == 400


async def test_pages(client: Client) -> None:
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
async def test_odd_creations_are_refused(client: Client, body: bytes) -> None:
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
    client = Client(world)
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


async def test_hundreds_of_mutated_requests_are_answered(client: Client) -> None:
    """Never a 5xx: whatever comes, the client is told what was wrong with it."""
    seed = random.randrange(10**9)
    chance = random.Random(seed)
    whole = form(FILE, PURPOSE, ('name="expires_after[anchor]"', b"created_at"))
    for number in range(400):
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 6)):
            at = chance.randrange(len(data))
            data[at : at + chance.randrange(3)] = chance.choice(
                [b"", b"\r\n", b"\n", b"\0", b"\xff", b'"', b"--", b";", b":", b"=", b"%ed%a0%80",
                 BOUNDARY.encode(), b"filename", b"x" * 9000]
            )  # fmt: skip
        headers = {"content-length": chance.choice(["", "-1", "x", str(len(data)), "9" * 30])}
        status, _ = await client.upload(
            bytes(data), headers=headers, piece=chance.choice([1, 7, 9999])
        )
        assert status < 500, (seed, number, bytes(data))


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


def test_the_first_line_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "f"
    for content, wanted in [
        (b"", b""),
        (b"\n \r\n\t\n", b""),
        (b"\xef\xbb\xbf\n{}\n", b"{}\n"),
        (b"\xef\xbb\xbf{}\r\n1", b"{}\r\n"),
        (b"x", b"x"),
    ]:
        file.write_bytes(content)
        assert first_line(file) == wanted


def test_errors_of_lines_that_never_ran() -> None:
    assert EXPIRED == (
        "batch_expired",
        "This request could not be executed before the completion window expired.",
    )
    assert CANCELLED[0] == "batch_cancelled"


async def test_errors_of_uploads_tell_a_remedy(world: World) -> None:
    with pytest.raises(BodyTooLargeError):
        await world.files.upload(2**40)
    world.files.most_bytes = 2**60
    with pytest.raises(InsufficientStorageError, match="free"):
        await world.files.upload(2**59)
