"""A plan as Markdown, for the terminal and for docs/plans."""

import re
from collections.abc import Iterable, Sequence

from rlhf_jax.planning.chips import Chip
from rlhf_jax.planning.hlo import totals
from rlhf_jax.planning.measure import Measured

KINDS = {
    "weights": ("weights", "weights beside"),
    "optimizer": ("optimizer", "optimizer beside"),
    "KV cache": ("cache",),
    "batch": ("batch",),
    "temporaries": ("temporaries", "results"),
}
"""Columns of the memory table, and the kinds that each adds up."""


def gib(bytes_: float | int) -> str:
    """Bytes in GiB, two decimals."""
    return f"{bytes_ / 2**30:.2f}"


def duration(seconds: float | int) -> str:
    """Seconds, or milliseconds below one."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def column(measured: Measured, name: str) -> int:
    """Bytes of a column of the memory table: of all kinds that belong there."""
    return sum(measured.kinds.get(kind, 0) for kind in KINDS[name])


def verdict(measured: Measured, chip: Chip) -> str:
    """The word fits, or what does not."""
    if measured.fits(chip):
        return "fits"
    largest = max(KINDS, key=lambda name: column(measured, name))
    if measured.hopeless(chip):
        return f"does not fit: {used(measured.error)}; what is too large is {largest}"
    if measured.error and "memory" not in measured.error:
        return f"not compiled: {measured.error.splitlines()[0][:200]}"
    if measured.error:
        return f"does not fit: {used(measured.error)}; what is too large is temporaries"
    return f"does not fit: most of it is {largest}"


def used(error: str) -> str:
    """The compiler's own account of memory, from its message."""
    if early := re.search(r"\(([^\s()]+)\) exceeds available HBM \(([^\s()]+)\)", error):
        return f"Used {early[1]} of {early[2]} hbm beside its arguments"
    lines = [line.strip() for line in error.splitlines() if "Used" in line]
    text = lines[0] if lines else error.splitlines()[0]
    return text[text.find("Used") :][:160] if "Used" in text else text[:160]


def memory_table(measured: Sequence[Measured], chip: Chip) -> str:
    """What each program needs of a chip's memory, by kind, and whether it fits."""
    header = ["program", *KINDS, "all", f"of {gib(chip.hbm)}", ""]
    rows = [
        [
            m.name,
            *(gib(column(m, name)) for name in KINDS),
            gib(m.bytes),
            f"{m.bytes / chip.hbm:.0%}",
            verdict(m, chip),
        ]
        for m in measured
    ]
    return table(header, rows)


def cost_table(measured: Sequence[Measured], chip: Chip, chips: int) -> str:
    """The roofline of each program that compiled: operations, three bounds, which one limits."""
    rows = []
    for m in measured:
        if m.error:
            continue
        bounds = m.seconds(chip, chips)
        limit = max(bounds, key=bounds.__getitem__)
        rows.append(
            [
                m.name,
                f"{m.flops:.2e}",
                *(duration(seconds) for seconds in bounds.values()),
                f"{duration(bounds[limit])} ({limit})",
                f"{m.of_roofline(chip, chips):.0%}",
                f"{m.compile_seconds:.0f} s",
            ]
        )
    header = [
        *("program", "FLOPs, all chips", "compute", "memory", "links"),
        *("estimate", "of the roofline", "tracing and compiling"),
    ]
    return table(header, rows)


def collective_table(measured: Sequence[Measured]) -> str:
    """How often each program talks to other chips, by kind, and how much."""
    rows = [
        [m.name, kind, f"{count:,}", gib(bytes_)]
        for m in measured
        for kind, count, bytes_ in totals(m.collectives)
    ]
    return table(["program", "collective", "times", "GiB per chip"], rows)


def whole_table(measured: Sequence[Measured]) -> str:
    """The largest arrays that every chip holds whole."""
    rows = []
    for m in measured:
        gathered, source = m.largest_gathered()
        rows.append([m.name, gib(m.replicated[0]), m.replicated[1], gib(gathered), short(source)])
    header = ["program", "largest replicated argument, GiB", "", "largest gathered or summed, GiB"]
    return table([*header, ""], rows)


def short(source: str) -> str:
    """The end of an operation's name, where the model's own names are."""
    return "/".join(source.replace("closed_call/", "").split("/")[-4:])
