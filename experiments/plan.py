"""Plan a run without the hardware: compile its programs for a TPU topology and see what fits.

    python -m experiments.plan --config configs/instructgpt_6b.py --topology v5p:4x4x4 \
        --parallel.fsdp 32 --parallel.tensor 2

The compiler is the real one (libtpu, extra ``tpu``); nothing runs. Memory is what it allots on one
chip. Times are a roofline: what the operations, the memory traffic and the links would take at
their published peaks, each alone; the largest is the estimate, and no real step is faster.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from rlhf_jax.cli import main, read_preset
from rlhf_jax.config import InstructGPTConfig, ModelConfig, ParallelConfig, PlanConfig
from rlhf_jax.data.files import check_writable, write_atomically
from rlhf_jax.data.tokenizer_files import load_tokenizer
from rlhf_jax.errors import InputError, check
from rlhf_jax.planning import report
from rlhf_jax.planning.chips import Chip, chip_of, devices_of
from rlhf_jax.planning.measure import Measured, measure
from rlhf_jax.planning.programs import PROGRAMS, Models
from rlhf_jax.runs.fit import episode_length, fit_context
from rlhf_jax.training.corpora import with_block
from rlhf_jax.training.mesh import make_mesh
from rlhf_jax.training.parallel import Parallel

ACCUMULATES = {"sft": "sft", "reward": "reward", "ppo": "ppo"}
"""Programs with micro-batches, and the stage whose ``optim.accumulate`` they read."""


def run(config: PlanConfig) -> list[Measured]:
    """Compile the programs for the topology and say what fits, or search for what does."""
    if config.out is not None:
        check_writable(config.out)
    unknown = [name for name in config.programs if name not in PROGRAMS]
    check(not unknown, f"--programs {unknown}: expected some of {list(PROGRAMS)}")
    chip, devices = chip_of(config.topology), devices_of(config.topology)
    chips = len(devices) // chip.devices
    models = models_of(config)
    config = replace(config, chain=with_lengths(config.chain, models.policy.context))
    if config.search:
        text = search(config, devices, chip, models)
        return publish(config, text, [])
    parallel = Parallel("mesh", make_mesh(config.parallel, devices))
    measured = []
    for name in config.programs:
        print(f"compiling {name} for {config.topology} ...", file=sys.stderr, flush=True)
        measured.append(compiled(name, config, models, parallel, chip))
    lines = [
        heading(config, models, parallel, chip, chips),
        report.memory_table(measured, chip),
        *suggestions(config, models, parallel, measured, chip, chips),
        TIMES,
        report.cost_table(measured, chip, chips),
        report.collective_table(measured),
        report.whole_table(measured),
    ]
    return publish(config, "\n\n".join(lines), measured)


TIMES = (
    "Times are an estimate: each of operations, memory traffic (what every step of the compiled "
    "program reads and writes) and links at its published peak; the largest is the estimate. The "
    "roofline is the operations, or the arguments read once."
)


def publish(config: PlanConfig, text: str, measured: list[Measured]) -> list[Measured]:
    """Print the plan, and write it to ``out`` if there is one."""
    print(text)
    if config.out is not None:
        write_atomically(config.out, text + "\n")
    return measured


def models_of(config: PlanConfig) -> Models:
    """The shapes of the chain, the reward model of another preset if ``--reward`` gives one."""
    policy = config.chain.pretrain.model
    scalar = policy
    if config.reward is not None:
        preset = read_preset(str(config.reward))
        if not isinstance(preset, InstructGPTConfig):
            raise InputError(f"--reward {config.reward}: expected a preset of the whole chain")
        scalar = preset.pretrain.model
    if config.vocab_size:
        return Models(policy, scalar, config.vocab_size)
    tokenizer = config.chain.pretrain.tokenizer
    ids = tokenizer.vocab_size
    if tokenizer.path is not None:
        ids = load_tokenizer(tokenizer.path).vocab_size
    rows = tokenizer.padded(ids)
    return Models(replace(policy, unused_rows=rows - ids), scalar, rows)


def with_lengths(chain: InstructGPTConfig, context: int) -> InstructGPTConfig:
    """Lengths that only the data would tell are those that fill the context."""
    sft, reward = fit_context(chain.sft, context), fit_context(chain.reward, context)
    ppo = fit_context(chain.ppo, context)
    sft = replace(sft, block_size=sft.block_size or episode_length(sft))
    text = with_block(ppo.ptx_data, episode_length(ppo))
    return replace(chain, sft=sft, reward=reward, ppo=replace(ppo, ptx_data=text))


def compiled(
    name: str, config: PlanConfig, models: Models, parallel: Parallel, chip: Chip
) -> Measured:
    """One program, compiled and measured."""
    program = PROGRAMS[name](config.chain, models, parallel)
    return measure(*program, effort=config.effort, chip=chip)


def heading(config, models: Models, parallel: Parallel, chip: Chip, chips: int) -> str:
    """What the plan is of."""
    mesh = " x ".join(f"{name} {size}" for name, size in parallel.mesh.shape.items())

    def shape(model: ModelConfig) -> str:
        return f"{model.n_layers} layers of width {model.d_model}"

    c = config.chain
    micro = ", ".join(f"{n} {getattr(c, n).optim.accumulate}" for n in ("sft", "reward", "ppo"))
    return "\n".join(
        [
            f"## {chips} chips ({config.topology}), mesh {mesh}",
            "",
            f"Policy of {shape(models.policy)}, reward and value models of {shape(models.scalar)}, "
            f"vocabulary {models.vocab_size:,}; {c.ppo.batch_size} episodes of "
            f"{c.ppo.prompt_length} + {c.ppo.response_length} tokens in {c.ppo.num_minibatches} "
            f"minibatches, {c.ppo.ptx_batch_size} rows of pretraining text with each; "
            f"micro-batches: {micro}. GiB on one chip:",
        ]
    )


def with_accumulate(chain: InstructGPTConfig, stage: str, count: int) -> InstructGPTConfig:
    """A chain of which one stage sums over so many micro-batches."""
    config = getattr(chain, stage)
    return replace(chain, **{stage: replace(config, optim=replace(config.optim, accumulate=count))})


def microbatches(chain: InstructGPTConfig, stage: str, parallel: Parallel) -> list[int]:
    """Numbers of micro-batches that leave each part of the mesh at least one row."""
    if stage == "ppo":
        rows = chain.ppo.batch_size // chain.ppo.num_minibatches
    else:
        rows = getattr(chain, stage).batch_size
    fitting = range(1, rows // parallel.row_shards + 1)
    return [n for n in fitting if rows % (n * parallel.row_shards) == 0]


def suggestions(config, models, parallel, measured, chip: Chip, chips: int) -> Iterator[str]:
    """For each program that does not fit, the nearest setting that would."""
    for name, program in zip(config.programs, measured, strict=True):
        if program.fits(chip):
            continue
        yield f"**{program.name}**: {nearest(name, config, models, parallel, program, chip, chips)}"


def nearest(name, config, models, parallel, program, chip: Chip, chips: int) -> str:
    """What would make a program fit that does not."""
    if name in ACCUMULATES:
        stage = ACCUMULATES[name]
        now = getattr(config.chain, stage).optim.accumulate
        for count in microbatches(config.chain, stage, parallel):
            if count <= now:
                continue
            tried = replace(config, chain=with_accumulate(config.chain, stage, count))
            again = compiled(name, tried, models, parallel, chip)
            if again.fits(chip):
                return (
                    f"fits with --chain.{stage}.optim.accumulate {count} "
                    f"({report.gib(again.bytes)} GiB)"
                )
    if program.error:
        return "no number of micro-batches fits on this mesh; try --search True or more chips"
    more = -(-program.bytes * chips // int(chip.hbm))
    return f"needs about {more} chips if all of it is split evenly (estimate)"


def search(config: PlanConfig, devices, chip: Chip, models: Models) -> str:
    """Every mesh with the smallest number of micro-batches that fits it, ranked by the estimate.

    Equal estimates are told apart by the sum of the three bounds. More micro-batches are never
    quicker: each gathers the weights again.
    """
    lines = []
    for name in config.programs:
        tried = []
        for parallel in meshes(devices, models):
            shape = "x".join(map(str, parallel.mesh.shape.values()))
            for chain, micro in attempts(config.chain, name, parallel):
                m = compiled(name, replace(config, chain=chain), models, parallel, chip)
                bounds = m.seconds(chip, len(devices))
                state = report.verdict(m, chip)
                print(f"{name} {shape} micro-batches {micro}: {state}", file=sys.stderr, flush=True)
                rank = (not m.fits(chip), max(bounds.values()), sum(bounds.values()))
                tried.append((rank, bounds, shape, micro, m, state))
                if m.fits(chip) or m.hopeless(chip):
                    break
        tried.sort(key=lambda row: row[0])
        rows = []
        for rank, bounds, shape, micro, m, state in tried:
            times = (rank[1], bounds["memory"], bounds["links"])
            durations = [report.duration(seconds) if not m.error else "" for seconds in times]
            room = "" if m.error else report.gib(m.bytes)
            rows.append([shape, str(micro), room, *durations, state])
        header = ["data x fsdp x tensor", "micro-batches", "GiB per chip"]
        header += ["estimate", "memory", "links", ""]
        title = f"## {name} on {config.topology}: those that fit, fastest first, then the others"
        lines += [title, report.table(header, rows)]
    return "\n\n".join(lines)


def meshes(devices, models: Models) -> Iterator[Parallel]:
    """Every mesh whose tensor axis divides the heads."""
    count = len(devices)
    sizes = [n for n in range(1, count + 1) if count % n == 0]
    heads = (models.policy.n_heads, models.scalar.n_heads)
    for fsdp, tensor in product(sizes, sizes):
        if count % (fsdp * tensor) == 0 and all(h % tensor == 0 for h in heads):
            layout = ParallelConfig(fsdp=fsdp, tensor=tensor)
            yield Parallel("mesh", make_mesh(layout, devices))


def attempts(
    chain: InstructGPTConfig, name: str, parallel: Parallel
) -> Iterator[tuple[InstructGPTConfig, int]]:
    """(chain, number of micro-batches), fewest first; none if the mesh does not divide the rows."""
    if name in ACCUMULATES:
        stage = ACCUMULATES[name]
        for micro in microbatches(chain, stage, parallel):
            yield with_accumulate(chain, stage, micro), micro
    elif chain.ppo.batch_size % parallel.row_shards == 0:
        yield chain, 1


if __name__ == "__main__":
    main(run, PlanConfig)
