"""The label store on both databases: leases, labels that are only added, undo, accounts."""

import os
import sqlite3
import threading
import time

import pytest
from feedback_site import fill, integrity, labeler
from postgresql_server import new_postgresql, shared_server  # noqa: F401

from rlhf_jax.errors import InputError
from rlhf_jax.feedback import accounts, conversation, figures, queue, submissions
from rlhf_jax.feedback.database import open_database
from rlhf_jax.feedback.labels import rankings, read_labels, written
from rlhf_jax.feedback.store import StoreUnavailable


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request, tmp_path):
    if request.param == "sqlite":
        yield open_database(tmp_path / "store.sqlite")
        return
    name = f"t{abs(hash(request.node.name))}"
    yield open_database(new_postgresql(request.getfixturevalue("server"), name))


def rank(database, account, task, ranks, *, submission, **more):
    body = {"ranks": ranks} | more
    return submissions.submit(
        database, account, submission=submission, task=task.id, kind="ranking", body=body
    )


def test_a_label_is_stored_by_the_tasks_own_order(database):
    fill(database, 1)
    ann = labeler(database)
    task = queue.lease_task(database, ann)
    order = task.order(ann)
    shown = [task.responses[n] for n in order]
    rank(
        database,
        ann,
        task,
        [3, 0, 3, 1],
        submission="s" * 8,
        quality=[1, 7, None, 4],
        flags=[{"sexual": True}, {}, {}, {"opinion": False}],
        demonstration="mine",
    )
    (stored,) = read_labels(database)
    by_text = {task.responses[n].text: rank for n, rank in enumerate(stored.body["ranks"])}
    assert [by_text[each.text] for each in shown] == [2, 0, 2, 1]  # dense, ties kept
    assert stored.body["quality"][order[1]] == 7 and stored.body["quality"][order[2]] is None
    assert stored.body["flags"][order[0]] == {"sexual": True}
    (ranking,) = rankings([stored])
    assert ranking.responses[0].tokens == (0, 0, 1)
    assert written([stored])[0].completion == " mine"


def test_each_labeler_sees_an_order_of_their_own(database):
    fill(database, 40)
    ann, ben = labeler(database), labeler(database, "Ben")
    with database.read() as rows:
        tasks = [queue.parse_task(row) for row in rows("SELECT * FROM task")]
    orders = [(task.order(ann), task.order(ben)) for task in tasks]
    assert all(sorted(a) == [0, 1, 2, 3] for a, _ in orders)
    assert [task.order(ann) for task in tasks] == [a for a, _ in orders]
    assert sum(a != b for a, b in orders) > 20
    first = [a[0] for a, _ in orders]
    assert all(2 <= first.count(n) <= 25 for n in range(4))


def test_what_is_sent_twice_is_one_label(database):
    fill(database, 1)
    ann, ben = labeler(database), labeler(database, "Ben")
    task = queue.lease_task(database, ann)
    assert rank(database, ann, task, [0, 1, 2, 3], submission="once1234")
    assert not rank(database, ann, task, [0, 1, 2, 3], submission="once1234")
    assert len(read_labels(database)) == 1
    with pytest.raises(submissions.AlreadyLabelled):
        rank(database, ann, task, [3, 2, 1, 0], submission="second12")
    with pytest.raises(InputError, match="belongs to another label"):
        rank(database, ben, task, [0, 1, 2, 3], submission="once1234")
    assert read_labels(database)[0].body["ranks"] is not None and len(read_labels(database)) == 1


def test_labels_cannot_be_changed(database):
    fill(database, 1)
    ann = labeler(database)
    rank(database, ann, queue.lease_task(database, ann), [0, 1, 2, 3], submission="x" * 8)
    with pytest.raises(Exception, match="append-only"), database.write() as rows:
        rows("UPDATE label SET body = '{}'")
    assert read_labels(database)[0].body["ranks"]


def test_a_lease_keeps_a_task_from_others_until_it_ends(database):
    fill(database, 1)
    ann, ben = labeler(database), labeler(database, "Ben")
    task = queue.lease_task(database, ann)
    assert queue.lease_task(database, ben) is None
    assert queue.lease_task(database, ann) == task  # the same, in another tab
    with database.write() as rows:
        rows("UPDATE lease SET expires = 0")
    assert queue.lease_task(database, ben) == task
    # Ann's work is not lost, though her lease has ended.
    assert rank(database, ann, task, [0, 0, 0, 1], submission="late1234")


def test_overlap(database):
    fill(database, 2, wanted=2)
    three = [labeler(database, name) for name in ("Ann", "Ben", "Cy")]
    taken = [queue.lease_task(database, each) for each in three]
    assert taken[0] == taken[1] != taken[2]
    for n, (each, task) in enumerate(zip(three, taken, strict=True)):
        rank(database, each, task, [0, 1, 2, 3], submission=f"first{n:03}")
    assert queue.lease_task(database, three[2]) is None  # the first task has its two
    assert queue.lease_task(database, three[0]) == taken[2]
    assert queue.count_open(database) == 1


def test_only_tasks_in_hand_can_be_labelled(database):
    fill(database, 2)
    ann, ben = labeler(database), labeler(database, "Ben")
    task = queue.lease_task(database, ann)
    with pytest.raises(InputError, match="not in this labeler's hands"):
        rank(database, ben, task, [0, 1, 2, 3], submission="y" * 8)
    assert queue.task_in_hand(database, task.id, ben) is None


@pytest.mark.parametrize(
    "body,message",
    [
        ({"ranks": [0, 1, 2]}, "ranks"),
        ({"ranks": [0, 1, 2, -1]}, "ranks"),
        ({"ranks": [0, 1, 2, True]}, "ranks"),
        ({"ranks": [0, 1, 2, 99]}, "ranks"),
        ({"ranks": "0123"}, "ranks"),
        ({"ranks": [0, 1, 2, 3], "quality": [1, 2, 3, 8]}, "quality"),
        ({"ranks": [0, 1, 2, 3], "flags": [{}, {}, {}, {"nonsense": True}]}, "nonsense"),
        ({"ranks": [0, 1, 2, 3], "flags": [{}, {}, {}, {"sexual": 1}]}, "true or false"),
        ({"ranks": [0, 1, 2, 3], "prompt_flags": {"x": True}}, "prompt_flags"),
        ({"ranks": [0, 1, 2, 3], "use_case": "x"}, "use_case"),
        ({"ranks": [0, 1, 2, 3], "demonstration": "x" * 20_001}, "20001 characters"),
        ({"ranks": [0, 1, 2, 3], "notes": [1, 2, 3, 4]}, "notes"),
    ],
)
def test_what_is_no_label_is_refused(tmp_path, body, message):
    database = open_database(tmp_path / "store.sqlite")
    fill(database, 1)
    ann = labeler(database)
    task = queue.lease_task(database, ann)
    with pytest.raises(InputError, match=message):
        submissions.submit(
            database, ann, submission="z" * 8, task=task.id, kind="ranking", body=body
        )
    assert read_labels(database) == [] and queue.count_open(database) == 1


def test_skip_and_undo(database):
    fill(database, 2)
    ann = labeler(database)
    assert submissions.undo(database, ann) is None
    first = queue.lease_task(database, ann)
    skip = {"reason": "unclear", "note": "?"}
    submissions.submit(database, ann, submission="skip1234", task=first.id, kind="skip", body=skip)
    second = queue.lease_task(database, ann)
    assert second != first
    given = {"quality": [4, None, 1, 7], "notes": ["a", "", "", "d"]}
    rank(database, ann, second, [1, 0, 3, 2], submission="rank1234", **given)
    assert queue.lease_task(database, ann) is None and queue.count_open(database) == 1

    task, kind, entered = submissions.undo(database, ann)
    assert (task, kind) == (second, "ranking")
    assert entered["ranks"] == [1, 0, 3, 2] and entered["quality"] == given["quality"]
    assert queue.lease_task(database, ann) == second and queue.count_open(database) == 2
    task, kind, entered = submissions.undo(database, ann)
    assert (task, kind, entered) == (first, "skip", skip)
    assert read_labels(database) == []
    with database.read() as rows:  # taken back, not gone
        assert rows("SELECT COUNT(*) AS n FROM label")[0]["n"] == 2
    rank(database, ann, second, [0, 0, 0, 1], submission="again123")
    assert len(read_labels(database)) == 1


def test_readers_see_one_moment(database):
    """What a long read sees does not change under it, and no writer waits for it."""
    fill(database, 4)
    ann = labeler(database)
    with database.read() as rows:
        before = rows("SELECT COUNT(*) AS n FROM label")[0]["n"]
        rank(database, ann, queue.lease_task(database, ann), [0, 1, 2, 3], submission="w" * 8)
        assert rows("SELECT COUNT(*) AS n FROM live_label")[0]["n"] == before == 0
    assert len(read_labels(database)) == 1


def test_many_at_once_get_different_tasks(database):
    fill(database, 60)
    accounts_ = [labeler(database, f"L{n}") for n in range(8)]
    failed = []

    def work(who, account):
        try:
            for n in range(100):
                task = queue.lease_task(database, account)
                if task is None:
                    return
                rank(database, account, task, [0, 1, 2, 3], submission=f"by{who:02}no{n:04}")
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=each) for each in enumerate(accounts_)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    labels = read_labels(database)
    assert not failed and len(labels) == 60 == len({label.task.id for label in labels})
    assert sorted(label.number for label in labels) == list(range(1, 61))


def test_invites_work_once_and_revoked_accounts_not_at_all(database):
    token = accounts.invite(database)
    assert accounts.is_open(database, token) and not accounts.is_open(database, token + "x")
    ann, own = accounts.accept(database, token, " Ann ")
    assert ann.name == "Ann" and not ann.is_admin
    assert accounts.accept(database, token, "Eve") is None
    assert accounts.accept(database, accounts.invite(database, seconds=-1.0), "Eve") is None
    revoked = accounts.invite(database)
    accounts.revoke_invites(database)
    assert accounts.accept(database, revoked, "Eve") is None

    session = accounts.start_session(database, ann)
    assert accounts.by_token(database, own) == ann == accounts.by_session(database, session)
    assert accounts.by_token(database, "") is None and accounts.by_session(database, own) is None
    accounts.revoke(database, ann.id)
    assert accounts.by_token(database, own) is None
    assert accounts.by_session(database, session) is None
    with pytest.raises(InputError, match="invisible"):
        accounts.add_labeler(database, "An\u202en")


def test_tokens_are_not_in_the_store(tmp_path):
    database = open_database(tmp_path / "store.sqlite")
    ann, own = accounts.add_labeler(database, "Ann")
    secrets = [own, accounts.start_session(database, ann), accounts.invite(database)]
    accounts.set_admin(database, "token-of-the-administrator")
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert not any(secret.encode() in stored for secret in (*secrets, "token-of-the-administrator"))
    assert b"Ann" in stored and os.stat(tmp_path / "store.sqlite").st_mode & 0o077 == 0


def test_deletion_on_request(database):
    fill(database, 3, wanted=2)
    ann, ben = labeler(database), labeler(database, "Ben")
    for each in (ann, ben):
        rank(database, each, queue.lease_task(database, each), [0, 1, 2, 3], submission=each.id)
    submissions.undo(database, ann)
    rank(database, ann, queue.lease_task(database, ann), [0, 0, 1, 1], submission="annagain")
    conversation.say(database, ann, "c1", "my secret garden", dialogue=False)
    (question,) = conversation.waiting(database)
    answers = [queue.Response(" yes", "p"), queue.Response(" no", "p")]
    conversation.answer(database, question, answers, round=0, sampling={})
    chat = conversation.read_turns(database, ann, "c1")[0].task
    thumb = {"response": 0, "up": True}
    submissions.submit(database, ann, submission="thumb123", task=chat.id, kind="thumb", body=thumb)
    alias = accounts.pseudonym(accounts.site_secret(database), ann.id)

    deleted = accounts.delete_account(database, ann.id)
    assert deleted == {"turn": 1, "label": 3, "lease": 0, "task": 1, "session": 0}
    assert [label.account for label in read_labels(database)] == [ben.id]
    assert queue.count_open(database) == 3  # Ann's is to be given again
    with database.read() as rows:
        assert [row["pseudonym"] for row in rows("SELECT * FROM deletion")] == [alias]
        for table in ("account", "task", "turn", "label", "lease", "invite", "deletion"):
            text = str(rows(f"SELECT * FROM {table}"))
            assert ann.id not in text and "garden" not in text and "'Ann'" not in text


def test_deleted_bytes_are_overwritten(tmp_path):
    path = tmp_path / "store.sqlite"
    database = open_database(path)
    ann = labeler(database)
    conversation.say(database, ann, "c1", "a-very-private-sentence", dialogue=False)
    accounts.delete_account(database, ann.id)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert b"a-very-private-sentence" not in path.read_bytes()


def test_any_character_comes_back_as_it_was(database):
    text = "".join(map(chr, range(0xD7FF))) + "\U0001f600\u202e\ufeff"
    task = queue.NewTask(text, [queue.Response(text[::-1], "p"), queue.Response(" b", "p")])
    queue.add_tasks(database, [task])
    taken = queue.lease_task(database, labeler(database))
    assert taken.prompt == text and taken.responses[0].text == text[::-1]


def test_status_and_rounds_are_replaced(database):
    figures.set_status(database, "updater", phase="ppo", round=1)
    figures.set_status(database, "updater", phase="waiting", round=2)
    status = figures.read_status(database)["updater"]
    assert status["phase"] == "waiting"
    with figures.alive(database, "updater", every=0.01):
        while figures.read_status(database)["updater"]["updated"] == status["updated"]:
            time.sleep(0.01)
    figures.set_status(database, "updater", phase="waiting", round=2, new=1)
    again = figures.read_status(database)["updater"]
    assert again["since"] == status["since"] < again["updated"] and again["new"] == 1
    figures.add_round(database, 1, {"kl": 1.0})
    figures.add_round(database, 1, {"kl": 2.0})
    assert figures.read_rounds(database) == [{"kl": 2.0, "round": 1}]


def test_disk_full_and_locked(tmp_path):
    """SQLite's own errors, as it raises them; nothing is half stored."""
    path = tmp_path / "store.sqlite"
    database = open_database(path, busy_seconds=0.1)
    fill(database, 1)
    ann = labeler(database)
    task = queue.lease_task(database, ann)
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="busy"):
            rank(database, ann, task, [0, 1, 2, 3], submission="a" * 8)
        assert submissions.count_labels(database) == 0  # readers do not wait
        other.rollback()
    connect = database._connect

    def small():
        connection = connect()
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
        return connection

    database._connect = small
    with pytest.raises(StoreUnavailable, match="full"):
        long = {"demonstration": "x" * 20_000}
        rank(database, ann, task, [0, 1, 2, 3], submission="b" * 8, **long)
    database._connect = connect
    assert read_labels(database) == [] and integrity(database) == "ok"
    assert rank(database, ann, task, [0, 1, 2, 3], submission="b" * 8)


def test_what_is_no_store(tmp_path):
    with pytest.raises(InputError, match="expected a path or postgresql"):
        open_database("mysql://x/y")
    path = tmp_path / "store.sqlite"
    database = open_database(path)
    with database.write() as rows:
        rows("UPDATE meta SET value = '0' WHERE name = 'schema'")
    with pytest.raises(InputError, match="schema 0, expected 1"):
        open_database(path)


def test_who_only_reads_makes_no_tables(server):
    url = new_postgresql(server, "nothing")
    for _ in range(2):
        with pytest.raises(InputError, match="is no label store"):
            open_database(url, create=False)
    open_database(url)
    assert read_labels(open_database(url, create=False)) == []


def test_what_is_imported_is_stored_whole_or_not_at_all(database):
    answers = [queue.Response("a", "import"), queue.Response("b", "import")]
    good = ("7", queue.NewTask("p", answers), [0, 1])
    with pytest.raises(InputError, match="half a surrogate"):
        submissions.add_ranked(database, [good, ("8", queue.NewTask("\ud83d", answers), [0, 1])])
    assert read_labels(database) == [] and accounts.list_accounts(database) == []
    assert submissions.add_ranked(database, [good, good]) == 1


def test_postgresql_that_is_not_there(server):
    with pytest.raises(StoreUnavailable, match="unreachable"):
        open_database("postgresql://nobody:secret@/postgres?host=/nonexistent")
    database = open_database(server)
    assert "secret" not in open_database(server.replace("postgres@", "postgres:secret@")).name
    assert "postgres" in database.name
