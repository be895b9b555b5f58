"""Pulls: checkpoints on their way from a model hub to this machine."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum

from appliance.protocol.base import Body, Wire


class PullState(StrEnum):
    """`completed` and `cancelled` are final; `paused` and `failed` go on when a person resumes."""

    QUEUED = "queued"
    """Waits for its turn, or for `retry_at`."""
    RUNNING = "running"
    PAUSED = "paused"
    FAILED = "failed"
    COMPLETED = "completed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether nothing changes any more."""
        return self in {PullState.COMPLETED, PullState.CANCELLED}

    @property
    def is_active(self) -> bool:
        """Whether it goes on by itself."""
        return self in {PullState.QUEUED, PullState.RUNNING}


class PullPhase(StrEnum):
    """What a running pull does."""

    LISTING = "listing"
    """Asks the hub for the files, sizes and hashes."""
    FETCHING = "fetching"
    """Fetches and verifies them."""
    ADDING = "adding"
    """All are there; the model is added to the server."""


class PullCause(StrEnum):
    """Why a pull does not go on."""

    GATED = "gated"
    UNAUTHORIZED = "unauthorized"
    NOT_FOUND = "not_found"
    REVISION_NOT_FOUND = "revision_not_found"
    FILES_CHANGED = "files_changed"
    WRONG_HASH = "wrong_hash"
    INSUFFICIENT_STORAGE = "insufficient_storage"
    OFFLINE = "offline"
    NETWORK = "network"
    HUB = "hub"
    UNSUPPORTED = "unsupported"
    CANNOT_WRITE = "cannot_write"
    CANNOT_ADD = "cannot_add"
    INTERNAL = "internal"


class PullProblem(Wire, frozen=True, kw_only=True):
    """What happened, and what to do."""

    cause: PullCause
    message: str
    hint: str = ""


class PullFile(Wire, frozen=True, kw_only=True):
    """A file of the repository that is pulled."""

    path: str
    """In the repository, with slashes."""
    size_bytes: int
    digest: str
    """SHA-256 of what the hub keeps as a large file, else git's SHA-1 of a blob; in hexadecimal."""
    done_bytes: int = 0
    is_verified: bool = False


class Pull(Wire, frozen=True, kw_only=True):
    """A checkpoint that is pulled, and how far it is."""

    id: str
    repo: str
    """`org/name` on the hub."""
    revision: str | None = None
    """As it was asked for; None: the default branch."""
    model: str
    """Id that the model gets."""
    state: PullState
    phase: PullPhase | None = None
    commit: str | None = None
    """What the revision was when the pull began."""
    created_at: datetime
    ended_at: datetime | None = None
    total_bytes: int = 0
    """0 until the list of files is known."""
    done_bytes: int = 0
    """On the disk, verified or not."""
    files_total: int = 0
    files_done: int = 0
    """Verified ones."""
    current: list[PullFile] = []
    """Those that are fetched or verified now."""
    rate_bytes_per_s: float | None = None
    eta_s: float | None = None
    problem: PullProblem | None = None
    """Of a failed pull, or what the next try waits for."""
    retry_at: datetime | None = None
    path: str | None = None
    """Directory of the checkpoint, once the pull is completed."""


class PullCreate(Body, frozen=True, kw_only=True):
    """Pull a checkpoint and add it as a model."""

    repo: str
    revision: str | None = None
    """Branch, tag or commit; None: the default branch."""
    name: str | None = None
    """Id of the model; None: that of the repository."""


ENDED_SHOWN = 20
"""How many pulls that are over the snapshot holds."""


def without_old(pulls: Mapping[str, Pull]) -> dict[str, Pull]:
    """Those that may go on and the newest of those that are over; by time of creation, then id."""
    ordered = sorted(pulls.items(), key=lambda item: (item[1].created_at, item[0]))
    ended = [name for name, each in ordered if each.state.is_final]
    old = set(ended[:-ENDED_SHOWN])
    return {name: each for name, each in ordered if name not in old}
