import sqlite3
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.errors import ConfigError
from appliance.protocol.models import ModelSettings, Task
from appliance.store.database import Database
from appliance.store.migrations import MIGRATIONS
from appliance.store.models import (
    LoadRecord,
    StoredModel,
    add_load,
    all_loads,
    all_models,
    delete_model,
    put_model,
)

START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(tmp_path / "appliance.db")
    await database.open()
    yield database
    await database.close()


def stored(name: str, minutes: int = 0, **settings: object) -> StoredModel:
    return StoredModel(
        id=name,
        settings=ModelSettings(path="/models/x", task=Task.GENERATE, **settings),  # type: ignore[arg-type]
        created_at=START + timedelta(minutes=minutes),
    )


def load(number: int, fingerprint: str = "f", model: str = "m") -> LoadRecord:
    return LoadRecord(
        model=model,
        fingerprint=fingerprint,
        load_s=float(number),
        phases={"weights": number / 2, "importing": number / 2},
        memory_bytes=number,
        at=START + timedelta(seconds=number),
    )


def execute(file: Path, statement: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(file)
    try:
        with connection:
            return connection.execute(statement).fetchall()
    finally:
        connection.close()


def copies_in(directory: Path) -> list[str]:
    return [file.name for file in directory.glob("*.schema-*")]


async def test_empty_file_gets_the_newest_schema(database: Database, tmp_path: Path) -> None:
    file = tmp_path / "appliance.db"
    assert execute(file, "PRAGMA user_version") == [(len(MIGRATIONS),)]
    tables = {
        name for (name,) in execute(file, "SELECT name FROM sqlite_master WHERE type='table'")
    }
    assert tables >= {"models", "engine_runs", "keys"}
    assert await database.read(all_models) == []


async def test_store_is_for_its_owner_alone(database: Database, tmp_path: Path) -> None:
    assert (tmp_path / "appliance.db").stat().st_mode & 0o777 == 0o600


async def test_opening_again_keeps_what_is_there(tmp_path: Path) -> None:
    file = tmp_path / "appliance.db"
    for expected in ([], ["a"]):
        database = Database(file)
        await database.open()
        assert [model.id for model in await database.read(all_models)] == expected
        await database.write(lambda: put_model(stored("a")))
        await database.close()
    assert copies_in(tmp_path) == []


async def test_schema_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "appliance.db"
    newer = len(MIGRATIONS) + 1
    execute(file, f"PRAGMA user_version = {newer}")
    database = Database(file)
    with pytest.raises(ConfigError, match=f"schema {newer}") as caught:
        await database.open()
    assert str(file) in caught.value.message
    assert "Upgrade" in caught.value.hint
    await database.close()
    assert execute(file, "PRAGMA user_version") == [(newer,)]
    assert execute(file, "SELECT name FROM sqlite_master") == []


async def test_file_is_copied_before_its_schema_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "appliance.db"
    first = Database(file)
    await first.open()
    await first.write(lambda: put_model(stored("a")))
    await first.close()

    reached = len(MIGRATIONS)
    monkeypatch.setattr(
        "appliance.store.migrations.MIGRATIONS", [*MIGRATIONS, ["CREATE TABLE later (id TEXT)"]]
    )
    second = Database(file)
    await second.open()
    assert [model.id for model in await second.read(all_models)] == ["a"]
    await second.close()
    assert execute(file, "PRAGMA user_version") == [(reached + 1,)]
    copy = tmp_path / f"appliance.db.schema-{reached}"
    assert execute(copy, "SELECT id FROM models") == [("a",)]
    assert execute(copy, "PRAGMA user_version") == [(reached,)]
    assert copy.stat().st_mode & 0o077 == 0


async def test_migration_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "appliance.db"
    steps = ["CREATE TABLE half (id TEXT)", "CREATE TABLE models (id TEXT)"]
    monkeypatch.setattr("appliance.store.migrations.MIGRATIONS", [*MIGRATIONS, steps])
    database = Database(file)
    with pytest.raises(Exception, match="already exists"):
        await database.open()
    await database.close()
    assert execute(file, "PRAGMA user_version") == [(len(MIGRATIONS),)]
    assert execute(file, "SELECT name FROM sqlite_master WHERE name = 'half'") == []


async def test_model_is_stored_with_all_its_settings(database: Database) -> None:
    model = stored(
        "org/model",
        context_length=4096,
        dtype="bfloat16",
        pinned=True,
        idle_timeout_s=-1.0,
        tp_size=2,
        devices=["0", "GPU-1"],
        extra_args=["--seed", "1"],
        env={"A": "b"},
    )
    await database.write(lambda: put_model(model))
    assert await database.read(all_models) == [model]


async def test_model_that_is_put_again_is_replaced(database: Database) -> None:
    await database.write(lambda: put_model(stored("a")))
    await database.write(lambda: put_model(stored("a", context_length=64)))
    assert await database.read(all_models) == [stored("a", context_length=64)]


async def test_models_are_listed_oldest_first(database: Database) -> None:
    for name, minutes in (("young", 9), ("old", 1), ("middle", 5)):
        await database.write(lambda name=name, minutes=minutes: put_model(stored(name, minutes)))
    assert [model.id for model in await database.read(all_models)] == ["old", "middle", "young"]


async def test_deleted_model_takes_its_loads_along(database: Database) -> None:
    for name in ("a", "b"):
        await database.write(lambda name=name: put_model(stored(name)))
        await database.write(lambda name=name: add_load(load(1, name, name)))
    await database.write(lambda: delete_model("a"))
    assert [model.id for model in await database.read(all_models)] == ["b"]
    assert await database.read(all_loads) == [load(1, "b", "b")]


async def test_newest_loads_of_each_configuration_are_read_oldest_first(database: Database) -> None:
    def add() -> None:
        for number in range(1, 6):
            add_load(load(number, "often"))
        add_load(load(9, "once"))

    await database.write(add)
    loads = await database.read(lambda: all_loads(3))
    by_fingerprint = {
        name: [each for each in loads if each.fingerprint == name] for name in ("often", "once")
    }
    assert by_fingerprint["often"] == [load(number, "often") for number in (3, 4, 5)]
    assert by_fingerprint["once"] == [load(9, "once")]


async def test_only_the_newest_hundred_loads_of_a_configuration_are_kept(
    database: Database,
) -> None:
    def add() -> None:
        add_load(load(1, "other"))
        for number in range(105):
            add_load(load(number, "many"))

    await database.write(add)
    loads = await database.read(lambda: all_loads(1000))
    many = [each for each in loads if each.fingerprint == "many"]
    assert [each.load_s for each in many] == [float(number) for number in range(5, 105)]
    assert load(1, "other") in loads


async def test_change_that_fails_half_way_leaves_nothing(database: Database) -> None:
    def change() -> None:
        put_model(stored("a"))
        raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        await database.write(change)
    assert await database.read(all_models) == []


async def test_all_writes_happen_on_one_thread_that_is_not_the_loops(database: Database) -> None:
    names = {await database.write(lambda: threading.current_thread().name) for _ in range(3)}
    assert len(names) == 1
    assert names != {threading.current_thread().name}
