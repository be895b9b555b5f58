"""The Hugging Face cache on this disk: blobs, partial files, snapshots, refs. Blocks.

The layout is the one that all Hugging Face libraries share
(https://huggingface.co/docs/huggingface_hub/guides/manage-cache): `models--org--name/` holds
`blobs/<digest>`, `snapshots/<commit>/<path>` as links to them, and `refs/<revision>`. What it has
is used, and what we put there others find.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from appliance.hub.choice import CONFIG
from appliance.protocol.pulls import PullFile

_PIECE = 1 << 20
_SHA256_LENGTH = 64


@dataclass(frozen=True, kw_only=True)
class RepoCache:
    """One repository's part of the cache. Nothing is made before it is needed."""

    root: Path
    """The cache of all repositories."""
    repo: str

    @property
    def directory(self) -> Path:
        """Of the repository."""
        return self.root / f"models--{self.repo.replace('/', '--')}"

    @property
    def blobs(self) -> Path:
        """Contents by digest."""
        return self.directory / "blobs"

    def blob(self, file: PullFile) -> Path:
        """Content of a file, once it was verified."""
        return self.blobs / file.digest

    def partial(self, file: PullFile) -> Path:
        """What has been fetched of it until then."""
        return self.blobs / f"{file.digest}.appliance.incomplete"

    def snapshot(self, commit: str) -> Path:
        """Directory of the checkpoint."""
        return self.directory / "snapshots" / commit

    def size_here(self, file: PullFile) -> int:
        """Bytes of it on this disk."""
        for path in (self.blob(file), self.partial(file)):
            with suppress(OSError):
                return min(path.stat().st_size, file.size_bytes)
        return 0

    def missing_bytes(self, files: Sequence[PullFile]) -> int:
        """What is still to be fetched; the same content under several names counts once."""
        return sum(file.size_bytes - self.size_here(file) for file in unique(files))

    def publish(self, commit: str, revision: str, files: Sequence[PullFile]) -> Path:
        """Let the checkpoint appear: links to its blobs, the config last, then the ref.

        Raises OSError, also if a blob is not there.
        """
        for file in files:
            if self.blob(file).stat().st_size != file.size_bytes:
                raise FileNotFoundError(f"{self.blob(file)} is not whole")
        snapshot = self.snapshot(commit)
        for file in sorted(files, key=lambda each: each.path == CONFIG):
            _link(snapshot / file.path, self.blob(file))
        if revision != commit:
            _write(self.directory / "refs" / revision, commit)
        _sync(self.blobs, snapshot)
        return snapshot

    def discard(self, files: Sequence[PullFile]) -> None:
        """Delete what was fetched for them, unless a snapshot holds it."""
        held = {
            # Not resolved: a blob may itself be a link, into a store for all repositories.
            path.readlink().name
            for path in (self.directory / "snapshots").rglob("*")
            if path.is_symlink()
        }
        for file in files:
            self.partial(file).unlink(missing_ok=True)
            if file.digest not in held:
                self.blob(file).unlink(missing_ok=True)
        for directory in (self.blobs, self.directory):
            with suppress(OSError):
                directory.rmdir()


def unique(files: Sequence[PullFile]) -> list[PullFile]:
    """One file of each content."""
    return list({file.digest: file for file in files}.values())


def digest_of(path: Path, file: PullFile) -> str:
    """The content's digest, of the kind that the hub names for `file`. Raises OSError."""
    if len(file.digest) == _SHA256_LENGTH:
        digest = hashlib.sha256()
    else:
        # git hashes a blob with a header that holds its length.
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as content:
        while piece := content.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def free_bytes(directory: Path) -> int:
    """On the disk that holds it, or will hold it. Raises OSError."""
    while not directory.exists():
        directory = directory.parent
    return shutil.disk_usage(directory).free


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` that takes its place at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.new")
    beside.unlink(missing_ok=True)
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _link(path: Path, blob: Path) -> None:
    target = Path(os.path.relpath(blob, path.parent))
    if path.is_symlink() and path.readlink() == target:
        return
    with _replacing(path) as beside:
        beside.symlink_to(target)


def _write(path: Path, text: str) -> None:
    with _replacing(path) as beside:
        beside.write_text(text)


def _sync(*directories: Path) -> None:
    """A power cut after this takes no name away."""
    for directory in directories:
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
