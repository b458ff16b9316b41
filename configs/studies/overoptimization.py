"""How far can a reward model be optimised before people like the answers less?

python -m experiments.study configs/studies/overoptimization.py --seeds 5 --jobs 2
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

from configs import quickstart
from rlhf_jax.config import (
    CombineConfig,
    InstructGPTConfig,
    KLConfig,
    PPOConfig,
    TextDataConfig,
)
from rlhf_jax.studies.overoptimization import (
    NAMES,
    TABLES,
    accuracy,
    derived,
    draw_ways,
    gold_metric,
)
from rlhf_jax.studies.study import Arm, Study

SIZES = {"small": (1, 32, 2), "medium": (2, 64, 2), "large": (4, 128, 4)}
"""Layers, width and heads of the model that a reward model starts from."""
AMOUNTS = (150, 600, 2400)
"""Prompts with six ranked answers each."""
PENALTIES = {"medium_600_kl_0.1": 0.1, "medium_600_kl_0.3": 0.3}
CURVE = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
GOLD = gold_metric("sentiment")


DESIGN = """
After Gao et al. 2022, whose gold is a reward model of 6 billion parameters: here it is the
sentiment task's scorer, a program, and people's rankings are made of its scores with noise (two
labelers agree on 73 % of pairs). The policy has two layers of 64 and starts from an SFT model of
its own.

A reward model starts from an SFT model of its own size (two layers of 64 is the policy's) that read
the same text and demonstrations, and learns from rankings of six answers to each of 150, 600 or
2,400 prompts, once. Its score is divided by its spread, so that a unit is the same for all.

Both ways begin at the SFT model, from whose gold and score they are counted. Best of n takes the n
answers from 512 to each of 64 prompts, by the mean over all choices of n; its KL is the formula's.
PPO has no KL penalty, a constant rate and a value network of the policy's size for every reward
model; KL, gold and score are those of each iteration's 128 answers, before it learns from them.
Nothing of what is measured reaches training.

`α` and `β` are those of d (α − β d) for best of n and of d (α − β ln d) for PPO, d = √KL, fitted to
all points of a seed. The errors are of fits to the points below 0.6 of the largest d, beyond it:
root mean squares, in gold. The two arms with a KL penalty (0.1 and 0.3 a nat, fixed) are compared
with the same reward model's PPO without one, stopped at the KL at which they end.
""".strip()


FINDINGS = """
Of five seeds.

**Best of n turns where there were few labels.** With 150 prompts gold ends below the SFT model's
for the small and the medium reward model (the large one's loss is not shown); with 600 it does for
the small one, while the medium one loses 0.21 of 0.31 and the large one nothing that is shown; with
2,400 it rises up to n = 512 at every size. With data α grows and β falls.

**PPO turns with every reward model.** Gold is highest at 8 to 17 nats, and at the end, 45 to 100
nats away, 0.3 to 1.1 of it is lost, while the score still grows. More labels raise the peak (of the
medium model 0.19, 0.50 and 0.60); a larger model loses less after it, which is not shown of any
single pair.

**The laws.** Beyond the distances of its fit d (α − β d) has a smaller error for best of n than d
(α − β ln d) where the curve turns sharply (small model, 150 and 600 prompts); elsewhere no
difference is shown. For PPO none of the three is shown to be better than another: beyond 0.6 of the
largest distance all are wrong by 0.25 to 0.6, which is as much as there was to gain.

**A penalty is more than early stopping here.** With β = 0.1 and 0.3 PPO ends 0.17 above the run
without one at the same KL. Gao et al. found the two alike. The penalised policy has learnt for 60
iterations when it is measured, and the other has come past that KL after about ten, so that this
may be the effect of more training near the SFT model as well as of the penalty.

What it does not show: models have 8 to 800 thousand parameters in their layers, gold is a program
that counts words, and there is one task. Where the saturating form cannot be fitted (nearly
straight curves) its error is missing, and n says so.
""".strip()


def sized(chain: InstructGPTConfig, size: str) -> InstructGPTConfig:
    """The chain whose models have this size."""
    n_layers, d_model, n_heads = SIZES[size]
    model = replace(chain.pretrain.model, n_layers=n_layers, d_model=d_model, n_heads=n_heads)
    return replace(chain, pretrain=replace(chain.pretrain, model=model))


def base_chain() -> InstructGPTConfig:
    """The quickstart's, of a smaller policy that nothing holds back."""
    chain = sized(quickstart.get_config(), "medium")
    ppo = replace(
        chain.ppo,
        iterations=60,
        reward=(Path("reward"), Path("gold:sentiment")),
        # The gold scorer is asked beside the reward model, and counts for nothing.
        combine=CombineConfig(weights=(1.0, 0.0)),
        kl=KLConfig(coef=0.0),
        force=True,  # reward models that hardly order anything are part of the question
        optim=replace(chain.ppo.optim, lr=3e-4, schedule="constant"),
        value_optim=replace(chain.ppo.value_optim, schedule="constant"),
        run=replace(chain.ppo.run, save_every=40, eval_every=40),
    )
    # At PPO's temperature, so that both ways begin at the same answers.
    sampling = replace(chain.evaluate.sampling, temperature=1.0)
    evaluate = replace(chain.evaluate, sampling=sampling, num_prompts=64, batch_size=max(CURVE))
    rates = replace(chain.reward.optim, warmup_steps=None, warmup_share=0.1)
    return replace(
        chain, ppo=ppo, evaluate=evaluate, reward=replace(chain.reward, optim=rates, epochs=1)
    )


def with_amount(chain: InstructGPTConfig, amount: int) -> InstructGPTConfig:
    return replace(chain, compare=replace(chain.compare, num_prompts=amount))


def ppo(chain: InstructGPTConfig, coef: float = 0.0) -> PPOConfig:
    """Whatever the reward model's size, the value network is one of the policy's."""
    return replace(
        chain.ppo,
        value_init=chain.ppo.init,
        kl=replace(chain.ppo.kl, coef=coef),
        ptx_coef=0.0,
        ptx_batch_size=PPOConfig.ptx_batch_size,
        ptx_data=TextDataConfig(),
    )


def arm(size: str, amount: int, name: str = "", coef: float = 0.0) -> Arm:
    return Arm(
        name or f"{size}_{amount}",
        partial(ppo, coef=coef),
        chain=partial(with_amount, amount=amount),
        reward_from=None if size == "medium" else partial(sized, size=size),
    )


def get_study() -> Study:
    arms = [arm(size, amount) for size in SIZES for amount in AMOUNTS]
    penalised = [arm("medium", 600, name, coef) for name, coef in PENALTIES.items()]
    return Study(
        question="How far can a reward model be optimised before gold falls, by size and data?",
        base=with_amount(base_chain(), AMOUNTS[-1]),
        arms=(*arms, *penalised),
        baseline="medium_600",
        compared=("accuracy", "best_of_n_peak", "training_peak", "training_lost"),
        # Those with a penalty have the baseline's reward model.
        measure=lambda m: {} if m.arm in PENALTIES else accuracy(m),
        derive=partial(derived, stopped=dict.fromkeys(PENALTIES, "medium_600"), gold=GOLD),
        along=("objective/kl", "objective/scores", GOLD),
        best_of_curve=CURVE,
        axes=("accuracy", "training_peak"),
        names=NAMES,
        tables=TABLES,
        draw=partial(
            draw_ways,
            columns={
                size: {f"{size}_{amount}": f"{amount} prompts" for amount in AMOUNTS}
                for size in SIZES
            },
            gold=GOLD,
        ),
        design=DESIGN,
        findings=FINDINGS,
    )
