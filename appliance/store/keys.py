"""Stored API keys. Functions for `Database.read` and `write`."""

from datetime import datetime

import msgspec

from appliance.store.tables import KeyRow


class StoredKey(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `keys`; `digest` is the SHA-256 of the key in hex."""

    id: str
    name: str
    prefix: str
    digest: str
    scope: str
    created_at: datetime
    revoked: bool = False


def all_keys() -> list[StoredKey]:
    """Every key, revoked ones too, oldest first."""
    return [
        StoredKey(
            id=row.id,
            name=row.name,
            prefix=row.prefix,
            digest=row.digest,
            scope=row.scope,
            created_at=datetime.fromisoformat(row.created_at),
            revoked=row.revoked,
        )
        for row in KeyRow.select().order_by(KeyRow.created_at)
    ]


def add_key(key: StoredKey) -> None:
    """Add a new key."""
    KeyRow.create(
        id=key.id,
        name=key.name,
        prefix=key.prefix,
        digest=key.digest,
        scope=key.scope,
        created_at=key.created_at.isoformat(),
        revoked=key.revoked,
    )


def revoke_key(key_id: str) -> bool:
    """Make a key worthless; False if there is none of that id."""
    return bool(KeyRow.update(revoked=True).where(KeyRow.id == key_id).execute())
