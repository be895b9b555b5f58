"""SQLite: one writer thread, one reader thread, WAL.

SQLite allows one writer at a time. All writes go through one thread and start with
`BEGIN IMMEDIATE`, so that no write fails half-way for being locked out, and the event loop never
waits for the disk.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from peewee import OperationalError, SqliteDatabase

from appliance.store.migrations import migrate
from appliance.store.tables import TABLES

T = TypeVar("T")

_PRAGMAS = {
    "journal_mode": "wal",
    "synchronous": "full",
    "foreign_keys": 1,
    "busy_timeout": 5000,
}


class StoreError(OSError):
    """The disk would not take or give it, mostly because it is full; nothing has changed."""


class Database:
    """The store of one appliance; owner of its two threads."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._sqlite = SqliteDatabase(str(file), pragmas=_PRAGMAS, thread_safe=True)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="store-writer")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="store-reader")

    async def open(self) -> None:
        """Open the file and bring its schema up to date; raises ConfigError for a newer schema."""
        await asyncio.get_running_loop().run_in_executor(self._writer, self._open)

    async def close(self) -> None:
        """Finish what is queued, then close."""
        loop = asyncio.get_running_loop()
        for executor in (self._reader, self._writer):
            await loop.run_in_executor(executor, self._sqlite.close)
            await loop.run_in_executor(None, executor.shutdown)

    async def write(self, change: Callable[[], T]) -> T:
        """Run `change` in a transaction on the writer thread. Raises StoreError."""
        return await asyncio.get_running_loop().run_in_executor(
            self._writer, self._in_transaction, change
        )

    async def read(self, query: Callable[[], T]) -> T:
        """Run `query` on the reader thread. Raises StoreError."""
        return await asyncio.get_running_loop().run_in_executor(self._reader, self._query, query)

    def _open(self) -> None:
        self._sqlite.bind(TABLES)
        self._sqlite.connect(reuse_if_open=True)
        self._file.chmod(0o600)
        migrate(self._sqlite, self._file)

    def _in_transaction(self, change: Callable[[], T]) -> T:
        try:
            self._sqlite.connect(reuse_if_open=True)
            with self._sqlite.atomic("IMMEDIATE"):
                return change()
        except OperationalError as error:
            raise StoreError(f"the store cannot be written: {error}") from error

    def _query(self, query: Callable[[], T]) -> T:
        try:
            self._sqlite.connect(reuse_if_open=True)
            return query()
        except OperationalError as error:
            raise StoreError(f"the store cannot be read: {error}") from error
