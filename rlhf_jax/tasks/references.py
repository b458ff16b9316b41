"""Prompts with answers that people wrote: a gold scorer looks them up by the prompt."""

from collections.abc import Sequence
from typing import NamedTuple

from rlhf_jax.errors import InputError


class References(NamedTuple):
    """What people answered to each prompt."""

    answers: dict[str, tuple[str, ...]]

    def of(self, prompts: Sequence[str]) -> list[tuple[str, ...]]:
        """The answers to each prompt. Raises InputError for a prompt that is not the task's."""
        for prompt in prompts:
            if prompt not in self.answers:
                raise InputError(
                    f"prompt {prompt[:60]!r} has no reference: this task judges answers only to "
                    "its own prompts"
                )
        return [self.answers[prompt] for prompt in prompts]
