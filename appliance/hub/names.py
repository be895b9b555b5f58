"""Names of repositories and revisions, as far as they become paths here. Pure."""

import re

from appliance.errors import InvalidRequestError

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_REPO = re.compile(rf"{_PART}/{_PART}")
# What git allows in the name of a reference, and less.
_REVISION = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/+-]{0,126}[A-Za-z0-9._+-])?")
_ADDRESS = re.compile(r"(?:https?://)?(?:huggingface\.co|hf\.co)/|hf://")


def parse_source(text: str) -> tuple[str, str | None]:
    """Repository and revision of `ORG/NAME[@REVISION]`, or of the address of its page."""
    text = _ADDRESS.sub("", text.strip(), count=1)
    repo, _, revision = text.partition("@")
    page, found, tree = repo.partition("/tree/")
    if found and not revision:
        repo, revision = page, tree
    return repo.strip("/"), revision.strip("/") or None


def check_repo(repo: str) -> None:
    """Raises InvalidRequestError."""
    if not _REPO.fullmatch(repo) or "--" in repo or ".." in repo:
        raise InvalidRequestError(
            f"{repo!r} is no name of a repository.",
            hint="Write it as ORG/NAME, as in the address of its page.",
            param="repo",
        )


def check_revision(revision: str | None) -> None:
    """Raises InvalidRequestError."""
    if revision is None:
        return
    if not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision:
        raise InvalidRequestError(
            f"{revision!r} is no revision.",
            hint="Use a branch, a tag or a commit.",
            param="revision",
        )
