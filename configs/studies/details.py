"""Which details of PPO matter at this size? Each that has a switch, turned over by itself.

python -m experiments.study configs/studies/details.py --seeds 10 --jobs 2
"""

from dataclasses import replace
from functools import partial
from typing import Any

from configs import algorithms, quickstart
from configs.studies.overoptimization import sized, with_amount
from rlhf_jax.config import InstructGPTConfig, PPOConfig
from rlhf_jax.studies.measures import gold_over_curve
from rlhf_jax.studies.study import Arm, Study

BEST_OF = (2, 4, 16, 64, 256)
CURVE = ("sft", *(f"best_of_{n}" for n in BEST_OF))

DETAILS: dict[str, dict[str, Any]] = {
    # Numbers as docs/implementation_details.md counts them.
    "constant_rate": {"optim.schedule": "constant", "value_optim.schedule": "constant"},  # N 5
    "value_head_zero": {"value_head": "zero"},  # N 11
    "value_on_policys_trunk": {"value_trunk": "shared"},  # N 11
    "no_eos_penalty": {"missing_eos_penalty": None},  # N 14
    "gamma_0.95": {"gamma": 0.95},  # N 15
    "lambda_0.9": {"lam": 0.9},
    "lambda_1": {"lam": 1.0},
    "one_minibatch": {"num_minibatches": 1},  # N 16
    "sixteen_minibatches": {"num_minibatches": 16},  # N 16
    "four_epochs": {"ppo_epochs": 4},  # N 16
    "kl_k2": {"kl.estimator": "k2"},  # N 17
    "kl_k3": {"kl.estimator": "k3"},  # N 17
    "kl_in_loss_k2": {"kl.place": "loss", "kl.estimator": "k2"},
    "kl_in_loss_k3": {"kl.place": "loss", "kl.estimator": "k3"},
    "whitened_rewards": {"whiten_rewards": True},  # N 18, N+ 24
    "plain_advantages": {"whiten_advantages": False},  # N 18, N+ 25
    "value_clip_0.2": {"value_clip_eps": 0.2},  # N 19
    "no_value_clip": {"value_clip_eps": 1e3},  # N 19
    "fixed_kl_coefficient": {"kl.target": 0.0},  # N 20
    "adam_eps_1e-8": {"optim.eps": 1e-8, "value_optim.eps": 1e-8},  # N 21
    "log_probs_read_again": {"recompute_logprobs": True},  # N+ 26: nothing should change
    "one_rate_for_both": {"value_optim.lr": 5e-4},  # N+ 28
    "no_clip": {"policy_loss": "unclipped"},
    "higher_upper_clip": {"clip_eps_high": 0.28},
    "means_of_answers": {"aggregation": "sequence_mean"},
    "sums_of_answers": {"aggregation": "sequence_sum"},
    "entropy_bonus": {"entropy_coef": 0.01},
    "clipped_scores": {"combine.clip": 1.5},
    "averaged_weights": {"optim.ema_decay": 0.95},
    "one_iteration_old": {"staleness": 1},
    "four_iterations_old": {"staleness": 4},
}
"""Fields of PPO that each arm changes, by their flags' names."""


def with_fields(config: Any, fields: dict[str, Any]) -> Any:
    """``config`` with its fields, and those of its parts, set by dotted names."""
    own = {name: value for name, value in fields.items() if "." not in name}
    # A part's fields together: one without the other may be what no config can be.
    for part in dict.fromkeys(name.partition(".")[0] for name in fields if "." in name):
        start = f"{part}."
        inner = {n.removeprefix(start): v for n, v in fields.items() if n.startswith(start)}
        own[part] = with_fields(getattr(config, part), inner)
    return replace(config, **own)


def ppo(chain: InstructGPTConfig, fields: dict[str, Any]) -> PPOConfig:
    """The quickstart's PPO without its ptx term, which would hide much of what is changed."""
    unused = {"kl.horizon": 10_000.0} if fields.get("kl.target") == 0 else {}
    unused |= {"clip_eps": 0.2} if fields.get("policy_loss") == "unclipped" else {}
    if fields.get("value_trunk") == "shared":
        unused["value_optim"] = PPOConfig().value_optim
    return with_fields(algorithms.variant(chain.ppo, "ppo"), fields | unused)


def reward_model(chain: InstructGPTConfig, **fields: Any) -> InstructGPTConfig:
    return replace(chain, reward=replace(chain.reward, **fields))


def get_study() -> Study:
    plain = partial(ppo, fields={})
    return Study(
        question="Which details of PPO change gold score, KL or length at this size?",
        base=with_amount(sized(quickstart.get_config(), "medium"), 2400),
        arms=(
            Arm("sft"),
            *(Arm(f"best_of_{n}", best_of=n) for n in BEST_OF),
            Arm("ppo", plain),
            # N 8 and N 9: of the reward model.
            Arm("reward_head_zero", plain, chain=partial(reward_model, head="zero")),
            Arm("reward_not_scaled", plain, chain=partial(reward_model, unit_std=False)),
            *(Arm(name, partial(ppo, fields=fields)) for name, fields in DETAILS.items()),
        ),
        baseline="ppo",
        compared=("gold_in_sd", "gold_at_kl", "kl", "length"),
        derive=partial(gold_over_curve, curve=CURVE),
        design="""
The policy has two layers of 64; data and stages are the quickstart's, with 2,400 prompts of six
ranked answers. `ppo` is the quickstart's PPO without pretraining text: 32 iterations of 128
answers, an adaptive KL coefficient with a target of 3.2 nats, advantages whitened, the value
network from the reward model. Every other arm changes one detail of it, as listed below, on the
same SFT and reward model (but for the two arms that change the reward model), the same prompts and
the same seed.

`gold_at_kl` is an arm's gold less that of best-of-n at the KL at which the arm ended, in the same
seed (linear in √KL between two n), so that a detail which only moves the KL does not look better or
worse. An arm that ends beyond n = 256 (4.5 nats) in a seed has no such figure there.
`log_probs_read_again` should change nothing but rounding: it says how much of a difference that
alone makes.
""".strip(),
    )
