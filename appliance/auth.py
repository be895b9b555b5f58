"""API keys: made, hashed, verified. A key is shown once and stored as its SHA-256.

A plain hash is enough: a key holds 256 random bits, so there is nothing to guess (a slow hash
protects passwords that people choose).
"""

import hashlib
import hmac
import secrets
from datetime import UTC, datetime
from enum import StrEnum

from appliance.errors import ForbiddenError, NotFoundError, UnauthorizedError
from appliance.store.database import Database
from appliance.store.keys import StoredKey, add_key, all_keys, revoke_key


class Scope(StrEnum):
    """What a key may do; each one includes those before it."""

    INFER = "infer"
    ADMIN = "admin"


_RANK = {Scope.INFER: 0, Scope.ADMIN: 1}


class Keys:
    """All keys, in memory for verification and in the store for good."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._by_digest: dict[str, StoredKey] = {}

    async def load(self) -> None:
        """Read the keys from the store."""
        stored = await self._database.read(all_keys)
        self._by_digest = {key.digest: key for key in stored if not key.revoked}

    @property
    def count(self) -> int:
        """Keys that are valid."""
        return len(self._by_digest)

    def list(self) -> list[StoredKey]:
        """The valid keys, oldest first."""
        return sorted(self._by_digest.values(), key=lambda key: key.created_at)

    async def create(self, name: str, scope: Scope) -> tuple[StoredKey, str]:
        """Make a key; the second value is the key itself, which is kept nowhere."""
        secret = f"sk-{secrets.token_urlsafe(32)}"
        key = StoredKey(
            id=f"key_{secrets.token_hex(6)}",
            name=name,
            prefix=secret[:7],
            digest=_digest(secret),
            scope=scope.value,
            created_at=datetime.now(UTC),
        )
        await self._database.write(lambda: add_key(key))
        self._by_digest[key.digest] = key
        return key, secret

    async def revoke(self, key_id: str) -> None:
        """Make a key worthless at once. Raises NotFoundError."""
        if not await self._database.write(lambda: revoke_key(key_id)):
            raise NotFoundError(
                f"There is no key {key_id!r}.", hint="`appliance keys ls` shows all keys."
            )
        self._by_digest = {
            digest: key for digest, key in self._by_digest.items() if key.id != key_id
        }

    def verify(self, secret: str | None, needed: Scope) -> StoredKey:
        """The key, if it exists and may do this. Raises UnauthorizedError or ForbiddenError."""
        if not secret:
            raise UnauthorizedError(
                "You didn't provide an API key.",
                hint="Send it as `Authorization: Bearer KEY`; `appliance keys create` makes one.",
            )
        digest = _digest(secret)
        key = self._by_digest.get(digest)
        if key is None or not hmac.compare_digest(key.digest, digest):
            raise UnauthorizedError(
                "Incorrect API key provided.", hint="`appliance keys create` makes a new one."
            )
        if _RANK[Scope(key.scope)] < _RANK[needed]:
            raise ForbiddenError(
                f"The key {key.name!r} has scope {key.scope}; this needs {needed.value}.",
                hint=f"`appliance keys create --scope {needed.value}` makes one that may.",
            )
        return key


def bearer(authorization: str | None) -> str | None:
    """The key in an `Authorization` header."""
    if authorization is None:
        return None
    kind, _, secret = authorization.partition(" ")
    return secret.strip() if kind.lower() == "bearer" else None


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
