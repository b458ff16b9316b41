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
import socket
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.feedback import stages, verdict
from experiments.feedback.processes import run_together, tell
from rlhf_jax.cli import Subcommand, main_of
from rlhf_jax.config import (
    FeedbackAnswerConfig,
    FeedbackAskConfig,
    FeedbackConfig,
    FeedbackExportConfig,
    FeedbackImportConfig,
    FeedbackSampleConfig,
    FeedbackServeConfig,
    FeedbackSimulateConfig,
    FeedbackUpdateConfig,
    FeedbackVerdictConfig,
)
from rlhf_jax.config.feedback import LoopConfig
from rlhf_jax.data.files import check_writable, write_atomically
from rlhf_jax.data.rows import Comparison
from rlhf_jax.errors import InputError, check, counted
from rlhf_jax.feedback import figures, formats, queue, submissions
from rlhf_jax.feedback.database import open_database
from rlhf_jax.feedback.imports import read_rankings
from rlhf_jax.feedback.labels import read_labels
from rlhf_jax.feedback.store import Database
from rlhf_jax.feedback.texts import map_text
from rlhf_jax.text.personal_data import scrub_typed


def serve(config: FeedbackServeConfig) -> None:
    """The site, until it is stopped."""
    check_run(config)
    c = config.serve
    listener = take_port(config)
    from rlhf_jax.feedback.web.guide import GENERAL, guide_name, own_guide, task_guide
    from rlhf_jax.feedback.web.serve import admin_token
    from rlhf_jax.feedback.web.serve import serve as serve_site
    from rlhf_jax.feedback.web.site import Site

    if c.guide:
        guide = own_guide(c.guide)
        tell(f"labelers read the guide {c.guide}")
    else:
        guide = task_guide(config.task)
        of = f"of the task {config.task}"
        if guide_name(config.task) == GENERAL:
            of = f"for any task, as {config.task} has none"
        tell(f"labelers read the guide {of}; --task NAME or --serve.guide FILE gives another")
    site = Site(
        open_database(config.place),
        url=c.url,
        guide=guide,
        dialogue=c.dialogue,
        scrub=c.scrub,
        lease_seconds=60 * c.lease_minutes,
        per_second=c.requests_per_second,
        proxies=c.proxies,
    )
    serve_site(site, listener, token=admin_token(config.dir, c.token), host=c.host)


def take_port(config: FeedbackServeConfig) -> socket.socket:
    """The site's socket, before anything else is made: a taken port costs nothing."""
    try:
        from rlhf_jax.feedback.web.serve import listen
    except ImportError as error:
        raise InputError(f"{error.name} is missing: pip install 'rlhf_jax[feedback]'") from None
    return listen(config.serve.host, config.serve.port)


def check_run(config: LoopConfig) -> None:
    """Nothing is made in a folder whose name was mistyped."""
    check(config.run.is_dir(), f"--run {config.run}: no such folder")


def everything(config: FeedbackConfig) -> None:
    """Site, answers and updates as processes of their own, until Ctrl-C.

    After ``rounds`` the site stays for who is at the page. Simulated labelers leave nobody there:
    then all ends with the last round.
    """
    stages.check_sft(config)
    take_port(config).close()  # the site's own process takes it again
    # Before it is up: until then, the updates leave the queue to it.
    figures.set_status(open_database(config.place), "answerer", phase="sample", round=0)
    simulate = ["simulate"] * bool(config.simulated)
    store = " --store ..." if config.store else ""
    run_together(
        ["serve", "answer", *simulate, "update"],
        forever=not simulate,
        open_site=f"python -m experiments.feedback serve --run {config.run}{store}",
    )


def export(config: FeedbackExportConfig) -> None:
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


def existing_store(config: LoopConfig) -> Database:
    """The labels, for who only reads them: nothing is made where there are none."""
    if not config.store:
        check_run(config)
        check(Path(config.place).is_file(), f"--run {config.run}: it has no labels yet")
    return open_database(config.place, create=False)


def import_rankings(config: FeedbackImportConfig) -> None:
    """Rankings of --file as labels; each labeler that it names gets a revoked account."""
    if config.file is None:
        raise InputError("import needs --file FILE.jsonl")
    if not config.store:
        check_run(config)
    rankings, account = read_rankings(config.file)
    clean = scrub_typed if config.serve.scrub else str
    ranked = [(x.labeler, imported_task(x.row, clean), x.row.ranks) for x in rankings]
    new = submissions.add_ranked(open_database(config.place), ranked)
    same = len(rankings) - new
    there = f", {same} of them there already (same labeler, answers and ranks)" if same else ""
    tell(f"{counted(len(rankings), 'ranking')} from {config.file}{there}")
    for why, count in Counter(row.why for row in account.left_out).items():
        tell(f"{count} left out: {why}")
    for note, count in account.notes.items():
        tell(f"{counted(count, 'row')}: {note}")


def imported_task(row: Comparison, clean: Callable[[str], str]) -> queue.NewTask:
    """The answers of a ranking as a task, personal data taken out if so asked."""
    responses = [queue.Response(response, "import") for response in row.responses]
    return queue.NewTask(map_text(clean, row.prompt), responses)


def imported(module: str, name: str) -> Callable[[Any], None]:
    """A command whose module loads JAX, or the gold scorer, and so is loaded when it is used."""

    def command(config: Any) -> None:
        getattr(importlib.import_module(f"experiments.feedback.{module}"), name)(config)

    return command


COMMANDS = {
    "run": Subcommand(everything, FeedbackConfig, stages.first_round),
    "serve": Subcommand(serve, FeedbackServeConfig),
    "sample": Subcommand(imported("answers", "sample"), FeedbackSampleConfig),
    "answer": Subcommand(imported("answers", "answer"), FeedbackAnswerConfig),
    "update": Subcommand(imported("rounds", "update"), FeedbackUpdateConfig, stages.first_round),
    "simulate": Subcommand(imported("labelers", "simulate"), FeedbackSimulateConfig),
    "export": Subcommand(export, FeedbackExportConfig),
    "import": Subcommand(import_rankings, FeedbackImportConfig),
    "ask": Subcommand(verdict.ask, FeedbackAskConfig),
    "verdict": Subcommand(verdict.announce, FeedbackVerdictConfig),
}

# Bare, it would start the loop on a run and with settings that nobody named.
BARE = (
    "which command? python -m experiments.feedback run --config configs/quickstart.py does all "
    "on this machine; --help shows the others"
)

if __name__ == "__main__":
    main_of(COMMANDS, bare=BARE)
