"""Does a model remember secrets of its training data? Plant some, train, and measure exposure.

    python -m experiments.canaries plant --data demonstrations.jsonl --out planted.jsonl
    python -m experiments.sft --data planted.jsonl ...
    python -m experiments.canaries measure --runs runs/sft runs/sft_private

Plant and measure with the same ``--seed``. 1.44 (log₂ e) is expected of secrets that the model
knows no better than any other; log₂ of ``--alternatives`` + 1 means that it knows one by heart.
"""

import json

import numpy as np
from rich.console import Console
from rich.table import Table

from rlhf_jax.cli import main
from rlhf_jax.config import CanaryConfig
from rlhf_jax.config.data import column_names
from rlhf_jax.data.chat import as_json
from rlhf_jax.data.files import check_writable, write_atomically
from rlhf_jax.data.formats import read_demonstrations
from rlhf_jax.errors import check
from rlhf_jax.evaluation.metrics import Interval, mean_ci
from rlhf_jax.evaluation.numbers import show
from rlhf_jax.inference.text_logprobs import continuation_logprobs, make_logprob_scorer
from rlhf_jax.privacy.canaries import NAMES, alternatives, exposure, plant
from rlhf_jax.runs.trained import Trained, load_by_name, names_apart


def run(config: CanaryConfig) -> dict[str, Interval] | None:
    """Plant secrets in demonstrations, or measure how exposed they are in models."""
    if config.what == "plant":
        check_writable(config.out, config.data)
        rows = [
            {"prompt": as_json(row.prompt), "completion": as_json(row.completion)}
            for row in read_demonstrations(config.data, column_names(config.columns))
        ]
        secrets = [row._asdict() for row in plant(config.number, seed=config.seed)]
        rows += secrets * config.repeat
        # Shuffled in: repeats of a secret next to each other would fall into one batch.
        order = np.random.default_rng(config.seed).permutation(len(rows))
        lines = [json.dumps(rows[n], ensure_ascii=False) + "\n" for n in order]
        write_atomically(config.out, "".join(lines))
        print(f"{config.out}: {len(secrets)} secrets, {config.repeat} times each, in {len(rows)}")
        return None
    check(len(config.runs) > 0, "measure needs --runs, folders of language models")
    runs = load_by_name(config.runs, names_apart(config.runs), flag="runs")
    exposures = {name: measure(trained, config) for name, trained in runs.items()}
    table = Table(title="Exposure of planted secrets", title_justify="left")
    for column in ("run", "mean, bits", "highest", "possible"):
        table.add_column(column)
    possible = f"{np.log2(config.alternatives + 1):.1f}"
    for name, bits in exposures.items():
        mean = show(mean_ci(bits), decimals=2)
        table.add_row(name, mean, f"{max(bits):.1f}", possible)
    Console().print(table)
    return {name: mean_ci(bits) for name, bits in exposures.items()}


def measure(trained: Trained, config: CanaryConfig) -> list[float]:
    """Exposure of each planted secret, in bits."""
    score = make_logprob_scorer(trained, batch_size=64)
    bits = []
    for number, secret in enumerate(plant(config.number, seed=config.seed)):
        # Drawn with another seed than the secrets, among which they are ranked.
        others = alternatives(NAMES[number], config.alternatives, seed=config.seed + number + 1)
        others = [other for other in others if other != secret]
        logprobs = continuation_logprobs(trained, score, [secret, *others])
        bits.append(exposure(float(logprobs[0]), logprobs[1:]))
    return bits


if __name__ == "__main__":
    main(run, CanaryConfig)
