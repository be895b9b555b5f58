"""Numbered migrations, forward only; `PRAGMA user_version` holds the number reached.

A copy of the file is made before an existing database is changed, so that an older version can be
put back together with its data. A schema from the future is refused.
"""

import sqlite3
from pathlib import Path

from peewee import SqliteDatabase

from appliance.errors import ConfigError

MIGRATIONS: list[list[str]] = [
    [
        "CREATE TABLE models (id TEXT PRIMARY KEY, settings TEXT NOT NULL,"
        " created_at TEXT NOT NULL)",
        "CREATE TABLE engine_runs (id INTEGER PRIMARY KEY, model TEXT NOT NULL,"
        " fingerprint TEXT NOT NULL, load_s REAL NOT NULL, phases TEXT NOT NULL,"
        " memory_bytes INTEGER NOT NULL, at TEXT NOT NULL)",
        "CREATE INDEX engine_runs_model ON engine_runs (model)",
        "CREATE INDEX engine_runs_fingerprint ON engine_runs (fingerprint)",
        "CREATE TABLE keys (id TEXT PRIMARY KEY, name TEXT NOT NULL, prefix TEXT NOT NULL,"
        " digest TEXT NOT NULL UNIQUE, scope TEXT NOT NULL, created_at TEXT NOT NULL,"
        " revoked INTEGER NOT NULL DEFAULT 0)",
    ],
    [
        "CREATE TABLE sleep_verdicts (fingerprint TEXT NOT NULL, level INTEGER NOT NULL,"
        " model TEXT NOT NULL, verdict TEXT NOT NULL, PRIMARY KEY (fingerprint, level))",
        "CREATE INDEX sleep_verdicts_model ON sleep_verdicts (model)",
    ],
    [
        "CREATE TABLE files (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,"
        " created_at INTEGER NOT NULL, expires_at INTEGER, purpose TEXT NOT NULL,"
        " object TEXT NOT NULL)",
        "CREATE INDEX files_expires_at ON files (expires_at)",
        "CREATE TABLE batches (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,"
        " created_at INTEGER NOT NULL, is_final INTEGER NOT NULL, object TEXT NOT NULL)",
        "CREATE INDEX batches_is_final ON batches (is_final)",
    ],
    [
        f"ALTER TABLE engine_runs ADD COLUMN {column} NOT NULL DEFAULT {default}"
        for column, default in (
            ("configuration TEXT", "''"),
            ("rank_bytes INTEGER", "0"),
            ("kv_cache_bytes INTEGER", "0"),
            ("weights_bytes INTEGER", "0"),
            ("graphs_bytes INTEGER", "0"),
        )
    ],
    [
        "CREATE TABLE pulls (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,"
        " is_final INTEGER NOT NULL, object TEXT NOT NULL)",
        "CREATE INDEX pulls_is_final ON pulls (is_final)",
    ],
]
"""Index 0 leads to schema 1. Never change one that was released; add another."""


def migrate(database: SqliteDatabase, file: Path) -> None:
    """Apply what is missing, each migration in a transaction of its own. Raises ConfigError."""
    reached = int(database.pragma("user_version"))
    if reached > len(MIGRATIONS):
        raise ConfigError(
            f"{file} was written by a newer version (schema {reached}, this one knows"
            f" {len(MIGRATIONS)}).",
            hint="Upgrade the appliance, or put back the copy made before that upgrade.",
        )
    if 0 < reached < len(MIGRATIONS):
        _copy(file, reached)
    for number in range(reached, len(MIGRATIONS)):
        with database.atomic("IMMEDIATE"):
            for statement in MIGRATIONS[number]:
                database.execute_sql(statement)
            database.execute_sql(f"PRAGMA user_version = {number + 1}")


def _copy(file: Path, reached: int) -> None:
    target = file.with_name(f"{file.name}.schema-{reached}")
    source = sqlite3.connect(file)
    copy = sqlite3.connect(target)
    try:
        source.backup(copy)
    finally:
        copy.close()
        source.close()
    target.chmod(0o600)
