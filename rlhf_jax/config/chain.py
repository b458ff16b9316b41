"""All stages in a row."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from rlhf_jax.config.bounds import Seed, check_bounds
from rlhf_jax.config.convert import ConvertConfig, ImportConfig
from rlhf_jax.config.data import TextDataConfig
from rlhf_jax.config.effect import Main, idle, only
from rlhf_jax.config.feedback import FeedbackConfig
from rlhf_jax.config.ppo import PPOConfig
from rlhf_jax.config.rewards import is_gold, reward_source
from rlhf_jax.config.stages import CompareConfig, PretrainConfig, RewardConfig, SFTConfig
from rlhf_jax.config.tools import EvaluateConfig
from rlhf_jax.errors import known


@dataclass(frozen=True)
class InstructGPTConfig:
    """All stages in a row, in sub-folders of one run folder."""

    dir: Main[Path] = Path("runs/instructgpt")
    """Run folder; the stages have theirs in it. The same command resumes what is unfinished."""
    seed: Main[Seed] = 0
    """Of every stage."""
    task: Main[str] = "sentiment"
    """A module of rlhf_jax/tasks, or a .py file of your own (docs/tasks.md)."""
    source: Main[Path] = Path("data")
    """Folder of the raw data."""
    corpora: tuple[str, ...] = ("gutenberg", "reviews", "polarity")
    """Text of pretraining, ptx and the alignment tax, in the order of the mixing weights."""
    init: Main[Path | None] = None
    """A model that is there already and follows instructions (a Hugging Face folder, hf://OWNER/NAME,
    a .gguf file, a run folder): it is brought in as ``convert`` says and stands in the SFT model's
    place, in sft/. None: this run pretrains and fine-tunes its own."""
    convert: Annotated[ImportConfig, idle(init=None)] = field(default_factory=ImportConfig)
    """How ``init`` is brought in."""
    pretrain: Annotated[PretrainConfig, only(init=None)] = field(default_factory=PretrainConfig)
    sft: Annotated[SFTConfig, only(init=None)] = field(default_factory=SFTConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    feedback: FeedbackConfig = field(default_factory=FeedbackConfig)
    """The loop with people, which goes on from this run's SFT model; not a stage of the chain."""
    reward_init: Main[Path | None] = None
    """Run folder the reward model (and so the value network) starts from; None: this run's SFT."""
    ablations: Main[Annotated[bool, only(init=None)]] = False
    """Also train SFT without the pretraining mix and PPO without ptx: the alignment tax."""

    def __post_init__(self):
        check_bounds(self)

    @property
    def conversion(self) -> ConvertConfig:
        """What brings ``init`` in as this run's sft/."""
        return ConvertConfig(source=known(self.init), out=self.dir / "sft", **vars(self.convert))

    @property
    def has_reward_model(self) -> bool:
        """Whether PPO is rewarded by the chain's own reward model, so that there must be one."""
        return any(reward_source(reward).kind == "model" for reward in self.ppo.reward)

    def resolve(self) -> "InstructGPTConfig":
        """Every stage with folder, seed, task and inputs filled in from the chain's own fields."""
        return replace(
            self,
            **self._resolved_models(),
            ppo=self._resolved_ppo(),
            evaluate=self._resolved_evaluation(),
            feedback=replace(
                self.feedback,
                run=self.dir,
                seed=self.seed,
                task=self.task,
                source=self.source,
                corpora=self.corpora,
                reward=self.reward,
                ppo=self.ppo,
            ),
        )

    def _stage(self, config: Any, name: str, **inputs: Any) -> Any:
        """A stage's config with its folder, the chain's seed and what it reads."""
        run = replace(config.run, dir=self.dir / name, seed=self.seed)
        return replace(config, run=run, **inputs)

    def _text(self, config: TextDataConfig) -> TextDataConfig:
        """The chain's corpora, as its first step writes them."""
        data = self.dir / "data"
        path = tuple(data / f"corpus_{name}.txt" for name in self.corpora)
        heldout = tuple(data / f"heldout_{name}.txt" for name in self.corpora)
        return replace(config, path=path, heldout=heldout)

    def _resolved_models(self) -> dict[str, Any]:
        """The stages up to the reward model."""
        data, comparisons = self.dir / "data", self.dir / "comparisons"
        demonstrations = data / "demonstrations.jsonl"
        return {
            "pretrain": self._stage(self.pretrain, "pretrain", data=self._text(self.pretrain.data)),
            "sft": self._stage(
                self.sft,
                "sft",
                init=self.dir / "pretrain",
                data=demonstrations,
                pretrain_data=self._text(self.sft.pretrain_data),
            ),
            "compare": self._stage(
                self.compare,
                "comparisons",
                init=self.dir / "sft",
                task=self.task,
                source=self.source,
                prompts=data / "prompts_comparisons.jsonl",
            ),
            "reward": self._stage(
                self.reward,
                "reward",
                init=self.reward_init or self.dir / "sft",
                data=comparisons / "train.jsonl",
                heldout=comparisons / "heldout.jsonl",
                # A model that is brought in has seen none of the task's.
                demonstrations=demonstrations if self.init is None else None,
            ),
        }

    def _resolved_ppo(self) -> PPOConfig:
        """PPO from the SFT model. Of its rewards a model is this run's; others stay."""
        rewards = [
            self.dir / "reward" if reward_source(reward).kind == "model" else reward
            for reward in self.ppo.reward
        ]
        return self._stage(
            self.ppo,
            "ppo",
            init=self.dir / "sft",
            # Several models would all become this run's one.
            reward=tuple(dict.fromkeys(rewards)),
            source=self.source if is_gold(rewards) else self.ppo.source,
            prompts=self.dir / "data" / "prompts_ppo.jsonl",
            ptx_data=self._text(self.ppo.ptx_data),
        )

    def _resolved_evaluation(self) -> EvaluateConfig:
        """PPO's policy against the SFT model, and against the pretrained one on text alone."""
        return self._stage(
            self.evaluate,
            "evaluate",
            policies=(self.dir / "sft", self.dir / "ppo"),
            text_only=(self.dir / "pretrain",) if self.init is None else (),
            reward=(self.dir / "reward",) if self.has_reward_model else (),
            task=self.task,
            source=self.source,
            prompts=self.dir / "data" / "prompts_evaluation.jsonl",
            text=self._text(self.evaluate.text),
        )
