"""What scores PPO's episodes, and how several scores become one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from rlhf_jax.config.bounds import Finite, Positive, PositiveOrZero, check_bounds
from rlhf_jax.config.effect import only
from rlhf_jax.errors import check

FUNCTION, GOLD = ".py:", "gold:"


class RewardSource(NamedTuple):
    """One value of ``--reward``, taken apart."""

    kind: Literal["model", "function", "gold"]
    place: Path
    """Folder of a reward model, file of a function, or name of a task."""
    function: str = ""


def reward_source(path: Path) -> RewardSource:
    """FOLDER or RUN@STEP of a reward model, FILE.py:FUNCTION, or gold:TASK."""
    text = str(path)
    if text.startswith(GOLD):
        return RewardSource("gold", Path(text.removeprefix(GOLD)))
    file, colon, function = text.rpartition(FUNCTION)
    if colon:
        return RewardSource("function", Path(f"{file}.py"), function)
    return RewardSource("model", path)


def reward_names(paths: Sequence[Path]) -> tuple[str, ...]:
    """A name for each reward: "task" if there is one, else its folder's, function's or task's.

    Where two have one name, or one has that of the second reward, all are numbered.
    """
    if len(paths) == 1:
        return ("task",)
    sources = [reward_source(path) for path in paths]
    names = [
        source.function or {"gold": f"gold_{source.place.stem}"}.get(source.kind, source.place.name)
        for source in sources
    ]
    names = [name.replace("@", "_") for name in names]
    if len({*names, "second"}) <= len(names):
        names = [f"{name}_{n}" for n, name in enumerate(names, 1)]
    return tuple(names)


def is_gold(paths: Any) -> bool:
    """Whether one of the rewards is a task's gold scorer."""
    return any(reward_source(path).kind == "gold" for path in paths)


@dataclass(frozen=True)
class CombineConfig:
    """How the scores of several rewards become the one that PPO maximises, or the best of n has."""

    how: Literal["mean", "min", "mean_minus_std", "mean_minus_var"] = "mean"
    """mean: weighted. Of an ensemble (Coste et al. 2023): min, the worst case; mean_minus_var,
    uncertainty-weighted; mean_minus_std, the same on the scale of the scores."""
    weights: Annotated[tuple[Finite, ...], only(how="mean")] = ()
    """Of the rewards in the order of --reward; they are divided by the sum of their magnitudes.
    Empty: all alike."""
    spread_coef: Annotated[PositiveOrZero, only(how=("mean_minus_std", "mean_minus_var"))] = 1.0
    """What the standard deviation or variance over the rewards is multiplied by."""
    normalise: bool = False
    """Each reward gets mean 0 and standard deviation 1 over the episodes of an iteration first; in
    an evaluation, over the baseline's answers."""
    clip: Positive | None = None
    """Each reward's score is clipped to ± this, after it is normalised; None: not at all."""

    def __post_init__(self):
        check_bounds(self, "combine.")
        total = sum(map(abs, self.weights))
        check(
            not self.weights or total > 0,
            f"combine.weights={self.weights}: expected a number that is not 0 among them",
        )

    def check_number(self, rewards: int) -> None:
        """Raise InputError unless there is a weight for each reward, and several for a spread."""
        check(
            len(self.weights) in (0, rewards),
            f"combine.weights has {len(self.weights)} numbers, expected one for each of the "
            f"{rewards} of --reward",
        )
        check(
            self.how in ("mean", "min") or rewards > 1,
            f"combine.how={self.how} needs several rewards, and --reward names one",
        )
