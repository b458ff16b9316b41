"""Writing negative movie reviews: the sentiment task with every prompt turned round.

Data, splits, demonstrations and scorers are those of ``sentiment``; the gold scorer's sign follows
the prompt.
"""

from rlhf_jax.tasks.sentiment import build_negative as build

__all__ = ["build"]
