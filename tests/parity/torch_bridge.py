"""What the comparisons share: both precisions, arrays and gradients on both sides, deviations.

A deviation is the largest absolute difference from a tensor over that tensor's largest absolute
entry.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
torch = pytest.importorskip("torch", reason="needs PyTorch: make test-torch")
import transformers as hf  # noqa: E402

VOCAB, EOS, PAD = 61, 0, 60
SHAPE = dict(n_layer=2, n_embd=32, n_head=4, n_positions=48, vocab_size=VOCAB)

DEVIATIONS: dict[tuple[str, str], float] = {}
"""Largest deviation of every (case, precision) so far, for the summary."""


class Precision(NamedTuple):
    """float32, or with ``jax.enable_x64`` float64, on both sides."""

    name: str
    tolerance: float

    def jax(self, x: Any) -> jax.Array:
        x = np.asarray(x)
        return jax.numpy.asarray(x.astype(self.name) if x.dtype.kind == "f" else x)

    def torch(self, x: Any, *, grad: bool = False) -> Any:
        x = np.array(x)
        x = x.astype(self.name) if x.dtype.kind == "f" else x
        x = x.astype(np.int64) if x.dtype.kind == "i" else x
        return torch.tensor(x, requires_grad=grad)

    def agree(self, case: str, found: Any, expected: Any) -> None:
        """Hold every tensor of ``found`` (an array, or a dict of them) against ``expected``."""
        if not isinstance(expected, Mapping):
            found, expected = {"": found}, {"": expected}
        assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
        for name in expected:
            f, e = to_numpy(found[name]), to_numpy(expected[name])
            assert f.shape == e.shape, (case, name, f.shape, e.shape)
            assert f.dtype == self.name, f"{case} {name} is {f.dtype}, not {self.name}"
            scale = np.abs(e).max()
            deviation = np.abs(f - e).max() / scale if scale > 0 else np.abs(f).max()
            key = (case, self.name)
            DEVIATIONS[key] = max(DEVIATIONS.get(key, 0.0), float(deviation))
            assert deviation <= self.tolerance, f"{case} {name}: {deviation:.2e}"


SINGLE, DOUBLE = Precision("float32", 1e-5), Precision("float64", 1e-9)
PRECISIONS = {p.name: p for p in (SINGLE, DOUBLE)}


def to_numpy(x: Any) -> np.ndarray:
    return x.detach().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)


# --- Gradients by the names of transformers ---------------------------------------------------


def gpt2_name(path: tuple[str, ...]) -> str:
    """("trunk", "block_1", "attn", "c_attn", "kernel") -> transformer.h.1.attn.c_attn.weight"""
    if path[0] == "head":
        return {"kernel": "score.weight", "bias": "score.bias"}[path[1]]
    words = ["transformer"]
    for word in path[1:]:
        words += ["h", word.removeprefix("block_")] if word.startswith("block_") else [word]
    last = {"kernel": "weight", "scale": "weight", "bias": "bias"}.get(words[-1])
    return ".".join([*words[:-1], last] if last else [*words, "weight"])


def by_torch_name(tree: Any) -> dict[str, np.ndarray]:
    """Leaves of one of our GPT-2 trees as the tensors that transformers would hold."""
    out = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = gpt2_name(tuple(key.key for key in path))
        out[name] = np.asarray(leaf).T if name == "score.weight" else np.asarray(leaf)
    return out


def torch_gradients(model: Any, prefix: str = "") -> dict[str, Any]:
    """Gradients of a module's parameters; a parameter that got none has zeros."""
    return {
        prefix + name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in model.named_parameters()
    }


# --- Models -----------------------------------------------------------------------------------


def make_gpt2(kind: Callable[..., Any], folder: Path, *, seed: int, **more: Any) -> Any:
    """A random torch GPT-2 of which biases and norms are random too, saved in ``folder``."""
    torch.manual_seed(seed)
    config = hf.GPT2Config(bos_token_id=EOS, eos_token_id=EOS, pad_token_id=PAD, **SHAPE, **more)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def masked_inputs(tokens: Any, mask: Any) -> dict[str, Any]:
    """Arguments of a transformers model: positions that skip padding."""
    mask = torch.tensor(np.array(mask)).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    tokens = torch.tensor(np.array(tokens)).long()
    return dict(input_ids=tokens, attention_mask=mask, position_ids=positions)


def ragged(lengths: Any, width: int, *, left: bool = False) -> np.ndarray:
    """Mask [B, width] of rows with these numbers of real tokens."""
    column, lengths = np.arange(width)[None], np.asarray(lengths)[:, None]
    return column >= width - lengths if left else column < lengths
