"""What docs/linen.md shows of NNX, run as it stands."""

import re

import jax
import jax.numpy as jnp
import pytest
from tiny import ROOT


@pytest.mark.slow
def test_parameters_go_to_nnx_are_trained_there_and_come_back():
    page = (ROOT / "docs" / "linen.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    names = {}
    exec(compile(code, "docs/linen.md", "exec"), names)
    assert names["gap_before"] < 1e-6 and names["gap_after"] < 1e-6
    assert jnp.abs(names["after"] - names["before"]).max() > 1e-4
    shapes = [jax.tree.map(jnp.shape, names[tree]) for tree in ("params", "trained")]
    assert shapes[0] == shapes[1]
