r"""The average of models of one shape, weight by weight, as a run folder that every command takes.

    python -m experiments.average runs/reward0 runs/reward1 runs/reward2 --dir runs/warm \
        --heldout comparisons.jsonl
    python -m experiments.average runs/sft runs/ppo --weights 0.3 0.7 --dir runs/between
    python -m experiments.average runs/ppo0 runs/ppo1 --method slerp --init runs/sft \
        --towards-init 0.3 --dir runs/warp

Of reward models that is WARM (Ramé et al. 2024): an ensemble's robustness at the cost of one. Of
policies it trades the reward for what alignment cost (Lin et al. 2023), or is a round of WARP (Ramé
et al. 2024): policies of several seeds are merged along a sphere, then mixed with their start.
An average is good only of models that were trained from one and the same.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from rlhf_jax.cli import main, to_dict
from rlhf_jax.config import AverageConfig
from rlhf_jax.config.data import column_names
from rlhf_jax.data.formats import read_comparisons
from rlhf_jax.errors import InputError, check
from rlhf_jax.evaluation.metrics import pair_accuracy, spread_within_prompts
from rlhf_jax.inference.reward_scores import make_reward_scorer
from rlhf_jax.models.averaging import spherical_average, weighted_average
from rlhf_jax.models.heads import make_scalar_model
from rlhf_jax.models.transformer import as_layout
from rlhf_jax.runs.kept_steps import is_run, run_of, score_gain
from rlhf_jax.runs.model_card import Trained, save_model_card
from rlhf_jax.runs.progress import say
from rlhf_jax.runs.records import read_run
from rlhf_jax.runs.stage import Stage
from rlhf_jax.runs.trained import check_model, load_any, load_reader, merged, trained_lengths
from rlhf_jax.training.parallel import make_parallel
from rlhf_jax.types import Params

KINDS = {"lm": "a language model", "scalar": "a reward or value model"}
# None of these changes what a parameter means.
FREE = ("dropout", "attention", "scan_layers", "remat", "logit_rows", "dtype", "lora_scale")
"""Fields of ModelConfig in which models of one shape may differ: the average has the first's."""


def run(config: AverageConfig) -> dict:
    """The run folder of the average: parameters, shape, tokenizer, and what it is made of."""
    with Stage(config, "average", __file__) as stage:
        if stage.summary is not None:
            return stage.summary
        paths = config.models
        first = check_models(config)
        weights = config.weights or (1 / len(paths),) * len(paths)
        lengths = next(filter(None, map(trained_lengths, paths)), None)
        evaluate = make_evaluation(config, first, lengths)
        figures = []

        def parameters() -> Iterator[Params]:
            for path in stage.each(paths, total=len(paths), unit=("model", "models")):
                # Merged first: an average of A and of B is no average of A B.
                params = in_layout(merged(load_any(path, flag="models")).params, first)
                figures.append(evaluate(params))
                yield params

        # Read as they are asked for, so that never all of them are in memory.
        params = average_policies(config, first, parameters(), weights)
        made_of = dict(zip(map(str, paths), weights, strict=True))
        save_model_card(
            config.dir,
            first.model,
            first.vocab_size,
            first.tokenizer,
            kind=first.kind,
            lengths=lengths,
            average_of=made_of,
        )
        return stage.finish(
            params,
            made_of=made_of,
            method=config.method,
            **({} if config.init is None else {"towards": {str(config.init): config.towards_init}}),
            heldout=evaluate(params),
            heldout_of_each=dict(zip(made_of, figures, strict=True)),
            **({"gain": average_gain(paths, weights)} if first.kind == "scalar" else {}),
        )


def in_layout(params: Params, first: Trained) -> Params:
    """``params`` with their layers as ``first`` has them, one by one or stacked."""
    return params | {"trunk": as_layout(params["trunk"], first.model)}


def average_policies(
    config: AverageConfig, first: Trained, trees: Iterator[Params], weights: Sequence[float]
) -> Params:
    """What ``config.method`` makes of them, and its mix with ``config.init``."""
    if config.init is None:
        return weighted_average(trees, weights)
    init = in_layout(merged(load_any(config.init, flag="init")).params, first)
    if config.method == "linear":
        params = weighted_average(trees, weights)
    else:
        # Layers that are stacked for a scan would have one angle for all.
        one_by_one = first._replace(model=replace(first.model, scan_layers=False))
        apart = (in_layout(params, one_by_one) for params in trees)
        params, straight = spherical_average(in_layout(init, one_by_one), apart, weights)
        params = in_layout(params, first)
        if straight:
            say(
                f"average: in {straight} arrays the models differ from {config.init} in no or in "
                "one direction: these are averaged linearly"
            )
    back = config.towards_init
    return weighted_average([init, params], [back, 1 - back])


def check_models(config: AverageConfig) -> Trained:
    """The first model without its parameters. Raises InputError where the others are not alike."""
    paths = config.models
    check(len(paths) > 1, f"models names {len(paths)}: give two or more to average")
    twice = sorted({str(path) for path in paths if paths.count(path) > 1})
    check(not twice, f"models names {', '.join(twice)} twice: a model's weight is --weights")
    check(
        len(config.weights) in (0, len(paths)),
        f"weights has {len(config.weights)} numbers, expected one for each of {len(paths)} models",
    )
    for path in paths:
        check_model(path, flag="models")
    if config.init is not None:
        check_model(config.init, flag="init")
    named = [*paths, *([] if config.init is None else [config.init])]
    flags = ["models"] * len(paths) + ["init"]
    first, *others = (load_reader(path, flag=f) for path, f in zip(named, flags, strict=False))
    for path, other in zip(named[1:], others, strict=True):
        pair = f"{paths[0]} and {path}"
        check(
            first.kind == other.kind,
            f"{paths[0]} is {KINDS[first.kind]} and {path} {KINDS[other.kind]}: expected models "
            "of one kind",
        )
        shapes = [to_dict(x.model) | {"vocab_size": x.vocab_size} for x in (first, other)]
        unlike = [n for n in shapes[0] if shapes[0][n] != shapes[1][n] and n not in FREE]
        check(not unlike, f"{pair} differ in {', '.join(unlike)}: expected models of one shape")
        check(
            first.tokenizer.digest == other.tokenizer.digest,
            f"{pair} have different tokenizers: expected models of one",
        )
    check(
        config.init is None or first.kind == "lm",
        f"--init is of policies, and {paths[0]} is {KINDS[first.kind]}",
    )
    check(
        config.heldout is None or first.kind == "scalar",
        f"--heldout measures reward models, and {paths[0]} is {KINDS[first.kind]}",
    )
    say_what_differs(paths, first)
    return first._replace(model=replace(first.model, lora_scale=1.0))


def say_what_differs(paths: Sequence[Path], first: Trained) -> None:
    """Say why an average of these may be no good, as far as their runs tell."""
    runs = [read_run(run_of(path), stage=None) for path in paths if is_run(run_of(path))]
    if len(runs) < len(paths):
        return
    starts = {start.digest for run in runs if (start := run.models.get("init"))}
    if len({run.stage for run in runs}) == 1 and len(starts) > 1:
        say("average: these models were not trained from one: measure what their average is worth")
    if first.kind == "scalar" and len({run.config.get("unit_std", False) for run in runs}) > 1:
        say("average: some of these were trained with unit_std=True: their scores differ in scale")


def average_gain(paths: Sequence[Path], weights: Sequence[float]) -> float:
    """Σₘ wₘ gₘ: what ``--unit-std`` has multiplied the scores by (experiments.audit divides)."""
    return float(np.dot(weights, list(map(score_gain, paths))))


def make_evaluation(
    config: AverageConfig, first: Trained, lengths: Mapping[str, int] | None
) -> Callable[[Params], dict[str, float]]:
    """``params -> figures`` on ``--heldout``: accuracy, margin, and the spread within prompts."""
    if config.heldout is None:
        return lambda params: {}
    if lengths is None:
        raise InputError(
            "--heldout needs a model that says with what lengths it was trained (a run of "
            "experiments.reward); none of these does"
        )
    rows = read_comparisons(config.heldout, column_names(config.columns))
    score = make_reward_scorer(
        make_scalar_model(first.model, first.vocab_size),
        first.tokenizer,
        make_parallel(config.parallel),
        **lengths,
    )

    def evaluate(params: Params) -> dict[str, float]:
        scores, _, ranks, _ = score(params, rows)
        accuracy = pair_accuracy(scores, ranks)
        return {
            "eval/accuracy": accuracy.overall,
            "eval/margin": accuracy.margin,
            "eval/spread": spread_within_prompts(scores),
        }

    return evaluate


if __name__ == "__main__":
    main(run, AverageConfig)
