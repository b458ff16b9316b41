"""What ``python -m benchmarks.run`` measures, and against what."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from rlhf_jax.config.bounds import Bounds, Count, CountOrZero, check_bounds
from rlhf_jax.config.effect import only
from rlhf_jax.errors import check

Suite = Literal["generate", "pretrain", "sft", "reward", "ppo", "memory"]


@dataclass(frozen=True)
class BenchmarkConfig:
    """The same work on our side and on another, in turns A B A B."""

    suite: tuple[Suite, ...] = ("generate",)
    """What is measured, one after the other."""
    shape: Literal["nano", "tiny", "tiny50k", "gpt2"] = "tiny"
    """nano: only to try the benchmark; tiny: 4 layers, width 256, vocabulary 4,096 (tiny50k:
    50,257); gpt2: 124M parameters."""
    device: Literal["cpu", "gpu"] = "cpu"
    """Where both sides compute: gpu is one NVIDIA card (benchmarks/gpu.sh)."""
    dtype: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Of matrix products, on both sides. tf32, on a GPU: float32 whose products keep 10 bits."""
    batch: tuple[Count, ...] = ()
    """Rows; empty: 1, 8 and 32 for generation, 8 for training, 16 (gpt2: 8) episodes for PPO."""
    prompt: CountOrZero = 0
    """Tokens of a prompt; 0: 64 in generation, 32 in PPO."""
    length: CountOrZero = 0
    """New tokens, or tokens of a training row; 0: 64 in generation, 128 in training, 32 in PPO."""
    variant: tuple[Literal["separate", "shared", "lora"], ...] = ("separate",)
    """PPO: four networks as TRL has them; a value head on the policy's trunk; or that with
    adapters of rank 8. The last two are less work than TRL's."""
    end: Literal["never", "early"] = "never"
    """early: the end-of-text token is made so likely that all answers end within a few tokens."""
    repeats: Annotated[int, Bounds(3)] = 7
    """Repetitions of each side, after one that is not counted."""
    cores: CountOrZero = 0
    """Pin both sides to this many cores, with as many threads; 0: all."""
    baseline_python: Annotated[Path | None, only(against=None)] = None
    """Python with torch, transformers and TRL; None: .venv-torch of this repository (make
    test-torch makes it)."""
    against: Path | None = None
    """Another checkout of this repository to measure against instead of PyTorch."""
    torch_compile: Annotated[bool, only(against=None)] = False
    """Training: torch.compile the other side's model (needs a C++ compiler)."""
    out: Path = Path("benchmarks/results")
    """Folder for the JSON and the table."""

    def __post_init__(self):
        check_bounds(self)
        on_cpu = self.device == "cpu"
        check(not (on_cpu and self.dtype == "tf32"), "--dtype tf32 is of GPUs: --device gpu")
        check(on_cpu or not self.cores, "--cores is of processors: no effect with --device gpu")


@dataclass(frozen=True)
class LabelersConfig:
    """Labelers at the page while a round trains."""

    labelers: Count = 50
    """How many ask at once, each the next thing as soon as the last is answered."""
    seconds: Annotated[float, Bounds(1)] = 60.0
    """With training beside it, and as long without."""
    tasks: Count = 20_000
    """In the queue; more than can be labelled."""
    shape: Literal["nano", "tiny"] = "tiny"
    """Of the policy that is trained."""
    cores: CountOrZero = 2
    """Server and training are on this many cores; 0: all."""
    out: Path = Path("benchmarks/results")
    """Folder for the JSON."""

    def __post_init__(self):
        check_bounds(self)
