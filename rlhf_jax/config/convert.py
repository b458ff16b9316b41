"""Models brought in, and taken out."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from rlhf_jax.config.effect import idle, only
from rlhf_jax.config.training import ParallelConfig, RunConfig
from rlhf_jax.errors import check


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """How a model that is there already becomes a run folder."""

    direction: ClassVar[str] = "from-hf"
    sha256: Annotated[str, only(direction="from-hf")] = ""
    """from-hf: what the SHA-256 of the source, a single file, has to be; empty: it is not looked
    at."""
    chat_prompts: Annotated[bool, only(direction="from-hf")] = False
    """from-hf: put the prompts of every stage to come in the tokenizer's chat template: a text as a
    message of the user, a conversation as the messages that it is."""
    compute_dtype: Annotated[Literal["float32", "bfloat16"], only(direction="from-hf")] = "float32"
    """from-hf: of matrix products; the weights stay float32."""
    attention: Annotated[Literal["plain", "fused"], only(direction="from-hf")] = "plain"
    """from-hf: as model.attention."""
    scan_layers: Annotated[bool, only(direction="from-hf")] = False
    """from-hf: as model.scan_layers."""
    remat: Annotated[Literal["none", "dots", "full"], only(direction="from-hf")] = "none"
    """from-hf: as model.remat."""

    def __post_init__(self):
        check(
            re.fullmatch(r"[0-9a-f]{64}|", self.sha256) is not None,
            f"sha256={self.sha256}: expected 64 digits of 0-9 and a-f, or nothing",
        )


@dataclass(frozen=True)
class ConvertConfig(ImportConfig):
    """Weights from and to Hugging Face."""

    direction: tyro.conf.Positional[Literal["from-hf", "to-hf"]] = (  # ty: ignore[incompatible-attribute-override]
        "from-hf"
    )
    """Read somebody's checkpoint, or write one of ours for others."""
    source: tyro.conf.Positional[Path] = Path("checkpoint")
    """from-hf: a folder with config.json and safetensors, a PEFT adapter, or a .gguf file; to-hf: a
    run folder, or a step of one (RUN@STEP)."""
    out: Path = Path("runs/imported")
    """from-hf: the run folder to make; to-hf: the folder to write."""
    part: Annotated[Literal["model", "value", "adapter"], only(direction="to-hf")] = "model"
    """to-hf: what the stage made (adapters merged), the value network of a PPO run, or the adapters
    of a run with LoRA alone, for PEFT."""
    base: Path | None = None
    """The model below an adapter. from-hf: instead of the one that it names; to-hf --part adapter:
    the exported base model to name in it."""
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], only(direction="to-hf"), idle(part="adapter")
    ] = "float32"
    """to-hf: of the weights written."""
    license: Annotated[str, only(direction="to-hf")] = ""
    """to-hf: of the model, as the hub writes it (apache-2.0), for its card; empty: that of the
    model that it was made from, where its card says one."""
    evaluation: Annotated[tuple[Path, ...], only(direction="to-hf"), only(part="model")] = ()
    """to-hf: finished runs of experiments.evaluate, one for each seed, whose figures stand in the
    card with intervals over the seeds; empty: those that lie beside the run."""
    push: Annotated[str, only(direction="to-hf")] = ""
    """to-hf: OWNER/NAME of a repository on the Hugging Face hub, to which the folder is pushed once
    it is whole (token: HF_TOKEN, or hf auth login)."""
    private: Annotated[bool, idle(push="")] = True
    """Nobody else sees a repository that --push makes."""

    def __post_init__(self):
        check(
            self.base is None or self.direction == "from-hf" or self.part == "adapter",
            "base has no effect on to-hf unless part is adapter: it names the model below it",
        )
        super().__post_init__()

    @property
    def run(self) -> RunConfig:
        """Where its results go, as a run folder."""
        return RunConfig(dir=self.out)

    @property
    def parallel(self) -> ParallelConfig:
        """It needs no device and no peer."""
        return ParallelConfig(hosts="off")
