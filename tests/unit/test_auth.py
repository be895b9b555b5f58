from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from appliance.auth import Keys, Scope, bearer
from appliance.errors import ForbiddenError, NotFoundError, UnauthorizedError
from appliance.store.database import Database


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(tmp_path / "appliance.db")
    await database.open()
    yield database
    await database.close()


async def test_created_key_is_accepted(database: Database) -> None:
    keys = Keys(database)
    key, secret = await keys.create("laptop", Scope.INFER)
    assert secret.startswith("sk-")
    assert secret.startswith(key.prefix)
    assert keys.verify(secret, Scope.INFER) == key
    assert keys.count == 1


def all_bytes_below(directory: Path) -> bytes:
    return b"".join(file.read_bytes() for file in directory.iterdir())


async def test_secret_is_kept_nowhere(database: Database, tmp_path: Path) -> None:
    key, secret = await Keys(database).create("laptop", Scope.INFER)
    assert len(secret) > 40
    assert len(key.prefix) < 10
    stored = all_bytes_below(tmp_path)
    assert key.digest.encode() in stored
    assert secret.encode() not in stored
    assert secret[10:].encode() not in stored


async def test_keys_differ(database: Database) -> None:
    keys = Keys(database)
    made = [await keys.create("same", Scope.INFER) for _ in range(5)]
    assert len({secret for _, secret in made}) == 5
    assert len({key.id for key, _ in made}) == 5
    assert [key.id for key in keys.list()] == [key.id for key, _ in made]


@pytest.mark.parametrize(
    ("held", "needed", "allowed"),
    [
        (Scope.INFER, Scope.INFER, True),
        (Scope.INFER, Scope.ADMIN, False),
        (Scope.ADMIN, Scope.INFER, True),
        (Scope.ADMIN, Scope.ADMIN, True),
    ],
)
async def test_scopes(database: Database, held: Scope, needed: Scope, allowed: bool) -> None:
    keys = Keys(database)
    key, secret = await keys.create("k", held)
    if allowed:
        assert keys.verify(secret, needed) == key
    else:
        with pytest.raises(ForbiddenError, match="has scope infer; this needs admin"):
            keys.verify(secret, needed)


@pytest.mark.parametrize("secret", [None, ""])
async def test_missing_key_is_said_to_be_missing(database: Database, secret: str | None) -> None:
    with pytest.raises(UnauthorizedError, match="didn't provide an API key"):
        Keys(database).verify(secret, Scope.INFER)


async def test_wrong_key_is_refused(database: Database) -> None:
    keys = Keys(database)
    key, secret = await keys.create("k", Scope.INFER)
    for wrong in (secret[:-1], f"{secret}x", secret.upper(), "sk-", key.digest, key.id):
        with pytest.raises(UnauthorizedError, match="Incorrect API key"):
            keys.verify(wrong, Scope.INFER)


async def test_revoked_key_is_worthless_at_once(database: Database) -> None:
    keys = Keys(database)
    key, secret = await keys.create("old", Scope.ADMIN)
    _, other = await keys.create("other", Scope.INFER)
    await keys.revoke(key.id)
    with pytest.raises(UnauthorizedError):
        keys.verify(secret, Scope.INFER)
    assert keys.verify(other, Scope.INFER).name == "other"
    assert [left.name for left in keys.list()] == ["other"]


async def test_revoking_a_key_that_is_not_there_is_an_error(database: Database) -> None:
    with pytest.raises(NotFoundError, match="key_none"):
        await Keys(database).revoke("key_none")


async def test_keys_survive_reopening_and_revoked_ones_stay_revoked(tmp_path: Path) -> None:
    file = tmp_path / "appliance.db"
    first = Database(file)
    await first.open()
    keys = Keys(first)
    kept, secret = await keys.create("kept", Scope.ADMIN)
    gone, gone_secret = await keys.create("gone", Scope.INFER)
    await keys.revoke(gone.id)
    await first.close()

    second = Database(file)
    await second.open()
    again = Keys(second)
    assert again.count == 0
    await again.load()
    assert again.list() == [kept]
    assert again.verify(secret, Scope.ADMIN) == kept
    with pytest.raises(UnauthorizedError):
        again.verify(gone_secret, Scope.INFER)
    await second.close()


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("", None),
        ("Bearer sk-1", "sk-1"),
        ("bearer  sk-1 ", "sk-1"),
        ("Basic dTpw", None),
        ("sk-1", None),
        ("Bearer", ""),
    ],
)
def test_key_is_taken_from_the_header(header: str | None, expected: str | None) -> None:
    assert bearer(header) == expected
