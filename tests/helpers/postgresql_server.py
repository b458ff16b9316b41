"""A PostgreSQL server for the tests, where it is installed, and empty databases on it."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest


@pytest.fixture(scope="module", name="server")
def shared_server():
    if postgresql_programs() is None:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    if os.getuid() == 0 and shutil.which("runuser") is None:
        pytest.skip("PostgreSQL does not run as root, and there is no runuser")
    pytest.importorskip("sqlalchemy")
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # a socket's path must be short
    with postgresql(folder) as url:
        yield url
    shutil.rmtree(folder)


def new_postgresql(server: str, name: str) -> str:
    """URL of an empty database on the server."""
    import sqlalchemy as sa

    engine = sa.create_engine(server.replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return server.replace("/postgres?", f"/{name}?")


def postgresql_programs() -> Path | None:
    """The folder with initdb and postgres, if they are installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).parent if on_path else None


@contextlib.contextmanager
def postgresql(folder: Path):
    """URL of a PostgreSQL server made for the tests, reached through a socket in ``folder``."""
    programs = postgresql_programs()
    # PostgreSQL refuses to run as root.
    prefix = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    if os.getuid() == 0:
        shutil.chown(folder, "postgres")
        for parent in (folder, *folder.parents):
            if parent.stat().st_uid == 0 and parent != Path("/") and parent != Path("/tmp"):
                parent.chmod(parent.stat().st_mode | 0o011)
    quiet = dict(check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    data = folder / "data"
    initdb = [programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8"]
    subprocess.run([*prefix, *initdb], cwd="/", **quiet)
    options = f"-c listen_addresses='' -c unix_socket_directories='{folder}' -c fsync=off"
    control = [*prefix, programs / "pg_ctl", "-D", data, "-w"]
    log = ["-l", folder / "log"]
    subprocess.run([*control, "-o", options, *log, "start"], cwd="/", **quiet)
    try:
        yield f"postgresql://postgres@/postgres?host={folder}"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], cwd="/", **quiet)
