"""Text and its tokens."""

from dataclasses import dataclass
from pathlib import Path

from rlhf_jax.errors import check


@dataclass(frozen=True)
class TokenizerConfig:
    path: Path | None = None
    """A saved tokenizer or a GPT-2 vocabulary folder; None trains one on the text."""
    vocab_size: int = 4096
    """Of a tokenizer trained here, with padding and end-of-text included."""
    multiple: int = 1
    """The embedding of a new model gets unused rows up to a multiple of this, so that it can be
    split over devices (GPT-2's 50,257 ids: 128 makes 50,304 rows)."""

    def padded(self, vocab_size: int) -> int:
        """Rows of the embedding for so many ids."""
        return -(-vocab_size // self.multiple) * self.multiple


@dataclass(frozen=True)
class TextDataConfig:
    path: tuple[Path, ...] = ()
    """.txt, .jsonl or folders of them, one corpus each."""
    weights: tuple[float, ...] = ()
    """Share of each corpus in the mix; empty mixes by size."""
    heldout: tuple[Path, ...] = ()
    """One held-out file per corpus; empty holds out ``heldout_fraction`` of the documents."""
    heldout_fraction: float = 0.02
    block_size: int = 64
    """Tokens per packed row."""
    cache: Path = Path(".cache/datasets")
    """Where prepared data sets live."""

    def __post_init__(self):
        for name in ("weights", "heldout"):
            given = getattr(self, name)
            check(
                not given or not self.path or len(given) == len(self.path),
                f"data.{name} has {len(given)} entries for {len(self.path)} of data.path",
            )
