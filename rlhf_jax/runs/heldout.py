"""What a stage does not learn from: rows held out of its data, and batches of them."""

from collections.abc import Callable
from functools import partial

from rlhf_jax.config import DPOConfig, RewardConfig
from rlhf_jax.config.data import column_names
from rlhf_jax.data.batches import B, Batches
from rlhf_jax.data.datasets import Rows, load_comparisons, split
from rlhf_jax.runs.stage import Stage


def load_split_comparisons(config: RewardConfig | DPOConfig) -> tuple[Rows, Rows]:
    """(training, held-out) comparisons: ``heldout`` if it names a file, else a part of ``data``."""
    columns = column_names(config.columns)
    load = partial(load_comparisons, columns=columns, data_dir=config.cache)
    rows = load(config.data)
    if config.heldout is not None:
        return rows, load(config.heldout)
    private = isinstance(config, RewardConfig) and config.privacy.epsilon > 0
    return split(rows, heldout_fraction=config.heldout_fraction, independent=private)


def heldout_batches(
    stage: Stage, name: str, rows: Rows, batches_of: Callable[..., Batches[B]]
) -> list[B]:
    """All of ``rows`` once, in order; what became of them is noted as ``heldout_NAME``."""
    # Nothing is held out: of no rows there are no batches.
    if not len(rows):
        return []
    batches = batches_of(rows, seed=None)
    stage.note_rows(**{f"heldout_{name}": batches.report})
    return list(batches)
