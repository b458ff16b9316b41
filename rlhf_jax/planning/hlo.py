"""What a compiled program says of itself: collectives, loops, and what moves through memory."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2}
BYTES |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
SHAPE = re.compile(r"\b(" + "|".join(BYTES) + r")\[([\d,]*)\]")
HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \((?>.*?\) -> )(?>.* \{)")
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
CALLED = re.compile(r"(?:calls|body|condition|to_apply)=%?([\w.\-]+)")
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
FREE = {
    *("parameter", "tuple", "get-tuple-element", "bitcast", "constant", "while", "iota"),
    *("after-all", "copy-done", "copy-start", "async-done", "async-update", "partition-id"),
}


class Instruction(NamedTuple):
    """One line of a compiled program."""

    name: str
    shape: str
    kind: str
    rest: str


class Collective(NamedTuple):
    """One communication of a compiled program, and how often it is done."""

    kind: str
    bytes: int
    """Of the result on one chip (reduce-scatter: of its operand), each time."""
    times: int
    source: str
    """The operation of the model it belongs to."""


class Facts(NamedTuple):
    """What is read out of a compiled program."""

    collectives: list[Collective]
    moved: int
    """Bytes of every result, written once and read once, loops multiplied out: an estimate."""


def size(shape: str) -> int:
    """Bytes of an array type, or of all arrays of a tuple type."""
    found = SHAPE.findall(shape)
    return sum(BYTES[t] * math.prod(int(n) for n in dims.split(",") if n) for t, dims in found)


def computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """Instructions of every computation, and the name of the entry."""
    found: dict[str, list[Instruction]] = {}
    entry, current = "", []
    for line in text.splitlines():
        header = HEADER.match(line)
        if header:
            current = found.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif match := INSTRUCTION.match(line):
            current.append(Instruction(*match.groups()))
    return found, entry


def trip_count(condition: list[Instruction]) -> int:
    """Bound of a counted loop: the constant its condition compares with; 1 when there is none."""
    constants = [
        int(number[1])
        for each in condition
        if each.kind == "constant" and (number := re.match(r"(\d+)\)", each.rest))
    ]
    return max(constants, default=1)


def walk(
    found: dict[str, list[Instruction]], name: str, times: int
) -> Iterator[tuple[Instruction, int, bool]]:
    """Every instruction that runs, how often, and whether it is a step of its own (not fused)."""
    for each in found.get(name, ()):
        yield each, times, True
        called = dict(re.findall(r"(condition|body)=%?([\w.\-]+)", each.rest))
        if each.kind == "while":
            count = trip_count(found.get(called["condition"], []))
            yield from walk(found, called["body"], times * count)
        elif each.kind in ("call", "conditional", "async-start"):
            for inner in CALLED.findall(each.rest):
                yield from walk(found, inner, times)
        elif each.kind == "fusion":  # a collective may be fused with what hides it
            for inner in CALLED.findall(each.rest):
                yield from ((i, times, False) for i in found.get(inner, ()) if is_collective(i))


def is_collective(each: Instruction) -> bool:
    """Whether an instruction talks to other chips; of asynchronous ones the start counts."""
    return each.kind.removesuffix("-start") in KINDS


def read(text: str) -> Facts:
    """Facts of the optimized program of one chip."""
    found, entry = computations(text)
    collectives: dict[tuple[str, str], Collective] = {}
    moved = 0
    for each, times, alone in walk(found, entry, 1):
        if is_collective(each):
            channel = re.search(r"channel_id=(\d+)", each.rest)
            source = re.search(r'op_name="([^"]*)"', each.rest)
            kind = each.kind.removesuffix("-start")
            # A start's type holds operand and result; the larger is what the chip ends up with.
            bytes_ = max((size(m[0]) for m in re.finditer(SHAPE, each.shape)), default=0)
            if kind == "reduce-scatter":  # what goes in is what moves
                bytes_ *= group_size(each.rest)
            # The pieces of one pipelined collective share its channel.
            key = channel[1] if channel else each.name, kind
            collectives[key] = Collective(kind, bytes_, times, source[1] if source else "")
        elif alone and each.kind not in FREE:
            moved += 2 * times * written(each, found)
    return Facts(list(collectives.values()), moved)


def written(each: Instruction, found: dict[str, list[Instruction]]) -> int:
    """Bytes that an instruction writes: of a buffer updated in place, the part it updates."""
    if each.kind == "fusion":
        inner = found.get(CALLED.findall(each.rest)[0], [])
        return written_by_root(inner[-1], {i.name: i for i in inner}) if inner else 0
    return size(each.shape)


def written_by_root(root: Instruction, named: dict[str, Instruction]) -> int:
    """Bytes that a fusion writes: of an update in place the part that is new, else its result."""
    operands = [named[name] for name in re.findall(r"%([\w.\-]+)", root.rest) if name in named]
    if root.kind == "dynamic-update-slice" and len(operands) > 1:
        return size(operands[1].shape)
    if root.kind == "tuple":
        return sum(written_by_root(operand, named) for operand in operands)
    if root.kind in ("bitcast", "copy") and operands and "update" in operands[0].kind:
        return written_by_root(operands[0], named)
    return size(root.shape)


def group_size(rest: str) -> int:
    """Chips of one replica group, in either of the two notations."""
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
        return int(match[1])
    match = re.search(r"replica_groups=\{\{([\d,]*)\}", rest)
    return len(match[1].split(",")) if match else 1


def totals(collectives: list[Collective]) -> list[tuple[str, int, int]]:
    """(kind, how many run, bytes in all) of one execution on one chip."""
    count, bytes_ = Counter(), Counter()
    for each in collectives:
        count[each.kind] += each.times
        bytes_[each.kind] += each.times * each.bytes
    return [(kind, count[kind], bytes_[kind]) for kind in KINDS if count[kind]]
