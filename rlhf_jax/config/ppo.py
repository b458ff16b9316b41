"""PPO: what it optimises, how it learns, and when it does not start."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from rlhf_jax.config.bounds import (
    BatchRows,
    Count,
    CountOrZero,
    Finite,
    OverOne,
    Positive,
    PositiveOrZero,
    Share,
    ShareBelowOne,
    ShareOverZero,
    check_bounds,
)
from rlhf_jax.config.data import TextDataConfig, column_names
from rlhf_jax.config.effect import Main, idle, never, only
from rlhf_jax.config.model import LoRAConfig
from rlhf_jax.config.penalties import KLConfig, SecondRewardConfig
from rlhf_jax.config.preferences import PairLossConfig
from rlhf_jax.config.rewards import CombineConfig, is_gold
from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.config.training import (
    OptimConfig,
    ParallelConfig,
    RunConfig,
    check_microbatches,
)
from rlhf_jax.errors import check

GROUPED = ("rloo", "grpo", "dr_grpo")
"""Advantages that compare the answers to one prompt."""
GRADIENT = only(objective="policy_gradient")
"""Settings that the other objectives do not read."""


@dataclass(frozen=True)
class PPOConfig:
    """PPO on the reward model's score with a per-token KL penalty, and PPO-ptx."""

    run: Annotated[RunConfig, never("keep_best")] = field(
        default_factory=lambda: RunConfig(dir=Path("runs/ppo"), save_every=5)
    )
    init: Main[Path] = Path("runs/sft")
    """The policy starts from this run."""
    reference: Path | None = None
    """Run of the same shape that the KL penalty holds the policy to; None: ``init``."""
    reward: Main[tuple[Path, ...]] = (Path("runs/reward"),)
    """What scores the answers, one or several: a run or folder of a reward model, FILE.py:FUNCTION
    (of prompts and responses), gold:TASK (the scorer that stands for people)."""
    combine: CombineConfig = field(default_factory=CombineConfig)
    source: Annotated[Path, only(reward=is_gold)] = Path("data")
    """Folder of the raw data that gold:TASK is made from."""
    value_init: Annotated[Path | None, idle(value_trunk=("shared", "none"))] = None
    """The value network starts from this reward or value model, or from this language model (the
    policy's own, say) with a head of 0; None: from the first reward model, or where there is none
    of the policy's tokenizer from the policy."""
    value_head: Annotated[Literal["trained", "zero"], idle(value_trunk=("shared", "none"))] = (
        "trained"
    )
    """Values start as the head that the network's start has makes them, or at 0 (a head that is
    put on a policy is 0 in any case: Ziegler et al. 2019)."""
    second_reward: SecondRewardConfig = field(default_factory=SecondRewardConfig)
    prompts: Main[Path] = Path("prompts.jsonl")
    """Rows with a prompt to answer."""
    columns: str = ""
    """Other names for columns, such as prompt=question; a reward function reads by these names."""
    cache: Path = Path(".cache/datasets")
    """Where prepared data sets are kept (TFDS); any stage may share it."""
    prompt_length: Main[Count | None] = None
    """Longer prompts keep their end. None: what the prompts need within the model's context."""
    response_length: Main[Count | None] = None
    """None: as ``init`` or ``reward`` was trained, if they say so."""
    allow_cut: bool = False
    """Go on although more than 2 % of the prompts are cut."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    value_trunk: Literal["separate", "shared", "none"] = "separate"
    """A value network of its own from the reward model (InstructGPT), or a head of 0 on the policy,
    or none: advantages are then made of the rewards alone."""
    iterations: Main[Count] = 24
    """Each samples answers, scores and learns."""
    batch_size: Main[BatchRows] = 128
    """Episodes per iteration, of all devices."""
    samples_per_prompt: Count = 1
    """Answers to each prompt of an iteration, which stand one after the other in the batch."""
    max_sampling_rounds: Count = 1
    """Dynamic sampling (DAPO, Yu et al. 2025, §3.2; 10 in its code): while the batch has prompts
    whose answers all score alike, another batch is sampled, whose prompts take their places, up to
    so many batches an iteration; 1: what is sampled first is learnt from."""
    ppo_epochs: Count = 1
    """Times that each episode is learnt from (InstructGPT: 1)."""
    num_minibatches: Count = 4
    """Parts of an iteration's episodes; each is one optimizer update an epoch (InstructGPT: 8)."""
    objective: Literal["policy_gradient", "imitation", "dpo"] = "policy_gradient"
    """What is learnt from the answers: by their advantages (PPO and its kin); the best answer to
    each prompt is imitated (expert iteration, RAFT: Dong et al. 2023), of the return with its KL
    penalty; or the better are preferred to the worse, by score (online DPO: Guo et al. 2024)."""
    dpo: Annotated[PairLossConfig, only(objective="dpo")] = field(default_factory=PairLossConfig)
    pairs: Annotated[Literal["best_worst", "all"], only(objective="dpo")] = "best_worst"
    """Answers to one prompt that are compared: the best with the worst (with two answers Guo et al.
    2024, with more Yuan et al. 2024), or each with every other one."""
    kl: Annotated[KLConfig, idle(objective="dpo")] = field(default_factory=KLConfig)
    advantage: Annotated[Main[Literal["gae", "rloo", "grpo", "dr_grpo", "reinforce"]], GRADIENT] = (
        "gae"
    )
    """How much better an answer was than expected: by the value of each token (gae, InstructGPT),
    than the other answers to its prompt (rloo; grpo and dr_grpo, with and without division by their
    standard deviation), or than past answers (reinforce)."""
    gamma: Annotated[Share, GRADIENT, only(advantage="gae")] = 1.0
    """γ: discount per token (InstructGPT: 1, none)."""
    lam: Annotated[Share, GRADIENT, only(advantage="gae")] = 0.95
    """λ of generalised advantage estimation (Schulman et al. 2016; InstructGPT: 0.95)."""
    baseline_decay: Annotated[ShareBelowOne, GRADIENT, only(advantage="reinforce")] = 0.9
    """What an iteration's mean return still weighs in the baseline one iteration later."""
    policy_loss: Annotated[Literal["clip", "unclipped", "cispo"], GRADIENT] = "clip"
    """Of the ratio ρ = π / π_old: PPO's clip, the policy gradient without one, or CISPO, which
    bounds the weight of a token and keeps its gradient (MiniMax 2025)."""
    ratio: Annotated[Literal["token", "sequence"], GRADIENT] = "token"
    """ρ of each token, or of the answer to the power of one over its tokens (GSPO, Zheng et al.
    2025)."""
    clip_eps: Annotated[Positive, GRADIENT, idle(policy_loss="unclipped")] = 0.2
    """ε: the ratio π / π_old is clipped to 1 ± this (Schulman et al. 2017, eq. 7; InstructGPT:
    0.2)."""
    clip_eps_high: Annotated[Positive | None, GRADIENT, idle(policy_loss="unclipped")] = None
    """The ratio may grow to 1 + this (clip-higher, DAPO: 0.28); None: ``clip_eps``."""
    dual_clip: Annotated[OverOne | None, GRADIENT, only(policy_loss="clip")] = None
    """c: where the advantage is negative the loss of a token is at most c times its size (Ye et al.
    2020: 3); None: no such bound."""
    aggregation: Annotated[
        Literal["token_mean", "sequence_mean", "sequence_sum", "constant_length"], GRADIENT
    ] = "token_mean"
    """How the policy loss of tokens (and the KL in the loss) becomes one number per minibatch: mean
    over tokens (PPO, DAPO), over answers of their means (GRPO) or of their sums (RLOO), or the sum
    over answers times ``response_length`` (Dr. GRPO). Values and entropy are means over tokens."""
    value_clip_eps: Annotated[Positive, idle(value_trunk="none")] = 0.2
    """The value may move by this from the old one, in units of the score (OpenAI baselines;
    InstructGPT: 0.2)."""
    vf_coef: Annotated[PositiveOrZero, idle(value_trunk="none")] = 1.0
    """Weight of the value loss; with a separate trunk it only scales that trunk's gradient."""
    entropy_coef: Annotated[PositiveOrZero, GRADIENT] = 0.0
    """Weight of the entropy bonus, per nat of the mean entropy of a token; InstructGPT has none."""
    whiten_advantages: Annotated[bool, GRADIENT] = True
    """Advantages get mean 0 and variance 1, over the tokens of all episodes of an iteration, after
    whatever ``advantage`` has done; RLOO, GRPO and Dr. GRPO as published do without."""
    whiten_rewards: Annotated[bool, GRADIENT] = False
    """Rewards per token get variance 1 about their mean, which stays (lm-human-preferences)."""
    missing_eos_penalty: Finite | None = None
    """Score of an episode that does not end (Ziegler et al. 2019: -1); None leaves the score."""
    recompute_logprobs: bool = False
    """Take the old log-probs from a forward pass instead of from the sampler."""
    packing: bool = True
    """Scoring and updates read the real tokens of the episodes alone, several in a row, in blocks
    of rows; False: a padded row for each, and better where many devices share the weights (fsdp),
    which each block gathers anew. Sums are of the same terms in another order."""
    staleness: CountOrZero = 0
    """k: each iteration learns from answers that the policy gave k iterations ago, as when sampling
    runs beside training (Noukhovitch et al. 2024); 0: from its own. The run keeps k more copies of
    the policy's trained weights in memory and in its checkpoints."""
    importance_cap: Annotated[Positive, GRADIENT, idle(staleness=0)] = 2.0
    """C: the loss of a token is weighed by min(π_now / π_then, C), the policy that learns over the
    one that sampled (IMPALA: 1; verl, TRL: 2; AReaL: 5, beyond which it drops tokens)."""
    reference_every: CountOrZero = 0
    """Iterations after which the reference moves towards the policy (TR-DPO, Gorbatovski et al.
    2024); 0: it stays. The KL that is logged and penalised is then from the moved one."""
    reference_mix: Annotated[ShareOverZero, idle(reference_every=0)] = 1.0
    """α in π_ref ← α π + (1 − α) π_ref, of the weights: 1 takes the policy, and a small one at
    every iteration makes the reference an average of its past (TR-DPO: 0.6; WARP's anchor: 0.01).
    """
    ptx_coef: Main[PositiveOrZero] = 0.0
    """γ of PPO-ptx: weight of the pretraining gradient in each minibatch; 0 is plain PPO."""
    ptx_batch_size: Annotated[BatchRows, idle(ptx_coef=0)] = 32
    """Rows of pretraining text per minibatch."""
    ptx_data: Annotated[TextDataConfig, idle(ptx_coef=0)] = field(default_factory=TextDataConfig)
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    """On the policy and on the value network, which then share their frozen weights with the
    reference and the reward model where these are the same."""
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            lr=3e-4, schedule="linear", warmup_share=0.125, final_lr=0.2, weight_decay=0.0, eps=1e-5
        )
    )
    value_optim: Annotated[
        OptimConfig, idle(value_trunk=("shared", "none")), never("accumulate", "ema_decay")
    ] = field(
        default_factory=lambda: OptimConfig(
            lr=1e-3, schedule="linear", warmup_share=0.125, final_lr=0.2, weight_decay=0.0, eps=1e-5
        )
    )
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    min_reward_accuracy: Annotated[Share, idle(force=True)] = 0.6
    """PPO does not start on a reward model whose held-out pair accuracy is below this."""
    force: bool = False
    """Start all the same."""

    @property
    def updates_per_iteration(self) -> int:
        """Optimizer updates: every minibatch once in each epoch."""
        return self.ppo_epochs * self.num_minibatches

    @property
    def minibatch(self) -> tuple[str, int]:
        """What one is made of, by the fields' names, and how many.

        Episodes; or prompts, each with the answer that was kept or with those that are compared.
        """
        if self.objective == "policy_gradient":
            return "batch_size / num_minibatches", self.batch_size // self.num_minibatches
        name = "batch_size / samples_per_prompt / num_minibatches"
        return name, self.batch_size // self.samples_per_prompt // self.num_minibatches

    def __post_init__(self):
        check_bounds(self)
        column_names(self.columns)
        check(
            isinstance(self.reward, tuple) and len(self.reward) > 0,
            f"reward={self.reward}: expected one or several in a tuple, (Path('runs/reward'),)",
        )
        self.combine.check_number(len(self.reward))
        check(
            self.kl.target == 0 or self.kl.horizon > self.batch_size / 5,
            f"kl.horizon={self.kl.horizon} is not over batch_size / 5 = {self.batch_size / 5}: one "
            "iteration could bring the coefficient to 0 or below",
        )
        check(
            self.batch_size % self.num_minibatches == 0,
            f"batch_size={self.batch_size} is not a multiple of "
            f"num_minibatches={self.num_minibatches}",
        )
        check(
            self.batch_size % self.samples_per_prompt == 0,
            f"batch_size={self.batch_size} is not a multiple of "
            f"samples_per_prompt={self.samples_per_prompt}",
        )
        check(
            self.max_sampling_rounds == 1 or self.samples_per_prompt > 1,
            f"max_sampling_rounds={self.max_sampling_rounds} looks for prompts whose answers score "
            f"differently: samples_per_prompt={self.samples_per_prompt} must be 2 or more",
        )
        check_microbatches(*self.minibatch, self.optim)
        check_microbatches("ptx_batch_size", self.ptx_batch_size, self.optim)
        if self.objective == "policy_gradient":
            self._check_algorithm()
        else:
            self._check_selection()
        check(
            self.reference_every == 0 or self.lora.rank == 0,
            f"reference_every={self.reference_every} with lora.rank={self.lora.rank}: below the "
            "adapters reference and policy are the same weights, so that it cannot move; expected "
            "reference_every 0 or lora.rank 0",
        )
        check(self.sampling.temperature > 0, "PPO needs sampling.temperature > 0")
        check(
            self.sampling.top_k == 0 and self.sampling.top_p == 1.0,
            "PPO samples from the whole distribution: sampling.top_k must be 0 and top_p 1, "
            "or the log-probs would be of another density",
        )

    def _check_algorithm(self):
        """Raise InputError where two fields ask for what does not go together."""
        name = f"advantage={self.advantage}"
        check(
            self.advantage not in GROUPED or self.samples_per_prompt > 1,
            f"{name} compares the answers to one prompt: samples_per_prompt="
            f"{self.samples_per_prompt} must be 2 or more",
        )
        check(
            self.advantage == "gae" or self.value_trunk == "none",
            f"{name} reads no values: value_trunk={self.value_trunk} must be none",
        )
        check(
            self.advantage != "reinforce" or not self.whiten_rewards,
            f"{name} compares returns with those of earlier iterations: whiten_rewards=True would "
            "give each iteration a unit of its own",
        )
        check(
            self.ratio == "token" or self.advantage != "gae",
            f"ratio={self.ratio} weighs whole answers: {name} gives each token one of its own, "
            "expected rloo, grpo, dr_grpo or reinforce",
        )

    def _check_selection(self):
        """Raise InputError where answers cannot be compared, or a field asks for an advantage's."""
        name, K = f"objective={self.objective}", self.samples_per_prompt
        check(
            K > 1,
            f"{name} compares the answers to one prompt: samples_per_prompt={K} must be 2 or more",
        )
        check(
            self.batch_size // K % self.num_minibatches == 0,
            f"{name} learns from whole prompts: batch_size / samples_per_prompt = "
            f"{self.batch_size // K} is not a multiple of num_minibatches={self.num_minibatches}",
        )
        check(
            self.value_trunk == "none",
            f"{name} reads no values: value_trunk={self.value_trunk} must be none",
        )
        check(
            self.kl.place == "reward",
            f"{name} has a loss without a KL: kl.place={self.kl.place} must be reward",
        )
