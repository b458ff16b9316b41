"""What a compiled program says of itself: collectives, loops, and what moves through memory."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2}
BYTES |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
SHAPE = re.compile(r"\b(" + "|".join(BYTES) + r")\[([\d,]*)\](\{[^{}]*\})?")
"""Type, dimensions, and the layout, where S(1) says that the array is not in HBM."""
HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \((?>.*?\) -> )(?>.* \{)")
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
CALLED = re.compile(r"(?:calls|body|condition|to_apply)=%?([\w.\-]+)")
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
FREE = {
    *("parameter", "tuple", "get-tuple-element", "bitcast", "constant", "while", "iota"),
    *("async-start", "async-update", "async-done", "call", "conditional"),
    *("after-all", "copy-done", "partition-id"),
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
    """Bytes that the steps read and write in HBM, loops multiplied out; collectives' apart."""


def size(shape: str, *, everywhere: bool = False) -> int:
    """Bytes of the arrays of a type that lie in HBM, or ``everywhere``."""
    return sum(
        BYTES[kind] * math.prod(int(n) for n in dims.split(",") if n)
        for kind, dims, place in SHAPE.findall(shape)
        if everywhere or "S(" not in place
    )


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
) -> Iterator[tuple[Instruction, str, int, bool]]:
    """Every instruction that runs, within what, how often, and whether it is a step of its own.

    What is fused is no step of its own.
    """
    for each in found.get(name, ()):
        yield each, name, times, True
        called = dict(re.findall(r"(condition|body)=%?([\w.\-]+)", each.rest))
        if each.kind == "while":
            count = trip_count(found.get(called["condition"], []))
            yield from walk(found, called["body"], times * count)
        elif each.kind in ("call", "conditional", "async-start"):
            for inner in CALLED.findall(each.rest):
                yield from walk(found, inner, times)
        elif each.kind == "fusion":  # a collective may be fused with what hides it
            for inner in CALLED.findall(each.rest):
                fused = filter(is_collective, found.get(inner, ()))
                yield from ((instruction, inner, times, False) for instruction in fused)


def is_collective(each: Instruction) -> bool:
    """Whether an instruction talks to other chips; of asynchronous ones the start counts."""
    return each.kind.removesuffix("-start") in KINDS


def read(text: str) -> Facts:
    """Facts of the optimized program of one chip."""
    found, entry = computations(text)
    by_name = {name: {each.name: each for each in inner} for name, inner in found.items()}
    collectives: dict[tuple[str, str], Collective] = {}
    moved = 0
    for each, within, times, alone in walk(found, entry, 1):
        if is_collective(each):
            channel = re.search(r"channel_id=(\d+)", each.rest)
            source = re.search(r'op_name="([^"]*)"', each.rest)
            kind = each.kind.removesuffix("-start")
            # A start's type holds operand and result; the larger is what the chip ends up with.
            arrays = [size(m[0], everywhere=True) for m in SHAPE.finditer(each.shape)]
            bytes_ = max(arrays, default=0)
            if kind == "reduce-scatter":  # what goes in is what moves
                bytes_ *= group_size(each.rest)
            # The pieces of one pipelined collective share its channel.
            key = channel[1] if channel else each.name, kind
            collectives[key] = Collective(kind, bytes_, times, source[1] if source else "")
        elif alone and each.kind not in FREE and "AllocateBuffer" not in each.rest:
            moved += times * moved_by(each, by_name[within], found)
    return Facts(list(collectives.values()), moved)


def moved_by(
    each: Instruction, named: dict[str, Instruction], found: dict[str, list[Instruction]]
) -> int:
    """Bytes between HBM and the chip's cores that one instruction reads and writes.

    A slice reads the part it takes, an update in place reads and writes its new part.
    """
    operands = operands_of(each, named)
    if each.kind == "fusion" and (inner := found.get(CALLED.findall(each.rest)[0])):
        inside = {i.name: i for i in inner}
        reads = sum(
            min(size(operand.shape), read_inside(parameter(inner, n), inner, found))
            for n, operand in enumerate(operands)
        )
        return reads + written_by_root(inner[-1], inside, each.shape)
    if each.kind == "copy-start":  # its type has both ends and a flag
        return sum(size(match[0]) for match in islice(SHAPE.finditer(each.shape), 2))
    reads = sum(read_of_operand(each, n, size(x.shape)) for n, x in enumerate(operands))
    return reads + written_by_root(each, named, each.shape)


def operands_of(each: Instruction, named: dict[str, Instruction]) -> list[Instruction]:
    """The instructions whose results an instruction takes, in order."""
    inside = each.rest.partition(")")[0]
    return [named[name] for name in re.findall(r"%([\w.\-]+)", inside) if name in named]


def parameter(inner: list[Instruction], number: int) -> Instruction | None:
    """The parameter of a computation that stands for its operand ``number``."""
    rest = f"{number})"
    return next((i for i in inner if i.kind == "parameter" and i.rest.startswith(rest)), None)


def read_of_operand(each: Instruction, number: int, whole: int) -> int:
    """Bytes that an instruction reads of its operand ``number``, of ``whole`` bytes."""
    if each.kind == "dynamic-update-slice" and number == 0:
        return 0
    if each.kind in ("dynamic-slice", "slice", "gather") and number == 0:
        return min(whole, size(each.shape, everywhere=True))
    return whole


def read_inside(
    given: Instruction | None, inner: list[Instruction], found: dict[str, list[Instruction]]
) -> int:
    """Bytes that a fusion reads of one of its parameters."""
    if given is None:
        return 0
    whole, reads = size(given.shape, everywhere=True), 0
    for each in inner:
        names = re.findall(r"%([\w.\-]+)", each.rest.partition(")")[0])
        for number in (n for n, name in enumerate(names) if name == given.name):
            if each.kind == "bitcast":
                reads += read_inside(each, inner, found)
            elif each.kind == "fusion":
                called = found.get(CALLED.findall(each.rest)[0], [])
                reads += read_inside(parameter(called, number), called, found)
            else:
                reads += read_of_operand(each, number, whole)
    return min(whole, reads)


def written_by_root(root: Instruction, named: dict[str, Instruction], shape: str) -> int:
    """Bytes of ``shape`` that are written: of an update in place the part that is new."""
    if not size(shape):  # it stays in the cores' own memory
        return 0
    operands = operands_of(root, named)
    if root.kind == "dynamic-update-slice" and len(operands) > 1:
        return size(operands[1].shape, everywhere=True)
    if root.kind == "tuple":
        parts = [match[0] for match in SHAPE.finditer(shape)]
        pairs = zip(operands, parts, strict=False)
        return sum(written_by_root(operand, named, part) for operand, part in pairs)
    if root.kind in ("bitcast", "copy") and operands and "update" in operands[0].kind:
        return written_by_root(operands[0], named, shape)
    return size(shape)


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
