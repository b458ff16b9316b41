"""The tables. Labels are only ever added: a trigger refuses to change one.

Texts that people or models wrote are inside ``body``, which is JSON in ASCII: any character goes
in and comes out, in both databases. Times are seconds since 1970.
"""

VERSION = "1"

TABLES = (
    "CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    # role: admin or labeler. The token itself is never stored.
    """CREATE TABLE IF NOT EXISTS account (
        id TEXT PRIMARY KEY, name TEXT NOT NULL, role TEXT NOT NULL, token_hash TEXT UNIQUE,
        created DOUBLE PRECISION NOT NULL, revoked DOUBLE PRECISION)""",
    """CREATE TABLE IF NOT EXISTS invite (
        token_hash TEXT PRIMARY KEY, created DOUBLE PRECISION NOT NULL,
        expires DOUBLE PRECISION NOT NULL, account TEXT, revoked DOUBLE PRECISION)""",
    """CREATE TABLE IF NOT EXISTS session (
        token_hash TEXT PRIMARY KEY, account TEXT NOT NULL REFERENCES account (id),
        expires DOUBLE PRECISION NOT NULL)""",
    # kind: rank (from the queue) or chat (owner's). labels counts the live rankings.
    """CREATE TABLE IF NOT EXISTS task (
        id TEXT PRIMARY KEY, number INTEGER UNIQUE NOT NULL, kind TEXT NOT NULL,
        owner TEXT REFERENCES account (id), round INTEGER NOT NULL,
        priority DOUBLE PRECISION NOT NULL, wanted INTEGER NOT NULL, labels INTEGER NOT NULL,
        created DOUBLE PRECISION NOT NULL, body TEXT NOT NULL)""",
    """CREATE INDEX IF NOT EXISTS open_task ON task (round DESC, priority DESC, number)
        WHERE labels < wanted AND kind = 'rank'""",
    """CREATE TABLE IF NOT EXISTS lease (
        task TEXT NOT NULL REFERENCES task (id), account TEXT NOT NULL REFERENCES account (id),
        expires DOUBLE PRECISION NOT NULL, PRIMARY KEY (task, account))""",
    # submission is the client's id: what is sent twice is one row. kind: ranking, skip, thumb,
    # demonstration.
    """CREATE TABLE IF NOT EXISTS label (
        submission TEXT PRIMARY KEY, number INTEGER UNIQUE NOT NULL,
        task TEXT NOT NULL REFERENCES task (id), account TEXT NOT NULL REFERENCES account (id),
        kind TEXT NOT NULL, created DOUBLE PRECISION NOT NULL, body TEXT NOT NULL)""",
    "CREATE INDEX IF NOT EXISTS label_of ON label (account, task)",
    "CREATE INDEX IF NOT EXISTS label_on ON label (task)",
    """CREATE TABLE IF NOT EXISTS retraction (
        submission TEXT PRIMARY KEY REFERENCES label (submission),
        created DOUBLE PRECISION NOT NULL)""",
    # What a person said in the chat (request) and what the policy answered. state: waiting, done,
    # failed.
    """CREATE TABLE IF NOT EXISTS turn (
        id TEXT PRIMARY KEY, number INTEGER UNIQUE NOT NULL, conversation TEXT NOT NULL,
        account TEXT NOT NULL REFERENCES account (id), state TEXT NOT NULL,
        created DOUBLE PRECISION NOT NULL, task TEXT REFERENCES task (id), body TEXT NOT NULL)""",
    "CREATE INDEX IF NOT EXISTS turn_of ON turn (account, conversation)",
    # What processes say of themselves, newest only; and the figures of each round.
    """CREATE TABLE IF NOT EXISTS status (
        name TEXT PRIMARY KEY, updated DOUBLE PRECISION NOT NULL, body TEXT NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS round (
        number INTEGER PRIMARY KEY, created DOUBLE PRECISION NOT NULL, body TEXT NOT NULL)""",
    # A round whose reward model was under the gate, by the labels that it had learnt from.
    """CREATE TABLE IF NOT EXISTS refusal (
        number INTEGER NOT NULL, labels INTEGER NOT NULL, created DOUBLE PRECISION NOT NULL,
        body TEXT NOT NULL, PRIMARY KEY (number, labels))""",
    # That a person's data was deleted, and how much: not what.
    """CREATE TABLE IF NOT EXISTS deletion (
        pseudonym TEXT PRIMARY KEY, created DOUBLE PRECISION NOT NULL, body TEXT NOT NULL)""",
)

LIVE = """SELECT * FROM label WHERE NOT EXISTS
    (SELECT 1 FROM retraction WHERE retraction.submission = label.submission)"""

SQLITE = (
    *TABLES,
    f"CREATE VIEW IF NOT EXISTS live_label AS {LIVE}",
    """CREATE TRIGGER IF NOT EXISTS append_only BEFORE UPDATE ON label
        BEGIN SELECT RAISE(ABORT, 'labels are append-only'); END""",
)

POSTGRESQL = (
    *TABLES,
    f"CREATE OR REPLACE VIEW live_label AS {LIVE}",
    """CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'labels are append-only'; END $$""",
    """CREATE OR REPLACE TRIGGER append_only BEFORE UPDATE ON label
        FOR EACH ROW EXECUTE FUNCTION refuse_change()""",
)
