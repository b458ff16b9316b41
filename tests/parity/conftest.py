"""Both precisions; the largest deviations from PyTorch that were measured, printed at the end."""

import sys

import jax
import pytest


@pytest.fixture(params=["float32", "float64"])
def precision(request):
    from parity import torch_bridge  # needs PyTorch

    with jax.enable_x64(request.param == "float64"):
        yield torch_bridge.PRECISIONS[request.param]


def pytest_terminal_summary(terminalreporter):
    bridge = sys.modules.get("parity.torch_bridge")
    if bridge is None or not bridge.DEVIATIONS:
        return
    write = terminalreporter.write_line
    terminalreporter.section("largest deviation from PyTorch, relative to the tensor's scale")
    cases = sorted({case for case, _ in bridge.DEVIATIONS})
    width = max(map(len, cases))
    write(f"{'':{width}}  float32  float64")
    for case in cases:
        row = [bridge.DEVIATIONS.get((case, name)) for name in ("float32", "float64")]
        write(
            f"{case:{width}}  " + "  ".join(f"{x:7.0e}" if x is not None else 7 * " " for x in row)
        )
