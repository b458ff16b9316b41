"""Differential privacy of what a stage learns from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from rlhf_jax.errors import check


@dataclass(frozen=True)
class PrivacyConfig:
    """DP-SGD: each example's gradient clipped, Gaussian noise on their sum (Abadi et al. 2016)."""

    epsilon: float = 0.0
    """Budget of the whole run: the noise is set so that it is (ε, δ)-private; 0 trains without."""
    delta: float = 1e-5
    """Below 1 / number of examples."""
    clip_norm: float = 0.1
    """C: no example moves the sum of gradients by more."""

    def __post_init__(self):
        check(self.epsilon >= 0, f"privacy.epsilon={self.epsilon} must be >= 0")
        check(0 < self.delta < 1, f"privacy.delta={self.delta} is not in (0, 1)")
        check(self.clip_norm > 0, f"privacy.clip_norm={self.clip_norm} must be > 0")


@dataclass(frozen=True)
class CanaryConfig:
    """Planted secrets, and how well a model remembers them."""

    what: tyro.conf.Positional[Literal["plant", "measure"]] = "measure"
    data: Path = Path("demonstrations.jsonl")
    """plant: the demonstrations to hide them among."""
    out: Path = Path("planted.jsonl")
    """plant: where to write."""
    runs: tuple[Path, ...] = ()
    """measure: language models."""
    number: int = 8
    """Secrets, at most 12."""
    repeat: int = 4
    """How often each occurs."""
    alternatives: int = 1023
    """Other secrets that each is ranked among."""
    seed: int = 0

    def __post_init__(self):
        check(1 <= self.number <= 12, f"number={self.number} is not in 1 ... 12")
        check(
            1 <= self.alternatives < 10**6,
            f"alternatives={self.alternatives} is not in 1 ... 999999: a secret has six digits",
        )
        check(self.repeat >= 1, f"repeat={self.repeat} must be >= 1")


@dataclass(frozen=True)
class CleanConfig:
    """Personal data, duplicates and leaks of training data."""

    data: Path = Path("rows.jsonl")
    """File or folder of rows of any kind."""
    out: Path = Path("clean.jsonl")
    test: Path | None = None
    """Rows that must not be in the training data."""
    prefix_words: int = 20
    """Rows that begin with the same so many words count as alike."""
    most: int = 3
    """Of alike rows, how many are kept."""

    def __post_init__(self):
        check(self.prefix_words >= 1, f"prefix_words={self.prefix_words} must be >= 1")
        check(self.most >= 1, f"most={self.most} must be >= 1")
