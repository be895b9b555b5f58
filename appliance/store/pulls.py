"""Stored pulls. Functions for `Database.read` and `write`."""

import msgspec

from appliance.protocol.pulls import ENDED_SHOWN, Pull, PullFile
from appliance.store.tables import PullRow


class StoredPull(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `pulls`: what people see, and the files with what was verified of them."""

    pull: Pull
    files: list[PullFile] = []
    """Empty until the repository was listed."""


def put_pull(stored: StoredPull) -> None:
    """Add or replace; the oldest of those that are over are forgotten."""
    values = {
        "is_final": stored.pull.state.is_final,
        "object": msgspec.json.encode(stored).decode(),
    }
    changed = PullRow.update(**values).where(PullRow.id == stored.pull.id).execute()
    if not changed:
        PullRow.create(id=stored.pull.id, **values)
    if stored.pull.state.is_final:
        newest = PullRow.select(PullRow.number).where(PullRow.is_final)
        newest = newest.order_by(PullRow.number.desc()).limit(ENDED_SHOWN)
        PullRow.delete().where(PullRow.is_final, PullRow.number.not_in(newest)).execute()


def all_pulls() -> list[StoredPull]:
    """Every known pull, oldest first."""
    query = PullRow.select().order_by(PullRow.number)
    return [msgspec.json.decode(row.object, type=StoredPull) for row in query]
