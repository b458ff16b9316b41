"""People in the loop: sample → people rank and write → reward model → PPO → better samples.

    python -m experiments.feedback run --config configs/quickstart.py       all on this machine
    python -m experiments.feedback serve --run runs/x                       the site alone
    python -m experiments.feedback sample --config configs/quickstart.py    answers for the queue
    python -m experiments.feedback answer --config configs/quickstart.py    chat, and a full queue
    python -m experiments.feedback update --config configs/quickstart.py    a round per N labels
    python -m experiments.feedback export --run runs/x --format trl-preference --file pairs.jsonl
    python -m experiments.feedback import --run runs/x --file rankings.jsonl
    python -m experiments.feedback ask --run runs/x/evaluate                people judge policies:
    python -m experiments.feedback verdict --run runs/x/evaluate            who won

The processes share the label store and the run folder, nothing else; each can be killed and
started again. Those that need no model (serve, export, import, ask, verdict, simulate) never load
JAX.
"""

import importlib
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from experiments import feedback_verdict
from rlhf_jax.cli import main
from rlhf_jax.config import FeedbackConfig
from rlhf_jax.data.files import check_writable, write_atomically
from rlhf_jax.data.rows import Comparison
from rlhf_jax.errors import InputError, RunError, check
from rlhf_jax.feedback import figures, formats, queue, submissions
from rlhf_jax.feedback.database import Database, open_database
from rlhf_jax.feedback.imports import read_rankings
from rlhf_jax.feedback.labels import read_labels
from rlhf_jax.feedback.scrub import scrub
from rlhf_jax.feedback.texts import map_text

PATIENCE = 30.0
"""Seconds that a process of ``run`` gets to end by itself."""


def run(config: FeedbackConfig) -> None:
    commands = {
        "run": everything,
        "serve": serve,
        "export": export,
        "import": import_rankings,
        "ask": feedback_verdict.ask,
        "verdict": feedback_verdict.announce,
    }
    if config.command in commands:
        commands[config.command](config)
        return
    # Only these need JAX or the gold scorer.
    modules = {"update": "feedback_rounds", "simulate": "feedback_labelers"}
    module = f"experiments.{modules.get(config.command, 'feedback_answers')}"
    getattr(importlib.import_module(module), config.command)(config)


def serve(config: FeedbackConfig) -> None:
    """The site, until it is stopped."""
    check_run(config)
    c = config.serve
    listener = take_port(config)
    from rlhf_jax.feedback.web.serve import admin_token
    from rlhf_jax.feedback.web.serve import serve as serve_site
    from rlhf_jax.feedback.web.site import Site

    site = Site(
        open_database(config.place),
        url=c.url,
        dialogue=c.dialogue,
        scrub=c.scrub,
        lease_seconds=60 * c.lease_minutes,
        per_second=c.requests_per_second,
        proxies=c.proxies,
    )
    serve_site(site, listener, token=admin_token(config.dir, c.token), host=c.host)


def check_sft(config: FeedbackConfig) -> None:
    finished = (config.sft / "final").is_dir()
    check(finished, f"--run {config.run}: it has no finished sft/ to start from")


def take_port(config: FeedbackConfig) -> socket.socket:
    """The site's socket, before anything else is made: a taken port costs nothing."""
    try:
        from rlhf_jax.feedback.web.serve import listen
    except ImportError as error:
        raise InputError(f"{error.name} is missing: pip install 'rlhf_jax[feedback]'") from None
    return listen(config.serve.host, config.serve.port)


def check_run(config: FeedbackConfig) -> None:
    """Nothing is made in a folder whose name was mistyped."""
    check(config.run.is_dir(), f"--run {config.run}: no such folder")


def everything(config: FeedbackConfig) -> None:
    """Site, answers and updates as processes of their own; ends when the updates do."""
    check_sft(config)
    take_port(config).close()  # the site's own process takes it again
    commands = ["serve", "answer", *["simulate"] * bool(config.simulated)]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # the others end too
    # Before it is up: until then, the updates leave the queue to it.
    figures.set_status(open_database(config.place), "answerer", phase="sample", round=0)
    with ExitStack() as stack:
        processes = {command: start(command) for command in [*commands, "update"]}
        for process in processes.values():
            stack.callback(stop, process)
        while (status := processes["update"].poll()) is None:
            for command, process in processes.items():
                if process.poll() not in (None, 0):
                    raise RunError(f"{command} ended with status {process.returncode}")
            time.sleep(0.5)
    if status:
        raise SystemExit(status)


def start(command: str) -> subprocess.Popen:
    """This program with another command and the same flags."""
    given = sys.argv[1:]
    # Not a value that happens to be "run", as in --run run.
    is_command = lambda n: given[n] == "run" and not (n and given[n - 1].startswith("--"))
    flags = [flag for n, flag in enumerate(given) if not is_command(n)]
    return subprocess.Popen([sys.executable, "-m", "experiments.feedback", command, *flags])


def stop(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def export(config: FeedbackConfig) -> None:
    """All labels in one of the formats, to --file or else to standard output."""
    database = existing_store(config)
    if config.file is not None:
        check_writable(config.file, Path(config.place))
    labels = read_labels(database)
    rows = formats.WRITERS[config.format](labels)
    if config.file is None:
        sys.stdout.buffer.write(formats.to_lines(rows).encode())
    else:
        write_atomically(config.file, formats.to_lines(rows))
        tell(f"{len(rows)} rows in {config.file}")
    repaired = sum(label.repaired for label in labels)
    if repaired:
        tell(f"{repaired} labels held half a character, which is U+FFFD in the rows")


def existing_store(config: FeedbackConfig) -> Database:
    """The labels, for who only reads them: nothing is made where there are none."""
    if not config.store:
        check_run(config)
        check(Path(config.place).is_file(), f"--run {config.run}: it has no labels yet")
    return open_database(config.place, create=False)


def import_rankings(config: FeedbackConfig) -> None:
    """Rankings of --file as labels; each labeler that it names gets a revoked account."""
    check(config.file is not None, "import needs --file FILE.jsonl")
    if not config.store:
        check_run(config)
    found, account = read_rankings(config.file)
    clean = scrub if config.serve.scrub else str
    ranked = [(x.labeler, imported_task(x.row, clean), x.row.ranks) for x in found]
    new = submissions.add_ranked(open_database(config.place), ranked)
    same = len(found) - new
    there = f", {same} of them there already (same labeler, answers and ranks)" if same else ""
    tell(f"{len(found)} rankings from {config.file}{there}")
    for why, count in Counter(each.why for each in account.left_out).items():
        tell(f"{count} left out: {why}")
    for note, count in account.notes.items():
        tell(f"{count} rows: {note}")


def imported_task(row: Comparison, clean: Callable[[str], str]) -> queue.NewTask:
    responses = [queue.Response(each, "import") for each in row.responses]
    return queue.NewTask(map_text(clean, row.prompt), responses)


def tell(text: str) -> None:
    print(f"feedback: {text}", file=sys.stderr)


if __name__ == "__main__":
    main(run, FeedbackConfig)
