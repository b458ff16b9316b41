"""Where labels live: one SQLite file, or PostgreSQL by URL. Two kinds of transaction, no more.

    database = open_database("runs/x/feedback/store.sqlite")
    with database.write() as rows: ...     # alone among writers, durable when the block ends
    with database.read() as rows: ...      # one consistent snapshot, never blocked by a writer

All SQL of this room is written once, with ``:name`` parameters, for both.
"""

import contextlib
import errno
import os
import sqlite3
from collections.abc import Generator
from pathlib import Path
from typing import Any

from rlhf_jax.errors import InputError
from rlhf_jax.feedback.schema import POSTGRESQL, SQLITE, VERSION
from rlhf_jax.feedback.store import Database, Rows, StoreUnavailable, check_storable

BUSY_SECONDS = 10.0
"""How long a writer waits for another one."""
REASONS = {
    sqlite3.SQLITE_BUSY: "busy",
    sqlite3.SQLITE_LOCKED: "busy",
    sqlite3.SQLITE_FULL: "full",
    sqlite3.SQLITE_IOERR: "full",
    sqlite3.SQLITE_CANTOPEN: "unreachable",
    sqlite3.SQLITE_READONLY: "unreachable",
    sqlite3.SQLITE_NOTADB: "unreachable",
    sqlite3.SQLITE_CORRUPT: "unreachable",
}
"""SQLite's primary result codes in the words of ``StoreUnavailable``."""


def open_database(
    place: str | Path, *, busy_seconds: float = BUSY_SECONDS, create: bool = True
) -> Database:
    """A database made ready: a path is an SQLite file, ``postgresql://...`` a server's.

    Without ``create`` nothing is made: who only reads finds a store there, or gets an InputError.
    Raises InputError for another URL, or a store of another version.
    """
    text = str(place)
    if "://" not in text:
        database: Database = SQLite(Path(text), busy_seconds, create=create)
    elif text.startswith("postgresql://"):
        from rlhf_jax.feedback.postgresql import PostgreSQL  # its extra may be missing

        database = PostgreSQL(text, busy_seconds)
    else:
        raise InputError(f"store {text.split(':')[0]}://...: expected a path or postgresql://...")
    if not create and not database.holds_store():
        raise InputError(f"{database.name} is no label store, expected one that has labels")
    statements = SQLITE if isinstance(database, SQLite) else POSTGRESQL
    # In one transaction: of two processes that start at once, one makes the tables.
    with database.write() as rows:
        for statement in statements:
            rows(statement)
        rows("INSERT INTO meta VALUES ('schema', :v) ON CONFLICT (name) DO NOTHING", v=VERSION)
        schema = rows("SELECT value FROM meta WHERE name = 'schema'")[0]["value"]
    if schema != VERSION:
        raise InputError(f"{database.name} has schema {schema}, expected {VERSION}")
    return database


def _execute(connection: sqlite3.Connection, sql: str, values: dict) -> list[dict[str, Any]]:
    check_storable(values)
    return list(map(dict, connection.execute(sql, values)))


class SQLite:
    """WAL with ``synchronous=FULL``: what was committed survives kill -9 and a power cut.

    The file must lie on a local disk: WAL needs shared memory. A connection per transaction.
    """

    def __init__(self, path: Path, busy_seconds: float, *, create: bool):
        self.path, self.name, self._busy = path, str(path), busy_seconds
        if create:
            self._make_file()
            with contextlib.closing(self._connect()) as connection, self._translated():
                connection.execute("PRAGMA journal_mode = WAL")  # the file keeps it
        elif not path.is_file():
            raise InputError(f"{path}: no such label store")

    def _make_file(self) -> None:
        """For its owner's eyes only; SQLite gives the files beside it the same mode."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # The mode at its making: between open and chmod others could have opened it.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            reason = "full" if error.errno == errno.ENOSPC else "unreachable"
            raise StoreUnavailable(reason, f"{self.path}: {error.strerror}") from None

    def holds_store(self) -> bool:
        """Whether the tables have been made."""
        with self.read() as rows:
            return bool(rows("SELECT 1 FROM sqlite_master WHERE name = 'meta'"))

    def _connect(self) -> sqlite3.Connection:
        with self._translated():
            # No isolation level: Python would begin transactions of its own, and late.
            connection = sqlite3.connect(self.path, timeout=self._busy, isolation_level=None)
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            # What is deleted on request is overwritten in the file.
            connection.execute("PRAGMA secure_delete = ON")
        connection.row_factory = sqlite3.Row
        return connection

    def write(self) -> contextlib.AbstractContextManager[Rows]:
        """Takes SQLite's one lock at its beginning, or waits for it."""
        return self._transaction("BEGIN IMMEDIATE")

    def read(self) -> contextlib.AbstractContextManager[Rows]:
        """Sees the file as it was when it first read, and waits for nobody."""
        return self._transaction("BEGIN")

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Generator[Rows]:
        with contextlib.closing(self._connect()) as connection, self._translated():
            connection.execute(begin)
            try:
                yield lambda sql, **values: _execute(connection, sql, values)
            except BaseException:
                # Of KeyboardInterrupt and SystemExit too: nothing half done may be committed.
                connection.rollback()
                raise
            connection.commit()

    @contextlib.contextmanager
    def _translated(self) -> Generator[None]:
        """SQLite's errors that are no bug as ``StoreUnavailable``."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorcode", None)
            code = code & 0xFF if code is not None else None  # without the extended part
            if code not in REASONS:
                raise
            raise StoreUnavailable(REASONS[code], f"{self.path}: {error}") from error
