"""People in the loop: the site, and the rounds that learn from it."""

import re
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import tyro

from rlhf_jax.config.bounds import Bounds, Count, CountOrZero, Positive, Share, check_bounds
from rlhf_jax.config.effect import Main, only
from rlhf_jax.config.stages import (
    LabelerConfig,
    PPOConfig,
    RewardConfig,
    SamplingConfig,
    check_several,
)
from rlhf_jax.config.training import RunConfig
from rlhf_jax.errors import check

SITE_URL = re.compile(r"https?://[^\s/?#@;\\]+(/[^?#]*)?")
PREFIX = re.compile(r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]+)*/?")


def is_site_url(url: str) -> bool:
    """Whether ``url`` is https://HOST[:PORT], perhaps with a path, nothing more."""
    try:
        parts = urlsplit(url)
        return bool(SITE_URL.fullmatch(url) and parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, brackets that do not match
        return False


def is_network(text: str) -> bool:
    try:
        ip_network(text, strict=False)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class ServeConfig:
    """The labelling site."""

    host: str = "127.0.0.1"
    """Address to listen on. Beyond loopback put a proxy with TLS before it and give ``url``."""
    port: Main[Annotated[int, Bounds(1, 65535)]] = 8420
    """Port to listen on."""
    token: str = ""
    """The administrator's, of 16 characters or more; empty makes one and keeps it in the loop's
    folder. Other users of the machine see what stands on a command line."""
    url: Main[str] = ""
    """Where labelers find the site, if a proxy stands before it. As https://label.example.org, or
    with the prefix that the proxy takes off, https://lab.example.org/label/. Its parts are letters,
    digits, '-', '.', '_' and '~'."""
    proxies: tuple[str, ...] = ()
    """Addresses or networks of proxies whose X-Forwarded-For says who asks (127.0.0.1). Without
    any, clients behind a proxy are not told apart: only accounts are limited."""
    requests_per_second: Positive = 20.0
    """Of one labeler; four times as many at once."""
    lease_minutes: Annotated[float, Bounds(0, 525_600, over=True)] = 30.0
    """How long a task stays in one labeler's hands."""
    scrub: bool = True
    """Replace e-mail addresses, phone, card and id numbers in what people type and in prompts."""
    guide: Path | None = None
    """A Markdown file that says what a good answer is; guide.zh.md beside guide.md is what readers
    of Chinese see. None: the guide of ``task``."""
    dialogue: bool = False
    """The chat's prompts are whole conversations, not single messages."""

    def __post_init__(self):
        check_bounds(self, "serve.")
        check(
            not self.url or is_site_url(self.url),
            f"serve.url: found {self.url!r}, expected https://HOST or https://HOST/PREFIX/",
        )
        # Browsers write other paths in other ways than we do, so cookies and links would not fit;
        # and //x in a link is a host.
        prefix = urlsplit(self.url).path
        check(
            PREFIX.fullmatch(prefix) is not None,
            f"serve.url: found the prefix {prefix!r}, which browsers and proxies change: expected "
            "letters, digits, '-', '.', '_' and '~' between single slashes",
        )
        for network in self.proxies:
            check(
                is_network(network),
                f"serve.proxies: found {network!r}, expected addresses or networks "
                "(127.0.0.1, 10.0.0.0/8) of the proxies in front of the site",
            )
        check(
            bool(self.url) or not self.proxies,
            "serve.proxies: expected serve.url too, where the proxy shows the site",
        )


@dataclass(frozen=True)
class FeedbackConfig:
    """Sample answers, have people rank them, retrain, publish, and again."""

    command: Main[
        tyro.conf.Positional[
            Literal[
                *("run", "serve", "sample", "update", "answer", "simulate", "export", "import"),
                *("ask", "verdict"),
            ]
        ]
    ] = "run"
    """What to do. run is all of it on this machine; serve is only the site; sample fills the queue
    once; update trains round after round; answer talks in the chat and keeps the queue filled;
    simulate labels as programs over HTTP; ask puts an evaluation's answers on the page and verdict
    says who won."""
    run: Main[Path] = Path("runs/quickstart")
    """Run folder of the chain: its sft/ and data/ are read, and feedback/ in it is written. For ask
    and verdict (and serve between them) the folder of an evaluation."""
    store: str = ""
    """The labels: empty for feedback/store.sqlite in the run folder, or postgresql://..."""
    seed: Annotated[int, Bounds(0, 2_000_000)] = 0
    """A round's stages have seeds of their own: 1000 of them for each."""
    serve: ServeConfig = field(default_factory=ServeConfig)
    prompts: Path | None = None
    """What is asked; None: the run's prompts for comparisons."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    responses_per_prompt: Annotated[int, Bounds(2, 9)] = 4
    """K: 4 to 9 in InstructGPT."""
    tasks_per_round: Count = 300
    """Prompts that each new policy answers for the queue; with ask, the first prompts it takes."""
    queue: CountOrZero = 50
    """``answer`` writes more tasks when fewer than this are open."""
    candidates: Annotated[Count, only(choice="disagreement")] = 3
    """Prompts answered per task that is kept, when the choice is by disagreement."""
    choice: Literal["disagreement", "random"] = "disagreement"
    """Which prompts people see: those on whose answers the reward models disagree most, or any."""
    overlap: Share = 0.15
    """Share of the tasks that two labelers get, to measure their agreement."""
    labels_per_round: Main[Count] = 250
    """New labels that ``update`` waits for."""
    rounds: Main[CountOrZero] = 0
    """Rounds until ``update`` stops; 0 goes on until it is stopped. With ``run`` the site stays up
    for people, and ends where all labelers are simulated."""
    ensemble: Count = 2
    """Reward models; PPO's is the first. They differ in seed."""
    epochs: Count = 2
    """Passes of each over all labels so far: the first rounds have few."""
    warmup_steps: CountOrZero = 5
    """Of the reward models."""
    iterations: Count = 12
    """PPO iterations per round."""
    evaluation_prompts: Count = 128
    """Prompts on which each new policy is measured."""
    chat_answers: Annotated[int, Bounds(2, 9)] = 2
    """Answers to each message of the chat, side by side."""
    simulated: Main[CountOrZero] = 0
    """Labelers that are programs, with run or simulate. They have the gold score, noise and a bias
    of their own, and label while ``update`` waits."""
    labeler: LabelerConfig = field(default_factory=LabelerConfig)
    """Noise of the simulated ones."""
    task: str = "sentiment"
    """Its gold scorer measures each round and stands behind the simulated labelers."""
    source: Path = Path("data")
    """Folder of the raw data, from which the gold scorer learns."""
    gold: bool = True
    """Measure the gold score of each round; needs ``source``."""
    corpora: tuple[str, ...] = ("gutenberg", "reviews", "polarity")
    """Text of the ptx term, as in the chain."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    format: Main[
        Annotated[
            Literal[
                *("native", "demonstrations", "trl-preference"),
                *("trl-unpaired", "label-studio", "argilla"),
            ],
            only(command="export"),
        ]
    ] = "native"
    """Of export."""
    policies: Annotated[tuple[str, ...], only(command=("ask", "verdict"))] = ()
    """Whose answers ask puts up; verdict compares the others with the first. Empty: all."""
    file: Main[Annotated[Path | None, only(command=("export", "import"))]] = None
    """export writes it; import reads it, any of the formats, by its keys."""

    def __post_init__(self):
        check_bounds(self)
        check_several("responses_per_prompt", self.sampling)
        check(
            self.choice == "random" or self.ensemble >= 2,
            "choice=disagreement needs ensemble >= 2, or choose --choice random",
        )

    @property
    def dir(self) -> Path:
        return self.run / "feedback"

    @property
    def place(self) -> str:
        """Path or URL of the store."""
        return self.store or str(self.dir / "store.sqlite")

    @property
    def sft(self) -> Path:
        return self.run / "sft"

    @property
    def data(self) -> Path:
        return self.run / "data"

    def resolve(self) -> "FeedbackConfig":
        """The stages of the first round, with what the rounds fill in."""
        return replace(self, reward=self.reward_stage(1, 0), ppo=self.ppo_stage(1))

    def round_dir(self, number: int) -> Path:
        return self.dir / f"round_{number:03}"

    def policy(self, number: int) -> Path:
        """The policy of a round; that of round 0 is the SFT model."""
        return self.round_dir(number) / "ppo" if number else self.sft

    def policy_name(self, number: int) -> str:
        """What the store calls the policy of a round, wherever the run folder is."""
        return self.policy(number).relative_to(self.run).as_posix()

    def reward_model(self, number: int, member: int) -> Path:
        return self.round_dir(number) / f"reward_{member}"

    def reward_stage(self, number: int, member: int) -> RewardConfig:
        """A member of the ensemble of round ``number``, trained on all labels so far."""
        demonstrations = self.data / "demonstrations.jsonl"
        return replace(
            self.reward,
            run=self._run(self.reward.run, self.reward_model(number, member), member),
            init=self.sft,
            data=self.round_dir(number) / "train.jsonl",
            heldout=self.round_dir(number) / "heldout.jsonl",
            cache=self.round_dir(number) / "cache",
            epochs=self.epochs,
            optim=replace(self.reward.optim, warmup_steps=self.warmup_steps),
            demonstrations=demonstrations if demonstrations.exists() else None,
        )

    def ppo_stage(self, number: int) -> PPOConfig:
        """From the policy of the round before, held to the SFT model."""
        text = self.ppo.ptx_data
        if self.ppo.ptx_coef:
            paths = tuple(self.data / f"corpus_{name}.txt" for name in self.corpora)
            text = replace(text, path=paths)
        return replace(
            self.ppo,
            run=self._run(self.ppo.run, self.policy(number), number),
            init=self.policy(number - 1),
            reference=self.sft,
            reward=(self.reward_model(number, 0),),
            prompts=self.data / "prompts_ppo.jsonl",
            iterations=self.iterations,
            ptx_data=text,
        )

    def _run(self, run: RunConfig, folder: Path, offset: int) -> RunConfig:
        """Each stage of each round in its folder, with its own order of the data."""
        cache = run.compile_cache or self.dir / "programs"
        seed = 1000 * self.seed + offset
        return replace(run, dir=folder, seed=seed, data_seed=seed, compile_cache=cache)
