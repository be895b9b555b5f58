"""Files on their way in: forms, pieces, names, sizes."""

import random
from pathlib import Path
from typing import Any

import pytest

from appliance.batch.content import first_line
from appliance.errors import BodyTooLargeError, InsufficientStorageError
from appliance.gateway.asgi import ClientGoneError
from tests.support.batch_client import BOUNDARY, FILE, FORM, GOOD_LINE, PURPOSE, BatchClient, form
from tests.support.batches import World


@pytest.mark.parametrize("piece", [1, 3, 64, 10_000])
async def test_a_form_in_pieces_of_any_size(client: BatchClient, piece: int) -> None:
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
async def test_what_is_no_form_is_refused(client: BatchClient, kind: str) -> None:
    status, _ = await client.upload(form(FILE, PURPOSE), kind)
    assert status == 400


@pytest.mark.parametrize("kind", [f'multipart/form-data; boundary="{BOUNDARY}"', FORM.upper()])
async def test_boundaries_may_be_quoted(client: BatchClient, kind: str) -> None:
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
    world: World, client: BatchClient, parts: list[tuple[str, bytes]]
) -> None:
    status, _ = await client.upload(form(*parts))
    assert status == 400
    page = await world.files.page(after=None, limit=10, newest_first=True, purpose=None)
    assert not page.data


async def test_uploads_that_are_cut_off_leave_nothing(world: World, client: BatchClient) -> None:
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
    tmp_path: Path, client: BatchClient, given: str, wanted: str | None
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


async def test_sizes(client: BatchClient, world: World) -> None:
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
    client: BatchClient, world: World, monkeypatch: pytest.MonkeyPatch
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


async def test_hundreds_of_mutated_requests_are_answered(client: BatchClient) -> None:
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
        # Byte by byte is slow, and long ones differ from short ones in their length alone.
        pieces = [1, 7, 9999] if len(data) < 2000 else [97, 9999]
        status, _ = await client.upload(bytes(data), headers=headers, piece=chance.choice(pieces))
        assert status < 500, (seed, number, bytes(data))


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


async def test_errors_of_uploads_tell_a_remedy(world: World) -> None:
    with pytest.raises(BodyTooLargeError):
        await world.files.upload(2**40)
    world.files.most_bytes = 2**60
    with pytest.raises(InsufficientStorageError, match="free"):
        await world.files.upload(2**59)
