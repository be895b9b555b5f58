"""A new batch of the lines that have no answer."""

import msgspec
import pytest

from appliance.batch.retry import metadata_of_retry, requests_with
from appliance.errors import ConflictError, InsufficientStorageError, NotFoundError
from appliance.protocol.batches import BatchStatus
from tests.support.batches import World, chat_line, jsonl

SOUND = (
    b'{"custom_id": "r1", "method": "POST", "url": "/v1/embeddings", "x": 1e400,'
    b' "body": {"model": "old", "input": "a\xe2\x80\xa8b", "seed": 123456789012345678901}}'
)


def mixed(bad: int, good: int = 3) -> bytes:
    """Requests of which every second one is refused, while there are bad ones."""
    lines = []
    for number in range(max(bad, good)):
        if number < good:
            lines.append(chat_line(f"good-{number}"))
        if number < bad:
            lines.append(chat_line(f"bad-{number}"))
    return jsonl(lines)


def test_lines_are_chosen_by_their_id_and_stay_as_they_are() -> None:
    lines = [b"\xef\xbb\xbf" + SOUND, b"\n", SOUND.replace(b'"r1"', b'"r2"') + b"\r\n", b" "]
    assert list(requests_with(lines, {"r2", "r9"})) == [SOUND.replace(b'"r1"', b'"r2"') + b"\n"]
    assert list(requests_with(lines, {"r1"})) == [SOUND + b"\n"]


async def test_lines_that_failed_make_a_new_batch(world: World) -> None:
    first = await world.ended((await world.submit(mixed(bad=2), metadata={"run": "7"})).id)
    made = (await world.service.retry(first.id)).batch
    assert made.id != first.id
    assert (made.endpoint, made.completion_window) == (first.endpoint, first.completion_window)
    assert made.metadata == {"run": "7", "retry_of": first.id}
    content = world.files.path(made.input_file_id).read_bytes()
    assert content == jsonl([chat_line("bad-0"), chat_line("bad-1")])
    assert (await world.files.find(made.input_file_id)).filename == f"{first.id}_retry.jsonl"
    again = await world.ended(made.id)
    assert again.request_counts.failed == again.request_counts.total == 2


async def test_more_than_one_piece_is_copied(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.batch.retry._PIECE_BYTES", 300)
    first = await world.ended((await world.submit(mixed(bad=40, good=1))).id)
    made = (await world.service.retry(first.id)).batch
    lines = world.files.path(made.input_file_id).read_bytes().splitlines()
    assert [msgspec.json.decode(line)["custom_id"] for line in lines] == [
        f"bad-{number}" for number in range(40)
    ]


async def test_what_has_no_failed_lines_is_not_tried_again(world: World) -> None:
    done = await world.ended((await world.submit(mixed(bad=0))).id)
    with pytest.raises(ConflictError, match="was answered"):
        await world.service.retry(done.id)
    unsound = await world.ended((await world.submit(b"{}\n")).id)
    assert unsound.status is BatchStatus.FAILED
    with pytest.raises(ConflictError, match="failed for its file"):
        await world.service.retry(unsound.id)
    with pytest.raises(NotFoundError):
        await world.service.retry("batch_none")


async def test_a_batch_that_is_not_over_is_not_tried_again(world: World) -> None:
    batch = await world.submit(mixed(bad=1))
    with pytest.raises(ConflictError, match="not over"):
        await world.service.retry(batch.id)


async def test_files_that_are_gone_are_named_and_nothing_is_left(world: World) -> None:
    first = await world.ended((await world.submit(mixed(bad=1))).id)
    kept = {each.name for each in (world.home / "files").iterdir()}
    world.files.path(first.error_file_id or "").rename(world.home / "errors")
    with pytest.raises(NotFoundError, match="is gone"):
        await world.service.retry(first.id)
    (world.home / "errors").rename(world.files.path(first.error_file_id or ""))
    await world.files.delete(first.input_file_id)
    with pytest.raises(NotFoundError):
        await world.service.retry(first.id)
    left = {each.name for each in (world.home / "files").iterdir()}
    assert left == kept - {first.input_file_id}


async def test_an_input_that_lost_lines_is_refused(world: World) -> None:
    first = await world.ended((await world.submit(mixed(bad=2))).id)
    kept = {each.name for each in (world.home / "files").iterdir()}
    world.files.path(first.input_file_id).write_bytes(jsonl([chat_line("bad-0")]))
    with pytest.raises(ConflictError, match="has not all lines"):
        await world.service.retry(first.id)
    assert {each.name for each in (world.home / "files").iterdir()} == kept


async def test_a_batch_that_cannot_be_made_leaves_no_file(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await world.ended((await world.submit(mixed(bad=1))).id)
    kept = {each.name for each in (world.home / "files").iterdir()}

    async def refuse(_: object) -> None:
        raise InsufficientStorageError("no room")

    monkeypatch.setattr(world.service, "create", refuse)
    with pytest.raises(InsufficientStorageError):
        await world.service.retry(first.id)
    assert {each.name for each in (world.home / "files").iterdir()} == kept


async def test_metadata_says_what_it_is_a_retry_of_where_there_is_room(world: World) -> None:
    batch = await world.submit(mixed(bad=0), metadata={"a": "1"})
    assert metadata_of_retry(batch, 2) == {"a": "1", "retry_of": batch.id}
    assert metadata_of_retry(batch, 1) == {"a": "1"}
