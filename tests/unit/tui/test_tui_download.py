"""Files of the server on this machine."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tui.client.api import UnreachableError
from tui.client.download import SaveError, free_path, path_of, save


async def pieces(*content: bytes, error: Exception | None = None) -> AsyncIterator[bytes]:
    for piece in content:
        yield piece
    if error is not None:
        raise error


def names(directory: Path) -> list[str]:
    return sorted(each.name for each in directory.iterdir())


async def test_all_pieces_are_in_the_file_and_its_size_is_told(tmp_path: Path) -> None:
    told: list[int] = []
    target = tmp_path / "out.jsonl"
    mask = os.umask(0o027)
    try:
        assert await save(pieces(b"one\n", b"", b"three\n"), target, told.append) == 10
    finally:
        os.umask(mask)
    assert target.read_bytes() == b"one\nthree\n"
    assert told == [4, 4, 10]
    assert names(tmp_path) == ["out.jsonl"]
    assert target.stat().st_mode & 0o777 == 0o640


async def test_what_is_there_is_not_touched(tmp_path: Path) -> None:
    file, link, directory = tmp_path / "file", tmp_path / "link", tmp_path / "directory"
    file.write_text("precious")
    link.symlink_to(tmp_path / "elsewhere")
    directory.mkdir()
    for target in (file, link, directory):
        with pytest.raises(SaveError, match="exists"):
            await save(pieces(b"x"), target, lambda _: None)
    assert file.read_text() == "precious"
    assert names(tmp_path) == ["directory", "file", "link"]


async def test_a_download_that_breaks_leaves_nothing(tmp_path: Path) -> None:
    broken = pieces(b"half", error=UnreachableError("gone"))
    with pytest.raises(UnreachableError):
        await save(broken, tmp_path / "out", lambda _: None)
    assert names(tmp_path) == []


async def test_a_download_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    has_begun = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield b"half"
        await asyncio.Event().wait()

    task = asyncio.create_task(save(endless(), tmp_path / "out", lambda _: has_begun.set()))
    await has_begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert names(tmp_path) == []


async def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(SaveError, match="none/out cannot be written: No such file"):
        await save(pieces(b"x"), tmp_path / "none/out", lambda _: None)
    with pytest.raises(SaveError, match="name too long"):
        await save(pieces(b"x"), tmp_path / ("x" * 300), lambda _: None)


def test_what_is_typed_becomes_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ada")
    assert path_of(" out.jsonl ") == tmp_path / "out.jsonl"
    assert path_of("~/out.jsonl") == Path("/home/ada/out.jsonl")
    for odd in ("", "  ", "a\0b", "~nobody-of-that-name/out"):
        with pytest.raises(SaveError):
            path_of(odd)


def test_a_free_name_is_found(tmp_path: Path) -> None:
    assert free_path(tmp_path, "a.jsonl") == tmp_path / "a.jsonl"
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "a-2.jsonl").symlink_to("nowhere")
    assert free_path(tmp_path, "a.jsonl") == tmp_path / "a-3.jsonl"
