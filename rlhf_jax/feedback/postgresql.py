"""The store on PostgreSQL, for a team larger than one machine (SQLAlchemy Core, extra ``team``)."""

import contextlib
from collections.abc import Generator

from rlhf_jax.errors import InputError
from rlhf_jax.feedback.store import Rows, StoreUnavailable, check_storable

try:
    import sqlalchemy as sa
    from sqlalchemy.exc import OperationalError
except ImportError as error:
    raise InputError("store postgresql://...: needs pip install 'rlhf_jax[team]'") from error

ONE_WRITER = 7406
"""Key of PostgreSQL's advisory lock: writers come one after the other, as in SQLite."""
DISK_FULL = "53100"
LOCK_NOT_AVAILABLE = "55P03"


class PostgreSQL:
    """Writers take an advisory lock, so they come one after the other; readers see a snapshot."""

    def __init__(self, url: str, busy_seconds: float):
        # Pinged first: a connection may have died since it was last used.
        self._engine = sa.create_engine(
            url.replace("postgresql://", "postgresql+psycopg://", 1), pool_pre_ping=True
        )
        # It stands in messages and logs.
        self.name = self._engine.url.render_as_string(hide_password=True)
        self._busy = f"SET LOCAL lock_timeout = '{int(1000 * busy_seconds)}ms'"

    @contextlib.contextmanager
    def write(self) -> Generator[Rows]:
        """One writer at a time: the others wait for its lock."""
        # Read committed: each statement sees what the writer before has committed.
        with self._transaction("READ COMMITTED") as rows:
            rows(self._busy)
            rows(f"SELECT pg_advisory_xact_lock({ONE_WRITER})")
            yield rows

    def read(self) -> contextlib.AbstractContextManager[Rows]:
        """Sees the store as it was at its first statement, and waits for nobody."""
        return self._transaction("REPEATABLE READ")

    def holds_store(self) -> bool:
        """Whether the tables have been made."""
        with self.read() as rows:
            return rows("SELECT to_regclass('meta') AS found")[0]["found"] is not None

    @contextlib.contextmanager
    def _transaction(self, level: str) -> Generator[Rows]:
        try:
            with self._engine.begin() as connection:
                connection.execute(sa.text(f"SET TRANSACTION ISOLATION LEVEL {level}"))

                def rows(sql, **values):
                    check_storable(values)
                    result = connection.execute(sa.text(sql), values)
                    return [dict(row) for row in result.mappings()] if result.returns_rows else []

                yield rows
        except OperationalError as error:
            state = getattr(error.orig, "sqlstate", "")
            reasons = {DISK_FULL: "full", LOCK_NOT_AVAILABLE: "busy"}
            reason = reasons.get(state, "unreachable")
            raise StoreUnavailable(reason, str(error.orig).strip()) from error
