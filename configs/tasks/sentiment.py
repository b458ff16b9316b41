"""Positive movie reviews: the quickstart under its task's name."""

from dataclasses import replace
from pathlib import Path

from configs import quickstart
from rlhf_jax.config import InstructGPTConfig


def get_config() -> InstructGPTConfig:
    return replace(quickstart.get_config(), dir=Path("runs/sentiment"))
