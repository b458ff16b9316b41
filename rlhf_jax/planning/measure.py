"""One program compiled for a described topology: what it needs of a chip and what it costs."""

import math
import time
from typing import Any, NamedTuple

import jax

from rlhf_jax.planning.chips import Chip
from rlhf_jax.planning.flops import count_flops
from rlhf_jax.planning.hlo import Collective, read

TRAFFIC = {"all-reduce": 2.0}
"""Bytes that pass a chip's links per byte of result; 1 for the others."""


class Measured(NamedTuple):
    """Bytes and seconds are of one chip and one execution."""

    name: str
    kinds: dict[str, int]
    """Bytes by kind: of arguments, of what lies beside them, and the program's temporaries."""
    flops: int
    """Of matrix products, all chips together."""
    moved: int
    collectives: list[Collective]
    replicated: tuple[int, str]
    """Largest array that lies whole on every chip: bytes, shape."""
    compile_seconds: float
    error: str
    """Why it was not compiled, in the compiler's words if it gave up; empty when it compiled."""

    @property
    def bytes(self) -> int:
        """All that the program needs of one chip."""
        return sum(self.kinds.values())

    def fits(self, chip: Chip) -> bool:
        """Whether it compiled and the chip has room for it."""
        return not self.error and self.bytes <= chip.hbm

    def hopeless(self, chip: Chip) -> bool:
        """Too large whatever the number of micro-batches."""
        return bool(self.error) and self.bytes > chip.hbm

    def seconds(self, chip: Chip, chips: int) -> dict[str, float]:
        """The three bounds of the roofline, each at the chip's published peak."""
        linked = sum(TRAFFIC.get(c.kind, 1.0) * c.bytes * c.times for c in self.collectives)
        return {
            "compute": self.flops / chips / chip.flops,
            "memory": self.moved / chip.bandwidth,
            "links": linked / chip.interconnect,
        }

    def least(self) -> int:
        """Bytes of the arguments, each read once: what no such program can do without."""
        beside = ("temporaries", "results")
        return sum(
            n for k, n in self.kinds.items() if k not in beside and not k.endswith(" beside")
        )

    def of_roofline(self, chip: Chip, chips: int) -> float:
        """Share of the estimate that operations, or reading the arguments once, would take."""
        bounds = self.seconds(chip, chips)
        needed = max(bounds["compute"], self.least() / chip.bandwidth)
        return needed / max(bounds.values())

    def largest_gathered(self) -> tuple[int, str]:
        """Largest array that the program itself makes whole on several chips."""
        whole = [c for c in self.collectives if c.kind in ("all-gather", "all-reduce")]
        largest = max(whole, key=lambda c: c.bytes, default=None)
        return (0, "") if largest is None else (largest.bytes, largest.source)


def part_bytes(leaf: Any) -> int:
    """Bytes of an array on one chip."""
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays on one chip."""
    return sum(map(part_bytes, jax.tree.leaves(tree)))


def largest_replicated(tree: Any) -> tuple[int, str]:
    """Bytes and shape of the largest array that every chip holds whole; (0, "") if none."""
    whole = [x for x in jax.tree.leaves(tree) if x.sharding.is_fully_replicated]
    largest = max(whole, key=part_bytes, default=None)
    if largest is None:
        return 0, ""
    return part_bytes(largest), f"{largest.dtype}{list(largest.shape)}"


def compiler_options(effort: float) -> dict[str, Any]:
    """How the TPU compiler is asked to compile, ``effort`` from −1 (quick) to 1."""
    # Products pipelined with their own gathers make programs five times as long to compile; each
    # gather then counts as one collective, and the memory hardly differs.
    return {
        "xla_jf_spmd_threshold_for_windowed_einsum_mib": 1_000_000,
        "exec_time_optimization_effort": effort,
    }


def measure(
    name: str,
    jitted: Any,
    arguments: tuple,
    kinds: dict[str, Any],
    resident: dict[str, Any],
    *,
    effort: float,
    chip: Chip,
) -> Measured:
    """Trace, lower and compile ``jitted`` for the devices of its arguments' shardings.

    A program whose arguments alone do not fit ``chip`` is not compiled.
    """
    start = time.monotonic()
    traced = jitted.trace(*arguments)
    flops = count_flops(traced.jaxpr.jaxpr)
    bytes_ = {kind: tree_bytes(tree) for kind, tree in kinds.items()}
    bytes_ |= {f"{kind} beside": tree_bytes(tree) for kind, tree in resident.items()}
    replicated = largest_replicated((kinds, resident))
    result = Measured(name, bytes_, flops, 0, [], replicated, 0.0, "")
    # The compiler would take minutes to say the same.
    if result.bytes > chip.hbm:
        error = f"Used {result.bytes / 2**30:.1f}G by its arguments alone, not compiled"
        return result._replace(error=error, compile_seconds=time.monotonic() - start)
    try:
        compiled = traced.lower().compile(compiler_options=compiler_options(effort))
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).strip()
        return result._replace(error=reason, compile_seconds=time.monotonic() - start)
    memory = compiled.memory_analysis()
    # Donated arguments are reused for results, and must not count twice.
    new_bytes = memory.output_size_in_bytes - memory.alias_size_in_bytes
    bytes_["temporaries"] = memory.temp_size_in_bytes
    bytes_["results"] = new_bytes + memory.generated_code_size_in_bytes
    facts = read(compiled.as_text())
    return result._replace(
        kinds=bytes_,
        moved=facts.moved,
        collectives=facts.collectives,
        compile_seconds=time.monotonic() - start,
    )
