"""Reads the GPU machine code of the built native core: which instructions each kernel has.

Needs cuobjdump and nvdisasm: from a CUDA toolkit, or from the Python wheels nvidia-cuda-cuobjdump and
nvidia-cuda-nvdisasm (``make check-native`` brings them).
"""

from __future__ import annotations

import collections
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

_KERNEL = re.compile(
    r"Function : _ZN3ncg4cuda4passINS_\d+(\w+?)I([fd])EE[fd](f|d|NS_\d+Bfloat16E)NS_\d+(Direct|InSolve)I.*?PlaceE(\d)E"
)
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\d+\s+)?([A-Z][A-Z0-9_.]*)")


@dataclass
class Kernel:
    """One kernel for one architecture."""

    arch: str
    operation: str
    dtype: str
    """``bfloat16``: float32 vectors with operand 0 in bfloat16."""
    driver: str
    place: int
    """0: flat, 1: table in the arguments, 2: table in device memory."""
    instructions: collections.Counter[str] = field(default_factory=collections.Counter)

    def count(self, pattern: str) -> int:
        """How many instructions match the pattern from their beginning."""
        return sum(n for name, n in self.instructions.items() if re.match(pattern, name))

    def __str__(self) -> str:
        return f"{self.arch} {self.operation}<{self.dtype}> {self.driver} place {self.place}"


def find_tools() -> dict[str, str] | None:
    """The environment in which cuobjdump runs (it calls nvdisasm), or None where the tools are missing."""
    folders = os.environ["PATH"].split(os.pathsep)
    folders += [str(p.parent) for p in Path(sys.prefix).glob("lib/python*/site-packages/nvidia/cu*/bin/cuobjdump")]
    path = os.pathsep.join(folders)
    if shutil.which("cuobjdump", path=path) is None or shutil.which("nvdisasm", path=path) is None:
        return None
    return {**os.environ, "PATH": path}


def read(library: Path, environment: dict[str, str]) -> list[Kernel]:
    """Every kernel of the engine in a library, for every architecture that it holds machine code for."""
    cuobjdump = shutil.which("cuobjdump", path=environment["PATH"])
    done = subprocess.run(
        [str(cuobjdump), "-sass", str(library)],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
        timeout=600,
    )
    kernels: list[Kernel] = []
    arch, current = "", None
    for line in done.stdout.splitlines():
        if line.startswith("arch = "):
            arch = line.removeprefix("arch = ")
        elif "Function :" in line:
            match = _KERNEL.search(line)
            current = None
            if match:
                name, letter, first, driver, place = match.groups()
                dtype = "bfloat16" if "Bfloat16" in first else {"f": "float32", "d": "float64"}[letter]
                current = Kernel(arch, name, dtype, driver, int(place))
                kernels.append(current)
        elif current is not None and (match := _INSTRUCTION.match(line)):
            current.instructions[match[1]] += 1
    return kernels
