"""A program of its own: lists a repository, or fetches its files. See docs/decisions/0010.

`python -m appliance.hub.fetch` reads an `Order` from its standard input and writes `Message`s to
its standard output, a line each. It ends as soon as its standard input is closed, which also
happens when the server that started it is killed.
"""

import fcntl
import io
import json
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import msgspec
from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.file_download import http_get
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

from appliance.errors import InvalidRequestError
from appliance.hub.cache import RepoCache, digest_of, free_bytes, unique
from appliance.hub.choice import CONFIG, INDEX, choose, shards_of
from appliance.hub.failures import DiskShortError, WrongHashError, stopped
from appliance.hub.messages import Fetched, Going, Listed, Message, Order, Verified
from appliance.protocol.pulls import PullFile

_REPORT_EVERY_S = 0.25
# What a cut connection or a killed process loses at most of a file.
_PIECE_BYTES = 1 << 18
_DEFAULT_REVISION = "main"
_HEXADECIMAL = set("0123456789abcdef")
_DIGEST_LENGTHS = {40, 64}
_MOST_INDEX_BYTES = 64 << 20


def main() -> None:
    """Do what the order says, and end."""
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=Order)
    threading.Thread(target=_end_with_server, daemon=True).start()
    constants.DOWNLOAD_CHUNK_SIZE = _PIECE_BYTES
    endpoint = (order.endpoint or constants.ENDPOINT).rstrip("/")
    result: Message
    try:
        result = _list(order, endpoint) if order.commit is None else _Fetch(order, endpoint).run()
    except Exception as error:  # noqa: BLE001  the server is told its cause
        result = stopped(error, order, endpoint)
    say(result)
    # Threads that still fetch cannot be stopped in another way.
    os._exit(0)


_saying = threading.Lock()


def say(message: Message) -> None:
    """One line to the server."""
    with _saying:
        sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
        sys.stdout.buffer.flush()


def _end_with_server() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


def _list(order: Order, endpoint: str) -> Listed:
    api = HfApi(endpoint=endpoint, token=order.token or False)
    info = api.model_info(
        order.repo,
        revision=order.revision,
        files_metadata=True,
        # Without it a hub that accepts and says nothing is waited for without an end.
        timeout=constants.HF_HUB_ETAG_TIMEOUT,
    )
    if info.sha is None or not set(info.sha) <= _HEXADECIMAL:
        raise _unlikely(f"{endpoint} does not say which commit of {order.repo} it has.")
    files = [_file(sibling) for sibling in info.siblings or []]
    by_path = {file.path: file for file in files}
    pinned = msgspec.structs.replace(order, commit=info.sha)
    shards = None
    if CONFIG in by_path:
        # Gated repositories are listed for everybody; only a file shows whether we may read.
        _read(pinned, endpoint, by_path[CONFIG])
    if INDEX in by_path:
        index = json.loads(_read(pinned, endpoint, by_path[INDEX]))
        shards = shards_of(index["weight_map"])
    chosen = choose(files, shards)
    for file in chosen:
        _check(file)
    return Listed(commit=info.sha, files=chosen)


def _file(sibling: RepoSibling) -> PullFile:
    if (large := sibling.lfs) is not None:
        return PullFile(path=sibling.rfilename, size_bytes=large.size, digest=large.sha256)
    digest = sibling.blob_id if sibling.size is not None else None
    return PullFile(path=sibling.rfilename, size_bytes=sibling.size or 0, digest=digest or "")


def _check(file: PullFile) -> None:
    """Names and digests become paths here; raises InvalidRequestError."""
    path = PurePosixPath(file.path)
    is_inside = not path.is_absolute() and ".." not in path.parts and "\0" not in file.path
    if not is_inside or len(file.digest) not in _DIGEST_LENGTHS:
        raise _unlikely(f"The hub lists a file that cannot be: {file.path!r}.")
    if not set(file.digest) <= _HEXADECIMAL or file.size_bytes < 0:
        raise _unlikely(f"The hub lists no hash for {file.path!r}.")
    if file.size_bytes > constants.MAX_HTTP_DOWNLOAD_SIZE:
        raise InvalidRequestError(
            f"{file.path} is larger than the 50 GB that the hub serves over HTTP.",
            hint="Fetch it with `hf download` (Xet) and use `appliance add`.",
        )


def _unlikely(problem: str) -> InvalidRequestError:
    return InvalidRequestError(problem, hint="Check that HF_ENDPOINT names a hub that you trust.")


def _read(order: Order, endpoint: str, file: PullFile) -> bytes:
    """A small file, without a place in the cache."""
    if file.size_bytes > _MOST_INDEX_BYTES:
        raise _unlikely(f"{file.path} is too large to be true.")
    content = io.BytesIO()
    _get(order, endpoint, file, content, 0)
    return content.getvalue()


def _get(order: Order, endpoint: str, file: PullFile, target: BinaryIO, begin: int) -> None:
    assert order.commit is not None
    headers = build_hf_headers(token=order.token or False)
    # Compressed answers have no ranges.
    headers["accept-encoding"] = "identity"
    http_get(
        hf_hub_url(order.repo, file.path, revision=order.commit, endpoint=endpoint),
        target,
        resume_size=begin,
        headers=headers,
        expected_size=file.size_bytes,
        displayed_filename=file.path,
    )


class _Fetch:
    """All files of one order, several at once."""

    def __init__(self, order: Order, endpoint: str) -> None:
        self._order = order
        self._endpoint = endpoint
        self._cache = RepoCache(root=Path(order.cache), repo=order.repo)
        self._total_bytes = sum(file.size_bytes for file in unique(order.files))
        self._lock = threading.Lock()
        self._current: dict[str, PullFile] = {}
        self._received: dict[str, int] = {}
        self._begun: dict[str, int] = {}

    def run(self) -> Fetched:
        """Raises what the first file raises that fails."""
        order = self._order
        assert order.commit is not None
        self._cache.blobs.mkdir(parents=True, exist_ok=True)
        same: dict[str, list[PullFile]] = {}
        for file in order.files:
            if file.is_verified and self._is_whole(file):
                say(Verified(path=file.path))
            else:
                same.setdefault(file.digest, []).append(file)
        # Not as a context: after a failure nobody waits for the other files.
        pool = ThreadPoolExecutor(order.workers)
        left = {pool.submit(self._bring, files) for files in same.values()}
        while left:
            done, left = wait(left, _REPORT_EVERY_S, return_when=FIRST_EXCEPTION)
            missing = self._cache.missing_bytes(order.files)
            self._report(missing)
            for future in done:
                future.result()
            if missing:
                self._check_disk(missing)
        path = self._cache.publish(order.commit, order.revision or _DEFAULT_REVISION, order.files)
        return Fetched(path=str(path))

    def _is_whole(self, file: PullFile) -> bool:
        blob = self._cache.blob(file)
        return blob.exists() and blob.stat().st_size == file.size_bytes

    def _bring(self, files: list[PullFile]) -> None:
        """One content, which may have several names."""
        file = files[0]
        with self._lock:
            self._current[file.path] = file
        try:
            self._verified_blob(file)
        finally:
            with self._lock:
                del self._current[file.path]
        for each in files:
            say(Verified(path=each.path))

    def _verified_blob(self, file: PullFile) -> None:
        blob = self._cache.blob(file)
        with _locked(self._cache.partial(file)) as partial:
            if self._is_whole(file) and digest_of(blob, file) == file.digest:
                self._cache.partial(file).unlink()
                return
            was_there = os.fstat(partial.fileno()).st_size
            found = self._fetch(file, partial)
            if found != file.digest and was_there:
                # A power cut may have torn what was there.
                partial.truncate(0)
                found = self._fetch(file, partial)
            if found != file.digest:
                self._cache.partial(file).unlink()
                raise WrongHashError(path=file.path, expected=file.digest, found=found)
            os.fsync(partial.fileno())
            self._cache.partial(file).replace(blob)

    def _fetch(self, file: PullFile, partial: BinaryIO) -> str:
        """The digest of what is there once all of it is."""
        begin = partial.seek(0, io.SEEK_END)
        if begin > file.size_bytes:
            begin = 0
            partial.truncate(partial.seek(0))
        with self._lock:
            self._begun[file.digest] = begin
        if begin < file.size_bytes:
            self._get_rest(file, partial, begin)
        with self._lock:
            self._received[file.digest] = file.size_bytes - begin
        return digest_of(self._cache.partial(file), file)

    def _get_rest(self, file: PullFile, partial: BinaryIO, begin: int) -> None:
        try:
            _get(self._order, self._endpoint, file, partial, begin)
        except OSError:
            # Only a file that is too long ends with more than was asked for.
            if partial.seek(0, io.SEEK_END) <= file.size_bytes:
                raise
        partial.flush()

    def _report(self, missing_bytes: int) -> None:
        with self._lock:
            current = [
                msgspec.structs.replace(file, done_bytes=self._cache.size_here(file))
                for file in self._current.values()
            ]
            received = sum(self._received.values()) + sum(
                max(0, file.done_bytes - self._begun.get(file.digest, file.done_bytes))
                for file in current
                if file.digest not in self._received
            )
        say(
            Going(
                current=current,
                done_bytes=self._total_bytes - missing_bytes,
                received_bytes=received,
            )
        )

    def _check_disk(self, missing_bytes: int) -> None:
        """Others may fill the disk meanwhile."""
        free = free_bytes(self._cache.root)
        reserve = self._order.reserve_bytes
        if free < reserve:
            raise DiskShortError(need_bytes=missing_bytes, free_bytes=free, reserve_bytes=reserve)


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """The partial file, for us alone: another server's process may fetch the same one."""
    while True:
        with path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                is_same = os.path.samestat(os.fstat(file.fileno()), path.stat())
            except FileNotFoundError:
                # Who had it before has finished the file.
                continue
            if is_same:
                yield file
                return


if __name__ == "__main__":
    main()
