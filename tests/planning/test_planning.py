"""Plans: what is counted is right, and small programs compile for TPUs that are not there."""

import importlib.util
import re
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType

from configs import instructgpt_6b, quickstart
from experiments import plan
from rlhf_jax.config import ModelConfig, ParallelConfig, PlanConfig
from rlhf_jax.errors import InputError
from rlhf_jax.objectives.language_losses import count_targets, lm_loss
from rlhf_jax.planning import hlo, report
from rlhf_jax.planning.chips import chip_of, devices_of
from rlhf_jax.planning.flops import count_flops
from rlhf_jax.planning.measure import Measured, measure
from rlhf_jax.planning.programs import PROGRAMS, Models, sft
from rlhf_jax.training.mesh import AXES, make_mesh
from rlhf_jax.training.optimizers import make_optimizer, make_state
from rlhf_jax.training.parallel import Parallel
from rlhf_jax.training.pmap import pmap_program
from rlhf_jax.training.updates import make_update_step
from rlhf_jax.types import LMBatch

MODEL = ModelConfig(
    n_layers=2, d_model=256, n_heads=4, context=64, scan_layers=True, dtype="bfloat16"
)
MODELS = Models(MODEL, MODEL, 512)
CHIP = chip_of("v5e:2x4")
libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is missing (extra tpu)"
)

PROGRAM = """HloModule jit_step
%cond (p: (s32[])) -> pred[] {
  %c = s32[] constant(24)
  ROOT %lt = pred[] compare(%i, %c), direction=LT
}
%body (p: (s32[])) -> (s32[]) {
  %gather = bf16[64,256]{1,0} all-gather(%x), channel_id=1, replica_groups=[4,2]<=[8]
  %again = bf16[64,256]{1,0} all-gather(%y), channel_id=1, replica_groups=[4,2]<=[8]
  %scatter = f32[8]{0} reduce-scatter(%x), channel_id=2, replica_groups={{0,1,2,3},{4,5,6,7}}
  ROOT %t = (s32[]) tuple(%i)
}
%fused (p: f32[100,8]) -> f32[100,8] {
  %p = f32[100,8]{1,0} parameter(0)
  %small = f32[1,8]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %dus = f32[100,8]{1,0} dynamic-update-slice(%p, %small, %i)
}
%taken (p: f32[100,8]) -> f32[1,8] {
  %q = f32[100,8]{1,0} parameter(0)
  %j = s32[] parameter(1)
  ROOT %ds = f32[1,8]{1,0} dynamic-slice(%q, %j), dynamic_slice_sizes={1,8}
}
ENTRY %main (x: f32[8]) -> f32[8] {
  %w = (s32[]) while(%t), condition=%cond, body=%body
  %a = f32[100,8]{1,0} parameter(0)
  %b = f32[1,8]{1,0} parameter(1)
  %at = s32[] parameter(2)
  %written = f32[100,8]{1,0} fusion(%a, %b, %at), kind=kLoop, calls=%fused
  %part = f32[1,8]{1,0} fusion(%written, %at), kind=kLoop, calls=%taken
  %near = f32[100,8]{1,0:S(1)} copy(%written)
  %doubled = f32[100,8]{1,0} add(%near, %written)
  ROOT %sum = f32[8]{0} all-reduce(%x), channel_id=3, to_apply=%add
}
"""


def abstract_mesh(*shape):
    """A mesh as ours are: newer JAX has AbstractMesh's axes typed by default (Explicit)."""
    return AbstractMesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def test_collectives_are_counted_with_their_loops():
    facts = hlo.read(PROGRAM)
    found = {name: (count, bytes_) for name, count, bytes_ in hlo.totals(facts.collectives)}
    assert found == {
        "all-gather": (24, 24 * 64 * 256 * 2),  # two pieces of one channel are one collective
        "reduce-scatter": (24, 24 * 8 * 4 * 4),  # four chips' operands
        "all-reduce": (1, 32),
    }
    update = 32 + 4 + 32  # its part read and written, and where; of the buffer nothing
    slice_ = 32 + 4 + 32
    copy, add = 3200, 2 * 3200  # one end of the copy, and so one operand, is not in HBM
    assert facts.moved == update + slice_ + copy + add


def test_operations_are_counted_with_their_loops():
    def f(x, w):
        y, _ = jax.lax.scan(lambda c, _: (c @ w, None), x, None, length=5)
        return jnp.einsum("bij,bjk->bik", y[None], y[None]).sum()

    shapes = jax.ShapeDtypeStruct((8, 8), jnp.float32), jax.ShapeDtypeStruct((8, 8), jnp.float32)
    jaxpr = jax.jit(f).trace(*shapes).jaxpr.jaxpr
    assert count_flops(jaxpr) == 6 * 2 * 8**3


def test_a_training_step_costs_three_forward_passes():
    """6 N tokens (Kaplan et al. 2020) for the matrices, and attention on top."""
    parallel = Parallel("mesh", make_mesh(ParallelConfig(), jax.devices()))
    chain = small_chain()
    program = sft(chain, MODELS, parallel)
    flops = count_flops(program.jitted.trace(*program.arguments).jaxpr.jaxpr)
    tokens = chain.sft.batch_size * chain.sft.block_size
    matrices = 2 * 12 * 256**2 + 512 * 256
    attention = 3 * 2 * 2 * 2 * tokens * chain.sft.block_size * 256
    assert flops == 6 * matrices * tokens + attention


def test_what_does_not_fit_is_named():
    chip = CHIP
    fits = Measured("a", {"weights": 2**30}, 0, 0, [], (0, ""), 0.0, "")
    assert report.verdict(fits, chip) == "fits"
    large = fits._replace(kinds={"weights": 2**30, "cache": 2**34})
    assert report.verdict(large, chip) == "does not fit: most of it is KV cache"
    error = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 23.1G of 15.7G hbm."
    assert "Used 23.1G of 15.7G hbm" in report.verdict(fits._replace(error=error), chip)
    error = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (109.39G) exceeds available HBM (95.74G)."
    )
    assert "Used 109.39G of 95.74G hbm beside" in report.verdict(fits._replace(error=error), chip)


def test_a_program_whose_arguments_do_not_fit_is_not_compiled():
    mesh = abstract_mesh(1, 1, 1)
    program = PROGRAMS["decode"](small_chain(), MODELS, Parallel("mesh", mesh))
    found = measure(*program, effort=-1.0, chip=CHIP._replace(hbm=2**20))
    assert found.hopeless(CHIP._replace(hbm=2**20)) and not found.hopeless(CHIP)
    assert "by its arguments alone" in report.verdict(found, CHIP._replace(hbm=2**20))


@pytest.mark.parametrize("packing", [True, False])
def test_packed_updates_are_planned_as_if_padded_and_say_so(packing):
    """How many blocks would be filled is for the data to say."""
    chain = small_chain()
    chain = replace(chain, ppo=replace(chain.ppo, packing=packing))
    program = PROGRAMS["ppo"](chain, MODELS, Parallel("mesh", abstract_mesh(1, 1, 1)))
    assert program.name.endswith(", as if padded") == packing


@libtpu
@pytest.mark.tpu_compile
def test_search_takes_each_mesh_with_the_fewest_micro_batches_that_fit(capsys):
    """On a chip with room for all but the largest temporaries."""
    model = replace(MODEL, n_heads=1)  # which no tensor axis divides
    models, devices = Models(model, model, 512), devices_of("v5e:2x2")
    config = PlanConfig(chain=small_chain(), topology="v5e:2x2", programs=("sft",))
    one = plan.compiled("sft", config, models, next(plan.meshes(devices, models)), CHIP)
    small = CHIP._replace(hbm=one.bytes - 1)
    text = plan.search(config, devices, small, models)
    lines = re.findall(
        r"^\| (\d+x\d+x\d+) \| (\d+) \| .* \| (.*) \| .* \| .* \| (.*) \|$", text, re.M
    )
    tried = [(shape, int(micro)) for shape, micro, _, _ in lines]
    assert {shape for shape, _ in tried} == {"4x1x1", "2x2x1", "1x4x1"}
    assert ("4x1x1", 1) in tried and ("4x1x1", 2) in tried
    fitting = [state == "fits" for *_, state in lines]
    assert fitting == sorted(fitting, reverse=True) and any(fitting) and not all(fitting)
    assert all(estimate for *_, estimate, state in lines if state == "fits")
    once = [shape for shape, *_, state in lines if state == "fits"]
    assert len(once) == len(set(once)), "more micro-batches than needed were tried"
    assert "4x1x1 micro-batches 1: does not fit" in capsys.readouterr().err


def test_unknown_topologies_and_programs():
    with pytest.raises(InputError, match="v9:2x2: expected KIND:AxB"):
        chip_of("v9:2x2")
    with pytest.raises(InputError, match="expected some of"):
        plan.run(PlanConfig(programs=("rollout",)))


def small_chain():
    c = quickstart.get_config()
    lengths = dict(prompt_length=16, response_length=16)
    adam = replace(c.sft.optim, optimizer="adamw")
    return replace(
        c,
        pretrain=replace(c.pretrain, model=MODEL),
        sft=replace(c.sft, optim=adam, batch_size=16, block_size=32, **lengths),
        reward=replace(c.reward, batch_size=8, **lengths),
        ppo=replace(
            c.ppo,
            batch_size=64,
            ppo_epochs=2,
            num_minibatches=4,
            ptx_coef=1.0,
            ptx_batch_size=16,
            ptx_data=replace(c.ppo.ptx_data, block_size=32),
            **lengths,
        ),
    )


@libtpu
@pytest.mark.tpu_compile
@pytest.mark.parametrize(
    "layout, names",
    [(ParallelConfig(), ("sft",)), (ParallelConfig(fsdp=4, tensor=2), tuple(PROGRAMS))],
    ids=["data", "fsdp x tensor"],
)
def test_small_programs_compile_for_a_v5e(layout, names):
    parallel = Parallel("mesh", make_mesh(layout, devices_of("v5e:2x4")))
    whole = None
    for name in names:
        program = PROGRAMS[name](small_chain(), MODELS, parallel)
        found = measure(*program, effort=-1.0, chip=CHIP)
        assert found.fits(CHIP), found.error
        assert found.collectives and found.flops and found.moved
        whole = whole or sum(x.size * 4 for x in jax.tree.leaves(program.kinds["weights"]))
        if name == "sft":
            share = found.kinds["weights"] / whole
            assert share == 1.0 if layout.fsdp == 1 else share < 0.2


@libtpu
@pytest.mark.tpu_compile
def test_a_token_reads_weights_and_cache_once():
    """And copies no cache, although the model's layers are scanned."""
    chain = small_chain()
    chain = replace(chain, ppo=replace(chain.ppo, prompt_length=1008))
    model = replace(MODEL, context=1024)
    parallel = Parallel("mesh", make_mesh(ParallelConfig(fsdp=4, tensor=2), devices_of("v5e:2x4")))
    program = PROGRAMS["decode"](chain, Models(model, model, 512), parallel)
    found = measure(*program, effort=-1.0, chip=CHIP)
    assert found.moved <= 1.5 * found.least(), found
    assert found.kinds["temporaries"] < found.kinds["cache"] / 4


def test_rows_that_no_token_has_are_planned_as_such():
    chain = instructgpt_6b.get_config()
    models = plan.models_of(PlanConfig(chain=chain))
    assert (models.vocab_size, models.policy.unused_rows) == (50304, 50304 - 50258)
    assert models.scalar == chain.pretrain.model


def sft_on_eight_chips(rows: int, length: int, vocabulary: int, **changes) -> Measured:
    """SFT's update of ``MODEL`` with ``changes``, split over rows and heads."""
    parallel = Parallel("mesh", make_mesh(ParallelConfig(fsdp=4, tensor=2), devices_of("v5e:2x4")))
    chain = replace(
        small_chain(), sft=replace(small_chain().sft, batch_size=rows, block_size=length)
    )
    model = replace(MODEL, context=length, **changes)
    program = PROGRAMS["sft"](chain, Models(model, model, vocabulary), parallel)
    found = measure(*program, effort=-1.0, chip=CHIP)
    assert found.fits(CHIP), found.error
    return found


@libtpu
@pytest.mark.tpu_compile
def test_logits_in_parts_stay_on_their_devices():
    """They save memory there, and little more passes the links."""
    whole = sft_on_eight_chips(16, 512, 8192)
    parts = sft_on_eight_chips(16, 512, 8192, logit_rows=4096)
    half = 16 // 4 * 512 * 8192 // 2 * 4 // 2  # of the logits in float32
    assert whole.kinds["temporaries"] - parts.kinds["temporaries"] > half
    assert parts.seconds(CHIP, 8)["links"] < 1.5 * whole.seconds(CHIP, 8)["links"]


@libtpu
@pytest.mark.tpu_compile
def test_splash_attention_keeps_no_scores():
    """Forward and backward; the plan counts the same products."""
    plain = sft_on_eight_chips(4, 1024, 512)
    fused = sft_on_eight_chips(4, 1024, 512, attention="fused")
    scores = MODEL.n_layers * 2 * 1024 * 1024 * 2  # of two heads in bfloat16, for the backward pass
    assert plain.kinds["temporaries"] - fused.kinds["temporaries"] > scores
    assert fused.moved < plain.moved
    assert fused.flops == plain.flops


@libtpu
@pytest.mark.tpu_compile
def test_no_gradient_of_attention_is_made_whole():
    """Nor a kernel gathered, where 32 parts lie across the ends of queries, keys and values."""
    wide = replace(MODEL, d_model=1024, n_heads=32, remat="full")
    chain = replace(small_chain(), sft=replace(small_chain().sft, batch_size=1))
    parallel = Parallel("mesh", make_mesh(ParallelConfig(tensor=32), devices_of("v5e:4x8")))
    found = measure(
        *PROGRAMS["sft"](chain, Models(wide, wide, 512), parallel), effort=-1.0, chip=CHIP
    )
    assert found.collectives and found.largest_gathered()[0] < 1024 * 1024 / 2, found.error


@pytest.mark.parametrize("name", list(PROGRAMS))
def test_a_batch_that_the_mesh_cannot_split_is_named(name):
    mesh = abstract_mesh(1, 7, 1)
    chain = small_chain()
    with pytest.raises(InputError, match=r"batch_size.*=\d+ is not divisible by the 7 parts"):
        PROGRAMS[name](chain, Models(MODEL, MODEL, 512), Parallel("mesh", mesh))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "ppo"])
def test_logits_in_parts_are_planned_in_parts(name):
    """Four products with the vocabulary instead of three: a part is made again backward."""
    mesh = abstract_mesh(1, 1, 1)
    flops = []
    for rows in (0, 32):
        models = Models(replace(MODEL, logit_rows=rows), MODEL, 512)
        program = PROGRAMS[name](small_chain(), models, Parallel("mesh", mesh))
        flops.append(count_flops(program.jitted.trace(*program.arguments).jaxpr.jaxpr))
    updates = {"sft": 1, "ppo": 8}[name]
    assert flops[1] - flops[0] == updates * 32 * 16 * 2 * 256 * 512


@libtpu
@pytest.mark.tpu_compile
def test_pmap_compiles_for_a_v5e():
    devices = list(devices_of("v5e:2x4"))
    from rlhf_jax.models.heads import make_language_model

    lm = make_language_model(MODEL, 512)
    tx = make_optimizer(small_chain().sft.optim, 1, updates_per_step=1)

    def loss_fn(params, batch, key, count):
        return lm_loss(lm.packed_logits(params, batch, None), batch, count=count)

    step = make_update_step(loss_fn, count_targets, tx, accumulate=1, ema_decay=0.0)
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(lm.init, key)
    state = jax.eval_shape(partial(make_state, tx=tx, ema_decay=0.0), params)
    ids = jax.ShapeDtypeStruct((8, 2, 32), jnp.int32)
    flags = jax.ShapeDtypeStruct((8, 2, 32), bool)
    batch = LMBatch(ids, flags, ids, ids)
    compiled = pmap_program(step, devices, 0).lower(state, batch, key, None).compile()
    facts = hlo.read(compiled.as_text())
    kinds = {kind for kind, _, _ in hlo.totals(facts.collectives)}
    assert kinds == {"all-reduce"}, "data parallelism sums gradients and nothing else"
