"""The files of a task alone: demonstrations, prompts and text, for stages started one by one.

python -m experiments.task translation --out runs/translation/data
"""

from rlhf_jax.cli import main
from rlhf_jax.config import TaskConfig
from rlhf_jax.tasks.task import check_leaks, read_task, write


def run(config: TaskConfig) -> None:
    """Write the task's files, and print how much is in each."""
    task = read_task(config.name, config.source)
    check_leaks(task, config.name)
    write(task, config.out)
    counts = {"demonstrations": len(task.demonstrations)}
    counts |= {f"prompts_{name}": len(prompts) for name, prompts in task.prompts.items()}
    counts |= {f"corpus_{name}": len(documents) for name, documents in task.corpora.items()}
    for name, count in counts.items():
        print(f"{config.out}/{name}: {count:,}")


if __name__ == "__main__":
    main(run, TaskConfig)
