"""Reading AArch64 assembly: functions, innermost loops, and what their instructions do.

Instructions are told apart only as far as the tests need: `fmul.4s` is one over four float32 lanes,
`lane` one that moves a lane of a vector to or from elsewhere, `scalar fmul` and `scalar mul` are
multiplications of one number. Whatever else counts by its name.
"""

import re
from collections import Counter
from typing import NamedTuple

Counts = Counter[str]

_LABEL = re.compile(r"([\w.$]+):")
_INSTRUCTION = re.compile(r"\t([a-z][\w.]*)\s*([^/]*)")
_TARGET = re.compile(r"(\.LBB\w+)$")
_LANE = re.compile(r"\bv\d+\.[bhsd]\[\d+\]")
_SHAPE = re.compile(r"v\d+(\.\d+[bhsd])")
_SCALAR_FLOATS = ("fmul", "fadd", "fmadd", "fmla", "fcvt", "scvtf")
_SCALAR_INTS = ("mul", "madd", "msub", "smull", "smaddl")


class Line(NamedTuple):
    """A label (no operands), or an instruction."""

    name: str
    operands: str = ""


def functions(text: str) -> dict[str, list[Line]]:
    """Return the lines of each function by its name."""
    found: dict[str, list[Line]] = {}
    lines: list[Line] = []
    for line in text.splitlines():
        if label := _LABEL.match(line):
            if label[1].startswith(".LBB"):
                lines.append(Line(label[1]))
            elif not label[1].startswith(".L"):
                lines = found.setdefault(label[1], [])
        elif instruction := _INSTRUCTION.match(line):
            lines.append(Line(instruction[1], instruction[2].strip()))
    return found


def innermost_loops(lines: list[Line]) -> list[list[Line]]:
    """Return from a label to the last jump back to it, where no other such range is inside."""
    labels = {line.name: i for i, line in enumerate(lines) if line.name.startswith(".LBB")}
    last: dict[int, int] = {}
    for i, line in enumerate(lines):
        target = _TARGET.search(line.operands)
        if target and line.name[0] in "bct" and labels.get(target[1], i) < i:
            last[labels[target[1]]] = i
    ranges = list(last.items())
    return [
        lines[start : stop + 1]
        for start, stop in ranges
        if not any(start <= a and b <= stop and (a, b) != (start, stop) for a, b in ranges)
    ]


def count(lines: list[Line]) -> Counts:
    """Return how many instructions there are of each kind, and of each name; labels count 0."""
    counts: Counts = Counter()
    for line in lines:
        if not line.name.startswith("."):
            counts.update(_kinds(line))
    return counts


def _kinds(line: Line) -> list[str]:
    name, operands = line
    if name in ("umov", "smov", "ins") or (name == "mov" and _LANE.search(operands)):
        return [name, "lane"]
    shape = _SHAPE.match(operands)
    if shape:
        return [name, name + shape[1]]
    if name in _SCALAR_FLOATS:
        return [name, f"scalar {name}"]
    if name in _SCALAR_INTS:
        return [name, "scalar mul"]
    return [name]
