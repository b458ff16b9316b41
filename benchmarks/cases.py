"""What one benchmark is: plain data that both sides read, so that both do the same work."""

import json
from dataclasses import asdict, dataclass
from typing import NamedTuple

from benchmarks.config import BenchmarkConfig


class Shape(NamedTuple):
    """The size of a model, by the name that ``--shape`` gives it."""

    n_layers: int
    d_model: int
    n_heads: int
    vocab_size: int
    context: int


SHAPES = {
    "nano": Shape(2, 32, 2, 256, 256),
    "tiny": Shape(4, 256, 4, 4096, 256),
    "tiny50k": Shape(4, 256, 4, 50257, 256),
    "gpt2": Shape(12, 768, 12, 50257, 1024),
}

EOS = 0
"""End of text; prompts do not hold it."""
LR, B1, B2, EPS, WEIGHT_DECAY, CLIP_NORM = 1e-5, 0.9, 0.95, 1e-8, 0.01, 1.0
EPOCHS, MINIBATCHES = 4, 4
KL_COEF, LAMBDA, CLIP_EPS, VF_COEF = 0.05, 0.95, 0.2, 0.1
RANK = 8


@dataclass(frozen=True)
class Case:
    """One row of the table. ``length``: new tokens, or tokens of a training row."""

    suite: str
    shape: str
    dtype: str
    batch: int
    prompt: int
    length: int
    variant: str = ""
    end: str = "never"
    torch_compile: bool = False
    device: str = "cpu"

    @property
    def arrays(self) -> str:
        """How numbers are stored where products are in ``dtype``."""
        return "float32" if self.dtype == "tf32" else self.dtype

    @property
    def name(self) -> str:
        """What tables call it."""
        words = [self.suite, self.shape, self.dtype, f"{self.batch}x{self.prompt}+{self.length}"]
        words += [self.variant] if self.variant else []
        words += ["ends early"] if self.end == "early" else []
        words += ["torch.compile"] if self.torch_compile else []
        return " ".join(words + (["on a GPU"] if self.device == "gpu" else []))

    @property
    def unit(self) -> str:
        """What is counted per second."""
        return "episodes" if self.suite in ("ppo", "memory") else "tokens"

    @property
    def answer_length(self) -> int:
        """Tokens of a sampled answer, its end of text included."""
        return self.length * 3 // 8 if self.end == "early" else self.length

    def to_json(self) -> str:
        """The case for a worker."""
        return json.dumps(asdict(self))


def from_json(text: str) -> Case:
    """The case that ``to_json`` gave."""
    return Case(**json.loads(text))


def make_cases(config: BenchmarkConfig) -> list[Case]:
    """Every case that a command asks for."""
    cases = []
    for suite in config.suite:
        ppo = suite in ("ppo", "memory")
        default = (8 if config.shape == "gpt2" else 16,) if ppo else (8,)
        default = (1, 8, 32) if suite == "generate" else default
        prompt = config.prompt or (32 if ppo else 64 if suite == "generate" else 0)
        length = config.length or (32 if ppo else 64 if suite == "generate" else 128)
        for batch in config.batch or default:
            for variant in config.variant if ppo else ("",):
                sampled = ppo or suite == "generate"
                cases.append(
                    Case(
                        suite=suite,
                        shape=config.shape,
                        dtype=config.dtype,
                        batch=batch,
                        prompt=prompt,
                        length=length,
                        variant=variant,
                        end=config.end if sampled else "never",
                        torch_compile=config.torch_compile and not sampled,
                        device=config.device,
                    )
                )
    return cases
