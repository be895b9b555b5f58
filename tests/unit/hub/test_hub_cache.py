import hashlib
from pathlib import Path

import pytest

from appliance.hub.cache import RepoCache, digest_of, free_bytes
from appliance.protocol.pulls import PullFile

COMMIT = "c" * 40


def file(path: str, data: bytes) -> PullFile:
    return PullFile(path=path, size_bytes=len(data), digest=hashlib.sha256(data).hexdigest())


def cache(tmp_path: Path) -> RepoCache:
    made = RepoCache(root=tmp_path, repo="acme/small")
    made.blobs.mkdir(parents=True)
    return made


def test_digests_are_those_of_git_and_lfs(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"hello\n")
    # As `git hash-object` and `sha256sum` print them.
    small = PullFile(path="f", size_bytes=6, digest="ce013625030ba8dba906f756967f9e9ca394464a")
    large = file("f", b"hello\n")
    assert digest_of(path, small) == small.digest
    assert digest_of(path, large) == large.digest


def test_nothing_is_published_that_is_not_whole(tmp_path: Path) -> None:
    made = cache(tmp_path)
    files = [file("config.json", b"{}"), file("model.safetensors", b"1234")]
    made.blob(files[0]).write_bytes(b"{}")
    made.blob(files[1]).write_bytes(b"123")
    with pytest.raises(OSError, match="not whole"):
        made.publish(COMMIT, "main", files)
    assert not made.snapshot(COMMIT).exists()
    assert not (made.directory / "refs/main").exists()
    made.blob(files[1]).write_bytes(b"1234")
    snapshot = made.publish(COMMIT, "main", files)
    assert (snapshot / "model.safetensors").read_bytes() == b"1234"
    assert not (snapshot / "model.safetensors").readlink().is_absolute()
    assert (made.directory / "refs/main").read_text() == COMMIT
    assert made.publish(COMMIT, COMMIT, files) == snapshot
    assert not (made.directory / "refs" / COMMIT).exists()


def test_the_config_appears_last(tmp_path: Path) -> None:
    made = cache(tmp_path)
    files = [file("config.json", b"{}"), file("1_Pooling/config.json", b"[]")]
    for each, data in zip(files, (b"{}", b"[]"), strict=True):
        made.blob(each).write_bytes(data)
    made.snapshot(COMMIT).mkdir(parents=True)
    in_the_way = made.snapshot(COMMIT) / "1_Pooling"
    in_the_way.write_text("")
    with pytest.raises(OSError, match="1_Pooling"):
        made.publish(COMMIT, "main", files)
    assert [path.name for path in made.snapshot(COMMIT).iterdir()] == ["1_Pooling"]


def test_what_is_missing_counts_partial_files_and_each_content_once(tmp_path: Path) -> None:
    made = cache(tmp_path)
    whole, part = file("a", b"12345"), file("b", b"123456789")
    made.blob(whole).write_bytes(b"12345")
    made.partial(part).write_bytes(b"123")
    again = file("c/b", b"123456789")
    assert made.missing_bytes([whole, part, again]) == 6


def test_discard_spares_what_a_snapshot_holds(tmp_path: Path) -> None:
    made = cache(tmp_path)
    shared, own, part = file("config.json", b"{}"), file("b", b"new"), file("d", b"other")
    made.blob(shared).write_bytes(b"{}")
    made.publish(COMMIT, "main", [shared])
    made.blob(own).write_bytes(b"new")
    made.partial(part).write_bytes(b"o")
    made.discard([shared, own, part])
    assert [path.name for path in made.blobs.iterdir()] == [shared.digest]


def test_discarding_all_of_a_repository_leaves_no_directory(tmp_path: Path) -> None:
    made = cache(tmp_path)
    own = file("b", b"new")
    made.blob(own).write_bytes(b"new")
    made.discard([own])
    assert list(tmp_path.iterdir()) == []


def test_free_space_of_a_directory_that_is_still_to_be_made(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "a/b/c") > 0
