"""Both precisions; the largest deviations from PyTorch that were measured, printed at the end."""

import sys
from collections.abc import Iterable

import jax
import pytest

DEVIATIONS: dict[tuple[str, str], float] = {}
"""Largest deviation of every (case, precision), of all processes that ran tests."""


@pytest.fixture(params=["float32", "float64"])
def precision(request):
    from parity import torch_bridge  # needs PyTorch

    with jax.enable_x64(request.param == "float64"):
        yield torch_bridge.PRECISIONS[request.param]


def found_here() -> list[tuple[str, str, float]]:
    bridge = sys.modules.get("parity.torch_bridge")
    return [(*key, value) for key, value in bridge.DEVIATIONS.items()] if bridge else []


def add(found: Iterable[tuple[str, str, float]]) -> None:
    for case, precision, deviation in found:
        key = case, precision
        DEVIATIONS[key] = max(DEVIATIONS.get(key, 0.0), deviation)


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):  # a process of pytest-xdist
        session.config.workeroutput["deviations"] = found_here()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    add(getattr(node, "workeroutput", {}).get("deviations", ()))


def pytest_terminal_summary(terminalreporter):
    add(found_here())
    if not DEVIATIONS:
        return
    write = terminalreporter.write_line
    terminalreporter.section("largest deviation from PyTorch, relative to the tensor's scale")
    cases = sorted({case for case, _ in DEVIATIONS})
    width = max(map(len, cases))
    write(f"{'':{width}}  float32  float64")
    for case in cases:
        row = [DEVIATIONS.get((case, name)) for name in ("float32", "float64")]
        write(
            f"{case:{width}}  " + "  ".join(f"{x:7.0e}" if x is not None else 7 * " " for x in row)
        )
