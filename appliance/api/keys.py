"""API keys."""

from litestar import Controller, delete, get, post

from appliance.api.guards import admin_guard
from appliance.auth import Keys, Scope
from appliance.protocol.keys import Key, KeyCreate, NewKey
from appliance.store.keys import StoredKey


class KeyController(Controller):
    """`/admin/v1/keys`."""

    path = "/admin/v1/keys"
    guards = [admin_guard]
    tags = ["keys"]

    @get("/", operation_id="listKeys")
    async def all(self, keys: Keys) -> list[Key]:
        """All valid keys, without the keys themselves."""
        return [_view(key) for key in keys.list()]

    @post("/", operation_id="createKey")
    async def create(self, data: KeyCreate, keys: Keys) -> NewKey:
        """Make a key; it is shown in this answer and never again."""
        stored, secret = await keys.create(data.name, Scope(data.scope))
        return NewKey(key=_view(stored), secret=secret)

    @delete("/{key_id:str}", operation_id="revokeKey")
    async def revoke(self, key_id: str, keys: Keys) -> None:
        """Make a key worthless at once."""
        await keys.revoke(key_id)


def _view(key: StoredKey) -> Key:
    return Key(
        id=key.id, name=key.name, prefix=key.prefix, scope=key.scope, created_at=key.created_at
    )
