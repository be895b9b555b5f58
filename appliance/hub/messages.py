"""What a server and the process that fetches for it say to each other: lines of JSON."""

import msgspec

from appliance.protocol.pulls import PullFile, PullProblem


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """The one line that the process reads: list a repository, or fetch the files named."""

    repo: str
    revision: str | None = None
    commit: str | None = None
    """None: only turn the revision into a commit and list its files."""
    files: list[PullFile] = []
    cache: str
    endpoint: str | None = None
    """None: what HF_ENDPOINT says, or the public hub."""
    token: str | None = None
    token_source: str = ""
    """Where the token is from, or where one could be put; for people."""
    reserve_bytes: int = 0
    """To be left free on the disk."""
    workers: int = 4
    """Files fetched at once."""

    def __repr__(self) -> str:
        """Without the token."""
        return f"Order(repo={self.repo!r}, commit={self.commit!r})"


class Listed(msgspec.Struct, frozen=True, kw_only=True, tag="listed"):
    """The revision's commit and the files that are needed of it."""

    commit: str
    files: list[PullFile]


class Going(msgspec.Struct, frozen=True, kw_only=True, tag="going"):
    """Files in work with their bytes on the disk; several times a second."""

    current: list[PullFile]
    done_bytes: int
    """Of all files, on the disk."""
    received_bytes: int
    """Over the network, by this process."""


class Verified(msgspec.Struct, frozen=True, kw_only=True, tag="verified"):
    """A file has its place in the cache."""

    path: str


class Fetched(msgspec.Struct, frozen=True, kw_only=True, tag="fetched"):
    """All files are there, and the checkpoint with them."""

    path: str


class Stopped(msgspec.Struct, frozen=True, kw_only=True, tag="stopped"):
    """It cannot go on."""

    problem: PullProblem
    is_transient: bool
    """The next try may succeed without anybody doing anything."""


Message = Listed | Going | Verified | Fetched | Stopped
