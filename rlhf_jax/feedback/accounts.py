"""Who may come in: accounts, invite links, sessions, revocation, and deletion on request.

A token is 256 random bits, shown once; only its SHA-256 is kept, so the store gives none away.
"""

import hashlib
import hmac
import json
import secrets
import time
from typing import Any, NamedTuple

from rlhf_jax.feedback.names import IMPORTED, NAME_LIMIT, check_name, check_new
from rlhf_jax.feedback.store import Database, Rows

SESSION_SECONDS = 30 * 86400.0
INVITE_SECONDS = 7 * 86400.0
ADMIN = "admin"


class Account(NamedTuple):
    """Somebody who may come in."""

    id: str
    name: str
    role: str

    @property
    def is_admin(self) -> bool:
        """Whether it may invite, revoke, export and delete."""
        return self.role == ADMIN


def new_token() -> str:
    """A secret that nobody can guess: 256 random bits."""
    return secrets.token_urlsafe(32)


def hashed(token: str) -> str:
    """What the store keeps of a token, from which nobody gets it back."""
    return hashlib.sha256(token.encode()).hexdigest()


def site_secret(database: Database) -> bytes:
    """The key of this store for CSRF tokens and pseudonyms, made at first use."""
    with database.write() as rows:
        rows(
            "INSERT INTO meta VALUES ('secret', :v) ON CONFLICT (name) DO NOTHING",
            v=secrets.token_hex(32),
        )
        return bytes.fromhex(rows("SELECT value FROM meta WHERE name = 'secret'")[0]["value"])


def pseudonym(secret: bytes, account: str) -> str:
    """What a labeler is called in exports: the same in all of them, and no way back."""
    return "labeler-" + hmac.new(secret, f"pseudonym {account}".encode(), "sha256").hexdigest()[:10]


def set_admin(database: Database, token: str) -> None:
    """The one administrator signs in with ``token`` from now on.

    With another token than before nobody stays signed in by the old one.
    """
    with database.write() as rows:
        rows(
            """DELETE FROM session WHERE account = :id
                AND (SELECT token_hash FROM account WHERE id = :id) <> :hash""",
            id=ADMIN,
            hash=hashed(token),
        )
        rows(
            """INSERT INTO account VALUES (:id, :id, :id, :hash, :now, NULL)
                ON CONFLICT (id) DO UPDATE SET token_hash = :hash""",
            id=ADMIN,
            hash=hashed(token),
            now=time.time(),
        )


def add_labeler(database: Database, name: str) -> tuple[Account, str]:
    """A new account and its token. Raises InputError for a name that is none, or taken."""
    name = check_name(name)
    with database.write() as rows:
        _check_new(rows, name)
        return _add(rows, name)


def add_program(database: Database, name: str) -> str:
    """The token of a labeler that is a program: a new one if it has an account already."""
    with database.write() as rows:
        accounts = rows("SELECT id FROM account WHERE name = :name", name=name)
        if not accounts:
            return _add(rows, name)[1]
        token = new_token()
        values = {"hash": hashed(token), "id": accounts[0]["id"]}
        rows("UPDATE account SET token_hash = :hash WHERE id = :id", **values)
        return token


def _check_new(rows: Rows, name: str) -> None:
    check_new(name, [row["name"] for row in rows("SELECT name FROM account")])


def named(rows: Rows, labeler: str) -> Account:
    """The account for labels of an imported file's labeler: nobody can sign in to it."""
    name = IMPORTED + labeler
    if len(name) > NAME_LIMIT:  # so that two whose names begin alike stay two
        # Cut names may be equal; the digest is of the whole one.
        digest = hashlib.sha256(labeler.encode()).hexdigest()[:12]
        name = f"{name[: NAME_LIMIT - 13]} {digest}"
    accounts = rows("SELECT id, name, role FROM account WHERE name = :name", name=name)
    if accounts:
        return Account(**accounts[0])
    account, _ = _add(rows, name)
    rows("UPDATE account SET revoked = :now WHERE id = :id", now=time.time(), id=account.id)
    return account


def _add(rows: Rows, name: str) -> tuple[Account, str]:
    account, token = Account(secrets.token_hex(8), name, "labeler"), new_token()
    rows(
        "INSERT INTO account VALUES (:id, :name, :role, :hash, :now, NULL)",
        **account._asdict(),
        hash=hashed(token),
        now=time.time(),
    )
    return account, token


def invite(database: Database, *, seconds: float = INVITE_SECONDS) -> str:
    """The token of a link with which one person makes an account, once."""
    token, now = new_token(), time.time()
    with database.write() as rows:
        rows(
            "INSERT INTO invite VALUES (:hash, :now, :expires, NULL, NULL)",
            hash=hashed(token),
            now=now,
            expires=now + seconds,
        )
    return token


OPEN = "token_hash = :hash AND account IS NULL AND revoked IS NULL AND expires > :now"


def is_open(database: Database, token: str) -> bool:
    """Whether an invite can still be used."""
    with database.read() as rows:
        invites = rows(f"SELECT 1 FROM invite WHERE {OPEN}", hash=hashed(token), now=time.time())
    return bool(invites)


def accept(database: Database, token: str, name: str) -> tuple[Account, str] | None:
    """The account that an invite makes, and its token; None if it is used, revoked or too old."""
    name = check_name(name)
    with database.write() as rows:
        if not rows(f"SELECT 1 FROM invite WHERE {OPEN}", hash=hashed(token), now=time.time()):
            return None
        _check_new(rows, name)
        account, own = _add(rows, name)
        rows(
            "UPDATE invite SET account = :account WHERE token_hash = :hash",
            account=account.id,
            hash=hashed(token),
        )
        return account, own


def revoke(database: Database, account: str) -> None:
    """Nothing lets this account in any more; what it labelled stays."""
    with database.write() as rows:
        rows(
            "UPDATE account SET revoked = :now WHERE id = :id AND role <> 'admin'",
            id=account,
            now=time.time(),
        )
        # Sessions and leases too: whoever is signed in would go on, and hold a task back from
        # others.
        rows("DELETE FROM session WHERE account = :id AND account <> 'admin'", id=account)
        rows("DELETE FROM lease WHERE account = :id", id=account)


def revoke_invites(database: Database) -> None:
    """No invite link that is still open works any more."""
    with database.write() as rows:
        rows("UPDATE invite SET revoked = :now WHERE account IS NULL", now=time.time())


def by_token(database: Database, token: str) -> Account | None:
    """The account that a token belongs to. Compared in constant time."""
    return _by_hash(database, "SELECT id, name, role, token_hash FROM account", "account", token)


def start_session(database: Database, account: Account, *, seconds: float = SESSION_SECONDS) -> str:
    """The token of a new session of an account; expired ones are deleted."""
    token, now = new_token(), time.time()
    with database.write() as rows:
        rows("DELETE FROM session WHERE expires < :now", now=now)
        rows(
            "INSERT INTO session VALUES (:hash, :account, :expires)",
            hash=hashed(token),
            account=account.id,
            expires=now + seconds,
        )
    return token


def by_session(database: Database, token: str) -> Account | None:
    """The account of a session that is open and not revoked, or None."""
    sql = """SELECT a.id, a.name, a.role, s.token_hash
        FROM session s JOIN account a ON a.id = s.account"""
    return _by_hash(database, sql, "s", token, extra="AND s.expires > :now")


def end_session(database: Database, token: str) -> None:
    """Delete a session; nothing where there is none."""
    with database.write() as rows:
        rows("DELETE FROM session WHERE token_hash = :hash", hash=hashed(token))


def _by_hash(
    database: Database, sql: str, table: str, token: str, extra: str = ""
) -> Account | None:
    digest = hashed(token)
    with database.read() as rows:
        # The index compares hashes, whose bytes nobody can choose; then once more, all of them.
        accounts = rows(
            f"{sql} WHERE {table}.token_hash = :hash AND revoked IS NULL {extra}",
            hash=digest,
            **({"now": time.time()} if extra else {}),
        )
    for row in accounts:
        if hmac.compare_digest(row.pop("token_hash"), digest):
            return Account(**row)
    return None


def list_accounts(database: Database) -> list[dict[str, Any]]:
    """Accounts with name, role, and when they were made and revoked, oldest first."""
    with database.read() as rows:
        return rows("SELECT id, name, role, created, revoked FROM account ORDER BY created")


def delete_account(database: Database, account: str) -> dict[str, int]:
    """Delete all that a labeler has entered; that it was deleted is recorded, by pseudonym.

    Models that learnt from it keep what they learnt; the next round is trained without it.
    """
    # The record of a deletion has the name that exports gave to whoever it was, and no other.
    alias = pseudonym(site_secret(database), account)
    # Tasks of a labeler's chats are theirs: what hangs on these goes too.
    own = "task IN (SELECT id FROM task WHERE owner = :id)"
    with database.write() as rows:
        rows(
            """UPDATE task SET labels = labels - 1 WHERE id IN
                (SELECT task FROM live_label WHERE account = :id AND kind = 'ranking')""",
            id=account,
        )
        retracted = "submission IN (SELECT submission FROM label WHERE account = :id OR {own})"
        rows(f"DELETE FROM retraction WHERE {retracted.format(own=own)}", id=account)
        deleted = {}
        for table, which in (
            ("turn", "account = :id"),
            ("label", f"account = :id OR {own}"),
            ("lease", f"account = :id OR {own}"),
            ("task", "owner = :id"),
            ("session", "account = :id"),
        ):
            count = rows(f"SELECT COUNT(*) AS n FROM {table} WHERE {which}", id=account)
            deleted[table] = count[0]["n"]
            rows(f"DELETE FROM {table} WHERE {which}", id=account)
        # The link stays used: deleting an account must not open it again.
        rows("UPDATE invite SET account = 'deleted' WHERE account = :id", id=account)
        rows("DELETE FROM account WHERE id = :id AND role <> 'admin'", id=account)
        rows(
            """INSERT INTO deletion VALUES (:alias, :now, :body)
                ON CONFLICT (pseudonym) DO UPDATE SET created = :now, body = :body""",
            alias=alias,
            now=time.time(),
            body=json.dumps(deleted),
        )
    return deleted
