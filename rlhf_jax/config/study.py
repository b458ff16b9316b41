"""Running a study: which, for how many seeds, and where its results go."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from rlhf_jax.config.bounds import Count, check_bounds


@dataclass(frozen=True)
class StudyConfig:
    """A study: its arms for several seeds, its rows, and the page that is made of them."""

    file: tyro.conf.Positional[Path] = Path("configs/studies/frontier.py")
    """A Python file with get_study() (docs/studies.md)."""
    seeds: Count = 10
    """How many, from 0 on; each runs the whole chain anew."""
    jobs: Count = 1
    """Runs at a time; the processors are shared evenly among them."""
    dry_run: bool = False
    """Say how many runs are missing and how long they take, and run nothing."""
    report: bool = False
    """Make the page from the rows that are there, and run nothing."""
    few: bool = False
    """Compare arms from two pairs of seeds on, instead of five."""
    dir: Path = Path("runs/studies")
    """Folder of the runs, in one below it that is named as the file."""
    results: Path = Path("docs/results")
    """Folder of NAME.jsonl, with the rows, and of NAME.md, NAME.png and NAME.svg."""

    def __post_init__(self):
        check_bounds(self)
