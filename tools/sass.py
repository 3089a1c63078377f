"""Reading NVIDIA machine code without a GPU: the loops of a kernel and what their instructions are.

The text is that of ``cuobjdump -sass``, which Triton brings along. A loop is what lies between a branch and an earlier address it
goes to; those that hold matrix instructions are where an attention kernel spends its time.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

CLASSES = {
    "matrix": r"HGMMA|IGMMA|QGMMA|HMMA|IMMA|QMMA|UTCHMMA|UTCIMMA|UTCQMMA",
    "exp2": r"MUFU\.EX2",
    "fp32": r"FFMA|FMUL|FADD|FMNMX\d?|FSEL|FSETP|FSET|FCHK|FSWZADD",
    "convert": r"F2FP|F2F|I2F|I2FP|F2I|PRMT|HADD2|HFMA2|HMUL2|HMNMX2",
    "integer": r"IMAD|IADD3?|LEA|LOP3?|SHF|ISETP|SEL|VIADD|VIMNMX|IABS|PLOP3|P2R|R2P|BFE|BFI|POPC|IMNMX|SGXT|LDC|ULDC|CS2R|S2R|S2UR|R2UR|REDUX|BMSK|FLO",
    "move": r"MOV|UMOV|SHFL",
    "scalar unit": r"U[A-Z0-9]+",
    "async copy": r"LDGSTS|UTMALDG|UBLKCP",
    "global": r"LDG|STG|LD|ST|ATOM\w*|RED",
    "shared": r"LDS|LDSM|STS|STSM|ATOMS",
    "local": r"LDL|STL",
    "barrier": r"BAR|DEPBAR|LDGDEPBAR|WARPSYNC|SYNCS|MEMBAR|FENCE|ERRBAR|WARPGROUP|ARRIVES|NANOSLEEP|ELECT|CCTL|BSYNC|BSSY",
    "idle": r"NOP",
    "branch": r"BRA|EXIT|CALL|RET|BRX|JMP|WARPGROUPSET|USETMAXREG",
}
"""Class of an instruction, by the name before its first dot; the first match counts."""
_MATCH = {name: re.compile(rf"(?:{pattern})(?:\.|$)") for name, pattern in CLASSES.items()}
_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);")


@dataclass(frozen=True)
class Instruction:
    """address in bytes; name with its modifiers; operands as text."""

    address: int
    name: str
    operands: str

    @property
    def kind(self) -> str:
        """Class as in :data:`CLASSES`, or "other"."""
        return next((kind for kind, match in _MATCH.items() if match.match(self.name)), "other")


@dataclass(frozen=True)
class Loop:
    """A stretch of code that is run again and again: its instructions, counted.

    skipped: those a forward branch inside of it can pass. beside: exponentials taken while a matrix instruction of the same warp is under
    way, from the place where it is begun to the place where all of them are waited for.
    """

    first: int
    last: int
    names: Counter[str]
    kinds: Counter[str]
    skipped: int = 0
    beside: int = 0

    @property
    def total(self) -> int:
        """Instructions of one round."""
        return sum(self.kinds.values())

    def count(self, pattern: str) -> int:
        """Instructions whose name begins with ``pattern`` (a regular expression)."""
        return sum(n for name, n in self.names.items() if re.match(pattern, name))


def disassemble(cubin: bytes) -> str:
    """Machine code as text. Raises RuntimeError where the tool is not there or does not know the architecture."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        try:
            done = subprocess.run([str(tool), "-sass", file.name], capture_output=True, text=True, timeout=120, check=False)
        except OSError as error:
            raise RuntimeError(f"cuobjdump cannot be run: {error}") from error
    if done.returncode or "/*0000*/" not in done.stdout:
        raise RuntimeError(f"cuobjdump gave no code: {done.stderr.strip()[:200]}")
    return done.stdout


def instructions(text: str) -> list[Instruction]:
    """All instructions in order."""
    found = (_LINE.match(line) for line in text.splitlines())
    return [Instruction(int(m.group(1), 16), m.group(2), m.group(3)) for m in found if m]


def loops(code: list[Instruction]) -> list[Loop]:
    """The innermost loops that hold matrix instructions, in order of address."""
    spans = set()
    for i in code:
        target = _target(i)
        if target is not None and target < i.address:
            spans.add((target, i.address))
    found = []
    for first, last in sorted(spans):
        inside = [i for i in code if first <= i.address <= last]
        if not any(i.kind == "matrix" for i in inside) or any((a, b) != (first, last) and first <= a and b <= last and _has_matrix(code, a, b) for a, b in spans):
            continue
        passed = [(i.address, t) for i in inside if (t := _target(i)) is not None and i.address < t <= last]
        skipped = sum(any(a < i.address < b for a, b in passed) for i in inside)
        found.append(Loop(first, last, Counter(i.name for i in inside), Counter(i.kind for i in inside), skipped, _beside(inside)))
    return found


def _beside(inside: list[Instruction]) -> int:
    """Exponentials of a round that find a product under way, in a loop that is running already."""
    under_way, found = False, 0
    for number, i in enumerate(inside * 2):
        if i.kind == "matrix":
            under_way = True
        elif i.name.startswith("WARPGROUP.DEPBAR") and i.operands.rstrip().endswith("0x0"):
            under_way = False
        found += under_way and i.kind == "exp2" and number >= len(inside)
    return found


def _target(i: Instruction) -> int | None:
    """Address a branch goes to, None for any other instruction."""
    found = re.search(r"0x([0-9a-f]+)", i.operands) if i.name.startswith("BRA") else None
    return None if found is None else int(found.group(1), 16)


def _has_matrix(code: list[Instruction], first: int, last: int) -> bool:
    return any(i.kind == "matrix" for i in code if first <= i.address <= last)
