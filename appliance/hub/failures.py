"""What goes wrong on the way from a hub, in words for a person."""

import errno
from dataclasses import dataclass

import httpx2
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from appliance.errors import ApplianceError
from appliance.hub.messages import Order, Stopped
from appliance.hub.space import disk_short
from appliance.protocol.pulls import PullCause, PullProblem

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
_UNAUTHORIZED = 401
_FORBIDDEN = 403
_TOO_MANY = 429
_SERVER_ERRORS = 500


@dataclass(kw_only=True, eq=False)
class WrongHashError(Exception):
    """A file that was fetched whole is not what the hub's list says."""

    path: str
    expected: str
    found: str


@dataclass(kw_only=True, eq=False)
class DiskShortError(Exception):
    """Fetching on would take from the reserve, or there is nothing left."""

    need_bytes: int
    free_bytes: int
    reserve_bytes: int


def stopped(error: BaseException, order: Order, endpoint: str) -> Stopped:
    """The failure by its cause. `endpoint` is the hub's address."""
    match error:
        case WrongHashError(path=path, expected=expected, found=found):
            return _final(
                PullCause.WRONG_HASH,
                f"{path} is not the file that the hub lists: its hash is {found[:12]}…,"
                f" not {expected[:12]}…",
                "A proxy or mirror in between may alter it. What is wrong was deleted; resume"
                " the pull to fetch that file again, or set another HF_ENDPOINT.",
            )
        case DiskShortError():
            problem = disk_short(error.need_bytes, error.free_bytes, error.reserve_bytes)
            return Stopped(problem=problem, is_transient=False)
        case OfflineModeIsEnabled():
            return _final(
                PullCause.OFFLINE,
                "The server is in offline mode (HF_HUB_OFFLINE), so nothing can be pulled.",
                "Start the server without that variable; `appliance add` takes what is here.",
            )
        case HfHubHTTPError():
            return _refused(error, order, f"{endpoint}/{order.repo}")
        case httpx2.TransportError():
            return _network(error, endpoint)
        case ApplianceError():
            return _final(PullCause.UNSUPPORTED, error.message, error.hint)
        case OSError():
            return _disk(error, order, endpoint)
        case _:
            return _final(
                PullCause.INTERNAL,
                f"The pull ended with {type(error).__name__}: {error}",
                "Resume it; if that does not help, report this as a bug of the appliance.",
            )


def _refused(error: HfHubHTTPError, order: Order, page: str) -> Stopped:
    """What the hub answered; `page` shows the repository to people."""
    match error:
        case GatedRepoError():
            return _gated(order, page)
        case DisabledRepoError():
            return _final(
                PullCause.NOT_FOUND, f"{order.repo} was disabled by the hub.", f"See {page}."
            )
        case RevisionNotFoundError():
            return _revision_gone(order, page)
        case RepositoryNotFoundError():
            return _not_found(order, page)
        case RemoteEntryNotFoundError():
            return _final(
                PullCause.FILES_CHANGED,
                f"A file of {order.repo} is no longer on the hub.",
                "Resume the pull: it then takes the newest list of files.",
            )
        case _:
            return _http(error, order)


def _final(cause: PullCause, message: str, hint: str) -> Stopped:
    problem = PullProblem(cause=cause, message=message, hint=hint)
    return Stopped(problem=problem, is_transient=False)


def _gated(order: Order, page: str) -> Stopped:
    if order.token is None:
        return _final(
            PullCause.GATED,
            f"{order.repo} is gated, and the server has no token for the hub.",
            f"Ask for access at {page}, then give the server a token of that account:"
            f" {order.token_source}. Resume the pull.",
        )
    return _final(
        PullCause.GATED,
        f"{order.repo} is gated, and the account of the token from {order.token_source} has no"
        " access to it.",
        f"Ask for access at {page} with that account; once it is given, resume the pull.",
    )


def _revision_gone(order: Order, page: str) -> Stopped:
    if order.commit is not None:
        return _final(
            PullCause.REVISION_NOT_FOUND,
            f"The commit {order.commit[:12]} of {order.repo} is no longer on the hub.",
            "Its authors rewrote the history. Resume the pull: it then takes the newest commit.",
        )
    return _final(
        PullCause.REVISION_NOT_FOUND,
        f"{order.repo} has no revision {order.revision!r}.",
        f"Branches and tags are listed at {page}/tree/main.",
    )


def _not_found(order: Order, page: str) -> Stopped:
    # The hub answers 401 for repositories that are private, and for those that do not exist.
    if order.token is None:
        hint = f"Check its name at {page}. If it is private, give a token: {order.token_source}."
    else:
        hint = f"Check its name at {page}, and what the token from {order.token_source} may read."
    return _final(
        PullCause.NOT_FOUND, f"The hub has no {order.repo}, or does not show it to us.", hint
    )


def _http(error: HfHubHTTPError, order: Order) -> Stopped:
    status = error.response.status_code
    if status in {_UNAUTHORIZED, _FORBIDDEN}:
        return _final(
            PullCause.UNAUTHORIZED,
            f"The hub refuses the token from {order.token_source} ({status})."
            if order.token
            else f"The hub refuses to answer without a token ({status}).",
            "Put a valid token with the right to read there, and resume the pull."
            if order.token
            else f"Give one: {order.token_source}.",
        )
    problem = PullProblem(
        cause=PullCause.HUB,
        message=f"The hub answers {status}"
        + (": too many requests." if status == _TOO_MANY else "."),
        hint="https://status.huggingface.co says whether it is down.",
    )
    return Stopped(problem=problem, is_transient=status == _TOO_MANY or status >= _SERVER_ERRORS)


def _network(error: BaseException, endpoint: str) -> Stopped:
    problem = PullProblem(
        cause=PullCause.NETWORK,
        message=f"The hub at {endpoint} cannot be reached: {error or type(error).__name__}",
        hint="Check network, proxy and HF_ENDPOINT.",
    )
    return Stopped(problem=problem, is_transient=True)


def _disk(error: OSError, order: Order, endpoint: str) -> Stopped:
    if error.errno in _DISK_FULL:
        return _final(
            PullCause.INSUFFICIENT_STORAGE,
            f"The disk of {order.cache} is full.",
            "Make room, and resume the pull: what is there is kept.",
        )
    if error.errno is None:
        # As http_get says that a connection ended too early.
        return _network(error, endpoint)
    return _final(
        PullCause.CANNOT_WRITE,
        f"The cache {order.cache} cannot be written: {error}",
        "Check its owner and rights, or set `pulls.cache`.",
    )
