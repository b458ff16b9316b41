"""Conducting a study: what is missing is run, seed by seed, and its rows are kept as they come."""

import shlex
from collections import defaultdict
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from rlhf_jax.config import StudyConfig
from rlhf_jax.data.files import write_atomically
from rlhf_jax.errors import RunError
from rlhf_jax.runs.folder import take_lock
from rlhf_jax.runs.inputs import files_digest
from rlhf_jax.runs.progress import say
from rlhf_jax.runs.records import read_done
from rlhf_jax.studies.launchers import Cluster, Launcher, ThisMachine, command_of
from rlhf_jax.studies.plan import Job, SeedPlan, data_folder, evaluation, plan_seed
from rlhf_jax.studies.queue import Queue, is_done
from rlhf_jax.studies.results import (
    Row,
    check_current,
    check_data,
    read_results,
    rows_of_seed,
    write_results,
)
from rlhf_jax.studies.study import Study
from rlhf_jax.tasks.task import check_corpora, check_leaks, read_task, write


class Conducted:
    """A study with its folder and its rows."""

    def __init__(self, study: Study, config: StudyConfig):
        self.study, self.config = study, config
        self.name = config.file.stem
        self.root = config.dir / self.name
        self.results = config.results / f"{self.name}.jsonl"
        self.rows: list[Row] = read_results(self.results)
        seeds = sorted({*range(config.seeds), *(row["seed"] for row in self.rows)})
        whole = {seed: plan_seed(study, seed, self.root) for seed in seeds}
        # Before anything runs: rows of an older study file would be compared with new ones.
        check_current(self.results, self.rows, whole)
        there = {(row["seed"], row["arm"]) for row in self.rows}
        self.plans: dict[int, SeedPlan] = {}
        """Of the seeds that lack a row, what makes it."""
        for seed in range(config.seeds):
            arms = [arm for arm in study.arms if (seed, arm.name) not in there]
            if arms:
                self.plans[seed] = plan_seed(study, seed, self.root, arms=arms)
        self.evaluations: dict[int, Job] = {}
        """By seed, those that are to be run or have been."""
        self.data = ""
        """Digest of the task's files."""

    def jobs(self) -> list[Job]:
        """All that is missing but for the evaluations, seed after seed, in the order of the arms.

        So a study that is stopped early has whole seeds: what is paired was made on one machine.
        """
        return [job for plan in self.plans.values() for job in plan.jobs]

    def run(self) -> dict[str, str]:
        """Run what is missing and keep the rows; why runs failed, by name."""
        if not self.plans:
            return {}
        with held(self.root):
            self.data = self.prepare_data()
            check_data(self.results, self.rows, self.data)
            queue = Queue(
                self.jobs(),
                self.launcher(),
                parallel=self.config.jobs,
                then=self.after,
                left=self.seconds_left,
            )
            self.queue = queue
            queue.run()
        names = {job.folder: job.name for job in (*self.jobs(), *self.evaluations.values())}
        return {names[folder]: why for folder, why in queue.failed.items()}

    def launcher(self) -> Launcher:
        """What starts jobs. Raises InputError for a cluster that is not here."""
        if self.config.cluster.kind == "none":
            return ThisMachine(self.config.jobs)
        return Cluster(self.config.cluster, self.root / "submitit", self.config.jobs)

    def commands(self) -> list[str]:
        """Of each run that is missing, seed after seed, each after those that it needs."""
        with held(self.root):
            self.data = self.prepare_data()
            check_data(self.results, self.rows, self.data)
            lines = []
            for plan in self.plans.values():
                policies = list(plan.policies.values())
                for job in (*plan.jobs, evaluation(plan, policies, self.root)):
                    if not is_done(job):
                        lines.append(f"{shlex.join(['python', *command_of(job)])}  # {job.name}")
            return lines

    def after(self, job: Job) -> Iterable[Job]:
        """What is to be done when a run has ended: the seed's evaluation, or its rows."""
        plan = self.plans[job.seed]
        done, failed = self.queue.done, self.queue.failed
        if job is self.evaluations.get(job.seed):
            if job.folder in done:
                self.keep(plan, job)
            return []
        ended = done | failed.keys()
        # One evaluation for all arms of a seed: the same prompts, answered before the same judges.
        if job.seed in self.evaluations or not all(
            planned.folder in ended for planned in plan.jobs
        ):
            return []
        policies = [folder for folder in plan.policies.values() if folder in done]
        if not policies and not any(arm.best_of > 1 for arm in self.study.arms):
            return []
        self.evaluations[job.seed] = evaluation(plan, policies, self.root)
        return [self.evaluations[job.seed]]

    def keep(self, plan: SeedPlan, job: Job) -> None:
        """Add an evaluation's rows to the file."""
        rows = rows_of_seed(self.study, plan, job, data=self.data)
        self.rows += rows
        write_results(self.results, self.rows, [arm.name for arm in self.study.arms])
        say(f"{self.results}: {len(rows)} rows of seed {plan.seed} added")

    def prepare_data(self) -> str:
        """Write the files of the arms' tasks, once; a digest of them all."""
        chains = {}
        for arm in self.study.arms:
            chain = arm.chain(self.study.base)
            chains[data_folder(chain, self.root)] = chain
        digests = []
        for folder, chain in chains.items():
            mark = folder.with_name(f"{folder.name}.sha256")
            # The mark is written last: files without it are of a run that was cut short.
            if not (mark.is_file() and folder.is_dir()):
                task = read_task(chain.task, chain.source)
                check_corpora(task, chain.corpora, chain.task)
                check_leaks(task, chain.task)
                write(task, folder)
                write_atomically(mark, f"{files_digest(folder)}\n")
            digests.append(mark.read_text().strip())
        return "+".join(digests)

    # --- how long ---------------------------------------------------------------------------------

    def seconds_of_labels(self) -> dict[str, float]:
        """What a run of each stage and arm has taken so far, on average: of rows and of folders."""
        seconds_of: dict[str, list[float]] = defaultdict(list)
        for row in self.rows:
            for label, seconds in row["seconds"].items():
                seconds_of[row["arm"] if label == "arm" else label].append(seconds)
        for job in self.jobs():
            done = read_done(job.folder) or {}
            if "seconds" in done:
                seconds_of[job.label].append(done["seconds"])
        return {label: float(np.mean(seconds)) for label, seconds in seconds_of.items()}

    def seconds_left(self, jobs: Sequence[Job]) -> str:
        """How long ``jobs`` take, and the evaluations after them."""
        # Evaluations become jobs when all before them is done, but are to be waited for from the
        # start.
        evaluated = {
            seed for seed, job in self.evaluations.items() if job not in jobs or is_done(job)
        }
        labels = [job.label for job in jobs if job.label != "evaluate"]
        labels += ["evaluate"] * len(self.plans.keys() - evaluated)
        known = self.seconds_of_labels()
        unknown = sorted({label for label in labels if label not in known})
        seconds = sum(known.get(label, 0.0) for label in labels) / self.config.jobs
        text = f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"
        if unknown:
            text = f"over {text}, for {', '.join(unknown)} nobody has timed yet,"
        return text

    def outlook(self) -> str:
        """What ``--dry-run`` says."""
        jobs = [job for job in self.jobs() if not is_done(job)]
        runs = len(jobs) + len(self.plans)
        shared = sum(len(plan.jobs) for plan in self.plans.values())
        return (
            f"{self.name}: {len(self.study.arms)} arms, {self.config.seeds} seeds; "
            f"{len(self.rows)} rows are there; {runs} runs are missing "
            f"({shared - len(jobs)} are done, {len(self.plans)} are evaluations); "
            f"{self.seconds_left(jobs)} with --jobs {self.config.jobs}"
        )


@contextmanager
def held(root: Path) -> Generator[None]:
    """Within it no other process conducts the study of this folder."""
    root.mkdir(parents=True, exist_ok=True)
    try:
        lock = take_lock(root)
    except RunError as error:
        raise RunError(f"another process conducts this study: {error}") from None
    try:
        yield
    finally:
        lock.close()
