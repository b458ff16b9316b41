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
    by_computation: dict[str, list[Instruction]] = {}
    entry, current = "", []
    for line in text.splitlines():
        header = HEADER.match(line)
        if header:
            current = by_computation.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif match := INSTRUCTION.match(line):
            current.append(Instruction(*match.groups()))
    return by_computation, entry


def trip_count(condition: list[Instruction]) -> int:
    """Bound of a counted loop: the constant its condition compares with; 1 when there is none."""
    constants = [
        int(number[1])
        for instruction in condition
        if instruction.kind == "constant" and (number := re.match(r"(\d+)\)", instruction.rest))
    ]
    return max(constants, default=1)


def walk(
    by_computation: dict[str, list[Instruction]], name: str, times: int
) -> Iterator[tuple[Instruction, str, int, bool]]:
    """Every instruction that runs, within what, how often, and whether it is a step of its own.

    What is fused is no step of its own.
    """
    for step in by_computation.get(name, ()):
        yield step, name, times, True
        called = dict(re.findall(r"(condition|body)=%?([\w.\-]+)", step.rest))
        if step.kind == "while":
            # A scan over layers or micro-batches: what is in the body runs so many times.
            count = trip_count(by_computation.get(called["condition"], []))
            yield from walk(by_computation, called["body"], times * count)
        elif step.kind in ("call", "conditional", "async-start"):
            for inner in CALLED.findall(step.rest):
                yield from walk(by_computation, inner, times)
        elif step.kind == "fusion":  # a collective may be fused with what hides it
            for inner in CALLED.findall(step.rest):
                fused = filter(is_collective, by_computation.get(inner, ()))
                yield from ((instruction, inner, times, False) for instruction in fused)


def is_collective(instruction: Instruction) -> bool:
    """Whether an instruction talks to other chips; of asynchronous ones the start counts."""
    return instruction.kind.removesuffix("-start") in KINDS


def read(text: str) -> Facts:
    """Facts of the optimized program of one chip."""
    by_computation, entry = computations(text)
    by_name = {
        name: {instruction.name: instruction for instruction in inner}
        for name, inner in by_computation.items()
    }
    collectives: dict[tuple[str, str], Collective] = {}
    moved = 0
    for instruction, within, times, alone in walk(by_computation, entry, 1):
        if is_collective(instruction):
            channel = re.search(r"channel_id=(\d+)", instruction.rest)
            source = re.search(r'op_name="([^"]*)"', instruction.rest)
            kind = instruction.kind.removesuffix("-start")
            # A start's type holds operand and result; the larger is what the chip ends up with.
            arrays = [size(m[0], everywhere=True) for m in SHAPE.finditer(instruction.shape)]
            bytes_ = max(arrays, default=0)
            if kind == "reduce-scatter":  # what goes in is what moves
                bytes_ *= group_size(instruction.rest)
            # The pieces of one pipelined collective share its channel.
            key = channel[1] if channel else instruction.name, kind
            collectives[key] = Collective(kind, bytes_, times, source[1] if source else "")
        elif alone and instruction.kind not in FREE and "AllocateBuffer" not in instruction.rest:
            moved += times * moved_by(instruction, by_name[within], by_computation)
    return Facts(list(collectives.values()), moved)


def moved_by(
    instruction: Instruction,
    named: dict[str, Instruction],
    by_computation: dict[str, list[Instruction]],
) -> int:
    """Bytes between HBM and the chip's cores that one instruction reads and writes.

    A slice reads the part it takes, an update in place reads and writes its new part.
    """
    operands = operands_of(instruction, named)
    if instruction.kind == "fusion" and (
        inner := by_computation.get(CALLED.findall(instruction.rest)[0])
    ):
        inside = {i.name: i for i in inner}
        reads = sum(
            min(size(operand.shape), read_inside(parameter(inner, n), inner, by_computation))
            for n, operand in enumerate(operands)
        )
        return reads + written_by_root(inner[-1], inside, instruction.shape)
    if instruction.kind == "copy-start":  # its type has both ends and a flag
        return sum(size(match[0]) for match in islice(SHAPE.finditer(instruction.shape), 2))
    reads = sum(read_of_operand(instruction, n, size(x.shape)) for n, x in enumerate(operands))
    return reads + written_by_root(instruction, named, instruction.shape)


def operands_of(instruction: Instruction, named: dict[str, Instruction]) -> list[Instruction]:
    """The instructions whose results an instruction takes, in order."""
    # Behind the bracket come attributes, which name computations and not operands.
    inside = instruction.rest.partition(")")[0]
    return [named[name] for name in re.findall(r"%([\w.\-]+)", inside) if name in named]


def parameter(inner: list[Instruction], number: int) -> Instruction | None:
    """The parameter of a computation that stands for its operand ``number``."""
    rest = f"{number})"
    return next((i for i in inner if i.kind == "parameter" and i.rest.startswith(rest)), None)


def read_of_operand(instruction: Instruction, number: int, whole: int) -> int:
    """Bytes that an instruction reads of its operand ``number``, of ``whole`` bytes."""
    if instruction.kind == "dynamic-update-slice" and number == 0:
        return 0
    if instruction.kind in ("dynamic-slice", "slice", "gather") and number == 0:
        return min(whole, size(instruction.shape, everywhere=True))
    return whole


def read_inside(
    argument: Instruction | None,
    inner: list[Instruction],
    by_computation: dict[str, list[Instruction]],
) -> int:
    """Bytes that a fusion reads of one of its parameters."""
    if argument is None:
        return 0
    whole, reads = size(argument.shape, everywhere=True), 0
    for instruction in inner:
        names = re.findall(r"%([\w.\-]+)", instruction.rest.partition(")")[0])
        for number in (n for n, name in enumerate(names) if name == argument.name):
            if instruction.kind == "bitcast":
                reads += read_inside(instruction, inner, by_computation)
            elif instruction.kind == "fusion":
                called = by_computation.get(CALLED.findall(instruction.rest)[0], [])
                reads += read_inside(parameter(called, number), called, by_computation)
            else:
                reads += read_of_operand(instruction, number, whole)
    # Two readers of one parameter in a fusion read it once from HBM.
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
    for collective in collectives:
        count[collective.kind] += collective.times
        bytes_[collective.kind] += collective.times * collective.bytes
    return [(kind, count[kind], bytes_[kind]) for kind in KINDS if count[kind]]
