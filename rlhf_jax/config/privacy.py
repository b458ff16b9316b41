"""Differential privacy of what a stage learns from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from rlhf_jax.config.bounds import Bounds, Count, Positive, PositiveOrZero, Seed, check_bounds
from rlhf_jax.config.data import column_names
from rlhf_jax.config.effect import idle, only


@dataclass(frozen=True)
class PrivacyConfig:
    """DP-SGD: each example's gradient clipped, Gaussian noise on their sum (Abadi et al. 2016)."""

    epsilon: PositiveOrZero = 0.0
    """Budget of the whole run: the noise is set so that it is (ε, δ)-private; 0 trains without."""
    delta: Annotated[float, Bounds(0, 1, over=True, below=True), idle(epsilon=0)] = 1e-5
    """Below 1 / number of examples."""
    clip_norm: Annotated[Positive, idle(epsilon=0)] = 0.1
    """C: no example moves the sum of gradients by more."""

    def __post_init__(self):
        check_bounds(self, "privacy.")


@dataclass(frozen=True)
class CanaryConfig:
    """Planted secrets, and how well a model remembers them."""

    what: tyro.conf.Positional[Literal["plant", "measure"]] = "measure"
    """Plant the secrets in a copy of the data, or measure how well a model knows them."""
    data: Annotated[Path, only(what="plant")] = Path("demonstrations.jsonl")
    """plant: the demonstrations to hide them among."""
    columns: Annotated[str, only(what="plant")] = ""
    """plant: other names for their columns, such as prompt=question,completion=answer."""
    out: Annotated[Path, only(what="plant")] = Path("planted.jsonl")
    """plant: where to write."""
    runs: Annotated[tuple[Path, ...], only(what="measure")] = ()
    """measure: language models."""
    number: Annotated[int, Bounds(1, 12)] = 8
    """Secrets, at most 12."""
    repeat: Annotated[Count, only(what="plant")] = 4
    """How often each occurs."""
    alternatives: Annotated[int, Bounds(1, 10**6 - 1), only(what="measure")] = 1023
    """Other secrets that each is ranked among; a secret has six digits."""
    seed: Seed = 0
    """Of the secrets."""

    def __post_init__(self):
        check_bounds(self)
        column_names(self.columns)


@dataclass(frozen=True)
class CleanConfig:
    """Personal data, duplicates and leaks of training data."""

    data: Path = Path("rows.jsonl")
    """File or folder of rows of any kind."""
    out: Path = Path("clean.jsonl")
    """Where the cleaned rows are written."""
    test: Path | None = None
    """Rows that must not be in the training data."""
    prefix_words: Count = 20
    """Rows that begin with the same so many words count as alike."""
    most: Count = 3
    """Of alike rows, how many are kept."""

    def __post_init__(self):
        check_bounds(self)
