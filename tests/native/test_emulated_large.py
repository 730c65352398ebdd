"""The CUDA engine's indices beyond 2^31 and 2^32: a few blocks of a large grid, emulated over virtual memory."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import emulated
import pytest
import virtual_memory

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ with its sanitizers"),
    pytest.mark.skipif(not virtual_memory.overcommits(), reason="the kernel gives out no untouched memory"),
]
FLAGS = ["-std=c++17", "-O1", "-ffp-contract=fast", "-w", "-Wno-psabi"]
FLAGS += ["-fsanitize=undefined", "-fno-sanitize-recover=all"]

# name: (file, text as it stands, text with an index of 32 bits)
FAULTS = {
    "a chunk's begin": ("ncg/cuda/engine.cuh", "count, c * kChunk, n, sums);", "count, (int)(c * kChunk), n, sums);"),
    "an element's index": (
        "ncg/cuda/engine.cuh",
        "      const std::int64_t i = batch + q * (kThreads * W);\n      if constexpr (kTable)",
        "      const int i = batch + q * (kThreads * W);\n      if constexpr (kTable)",
    ),
    "an index of unpack": (
        "ncg/cuda/engine.cuh",
        "const std::int64_t i = begin + (q * kThreads + threadIdx.x) * W;",
        "const std::int64_t i = (unsigned)begin + (q * kThreads + threadIdx.x) * W;",
    ),
    "the place in a tensor": (
        "ncg/cuda/table.cuh",
        "const std::int64_t at = i - segments[s].offset;",
        "const std::int64_t at = (unsigned)i - (unsigned)segments[s].offset - (segments[s].offset >> 32);",
    ),
    "the number of chunks": (
        "ncg/chunk.h",
        "return (n + kChunk - 1) / kChunk;",
        "return static_cast<int>(n + kChunk - 1) / kChunk;",
    ),
}


def build(where: Path, sources: Path = emulated.CSRC) -> Path:
    """Compile the check."""
    own = emulated.HERE / "large"
    include = [f"-I{path}" for path in (own, emulated.HERE / "emulator", sources)]
    jobs = [own / "check_large.cc", own / "engine.cc", emulated.HERE / "emulator" / "emulator.cc"]

    def compiled(source: Path) -> str:
        target = str(where / f"{source.stem}.o")
        subprocess.run(["g++", *FLAGS, *include, "-c", str(source), "-o", target], check=True)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, jobs))
    program = where / "check_large"
    subprocess.run(["g++", *FLAGS, *objects, "-o", str(program)], check=True)
    return program


def test_indices(tmp_path: Path) -> None:
    done = emulated.run(build(tmp_path))
    if done.returncode == 77:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 failed" in done.stdout


@pytest.mark.native
@pytest.mark.parametrize("fault", FAULTS)
def test_an_index_of_32_bits_is_caught(tmp_path: Path, fault: str) -> None:
    file, sound, faulty = FAULTS[fault]
    shutil.copytree(emulated.CSRC / "ncg", tmp_path / "csrc" / "ncg")
    broken = tmp_path / "csrc" / file
    text = broken.read_text()
    assert text.count(sound) == 1, f"the fault no longer fits {file}"
    broken.write_text(text.replace(sound, faulty))
    done = emulated.run(build(tmp_path, tmp_path / "csrc"))
    assert done.returncode not in (0, 77), f"{fault}: not noticed"
    print((done.stdout + done.stderr)[:1000])
