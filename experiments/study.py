"""A study: its arms for several seeds, compared in pairs with intervals; one row a run is kept.

    python -m experiments.study configs/studies/frontier.py --dry-run True
    python -m experiments.study configs/studies/frontier.py --seeds 10 --jobs 2
    python -m experiments.study configs/studies/frontier.py --jobs 60 --cluster.kind slurm
    python -m experiments.study configs/studies/frontier.py --report True

What is missing is run, each stage in a process and a run folder of its own; the same command goes
on after a kill. Rows go to docs/results/NAME.jsonl, and are not run again on another machine;
NAME.md, NAME.png and NAME.svg are made of them. docs/studies.md says how to write one.
"""

from rlhf_jax.cli import main
from rlhf_jax.config import StudyConfig
from rlhf_jax.errors import RunError, check
from rlhf_jax.runs.progress import say
from rlhf_jax.studies.conduct import Conducted
from rlhf_jax.studies.page import write_page
from rlhf_jax.studies.queue import Stopped
from rlhf_jax.studies.study import read_study


def run(config: StudyConfig) -> None:
    """Run what is missing, keep the rows, and write the page."""
    study = read_study(config.file)
    conducted = Conducted(study, config)
    if config.dry_run:
        print(conducted.outlook())
        return
    if config.commands:
        print("\n".join(conducted.commands()))
        return

    # Runs
    failed: dict[str, str] = {}
    if not config.report:
        try:
            failed = conducted.run()
        except Stopped as stop:
            say(f"stopped; the same command goes on: {conducted.outlook()}")
            # What was at work has saved.
            raise SystemExit(stop.code) from None

    # Page
    check(
        len(conducted.rows) > 0 or bool(failed),
        f"{conducted.results}: no rows, so there is nothing to report; run the study first",
    )
    if conducted.rows:
        say(f"results: {write_page(study, conducted.rows, config)}")
    if failed:
        listed = "; ".join(f"{name} ({why})" for name, why in failed.items())
        raise RunError(f"{len(failed)} runs failed, the same command tries them again: {listed}")


if __name__ == "__main__":
    main(run, StudyConfig)
