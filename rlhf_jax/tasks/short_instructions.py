"""Instructions of few words with program-checked constraints, for a model that is there already.

``tasks/instructions.py`` without demonstrations and text to pretrain on, and without prompts that
are long in a chat template: seeds with a constraint to learn from, IFEval's prompts to be tested
on. Gold score, metrics and baseline are that task's.
"""

from pathlib import Path

from rlhf_jax.tasks import instructions
from rlhf_jax.tasks.task import Task

MOST_WORDS = 45
"""Of a prompt, split at white space: at most 105 tokens in the template of SmolLM2."""


def build(source: Path) -> Task:
    """Read and split. Deterministic. Raises InputError for missing or wrong files."""
    task = instructions.build(source)
    return task._replace(
        demonstrations=[],
        prompts={
            name: [prompt for prompt in prompts if len(prompt.split()) <= MOST_WORDS]
            for name, prompts in task.prompts.items()
        },
        corpora={},
        heldout={},
    )
