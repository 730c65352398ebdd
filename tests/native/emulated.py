"""Builds and runs the emulated CUDA engine: tests/native/check_engine.cc under a sanitizer, with or without a fault."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
COMMON = ["-std=c++17", "-O1", "-g1", "-ffp-contract=fast", "-Wno-unknown-pragmas", "-Wno-psabi", "-DNCG_MAX_BLOCKS=2"]
ENGINE = "ncg/cuda/engine.cuh"
TABLE = "ncg/cuda/table.cuh"

# name: (file, text as it stands, text with the fault, sanitizer that must see it)
FAULTS = {
    "missing barrier after the warps' sums": (
        ENGINE,
        "= sum;\n      }\n      __syncthreads();\n      if (threadIdx.x < S) {",
        "= sum;\n      }\n      if (threadIdx.x < S) {",
        "address",
    ),
    "missing barrier before the next chunk": (
        ENGINE,
        "      __syncthreads();  // before the next chunk overwrites warp_sums\n",
        "",
        "thread",
    ),
    "missing fence before the ticket": (
        ENGINE,
        "  __threadfence();\n  __syncthreads();\n",
        "  __syncthreads();\n",
        "thread",
    ),
    "off by one in a 16-byte access": (
        ENGINE,
        "  if (kFull || i + W <= n) {\n    quad =",
        "  if (kFull || i + W <= n + 1) {\n    quad =",
        "address",
    ),
    "misaligned segment read as 16 bytes": (
        TABLE,
        "left >= Q::kWidth && reinterpret_cast<std::uintptr_t>(data) % sizeof(Q) == 0",
        "left >= Q::kWidth",
        "address",
    ),
    "missing tail": (ENGINE, "      if (i + j < n) at[i + j] = quad.at[j];\n", "", "address"),
    "a tensor written past its end": (
        TABLE,
        "      if (j < left) out[j] = quad.at[j];\n",
        "      out[j] = quad.at[j];\n",
        "address",
    ),
    "a chunk forgotten": (
        ENGINE,
        "turn < chunks; turn += gridDim.x) {",
        "turn < chunks - (chunks > 1); turn += gridDim.x) {",
        "address",
    ),
    "shared memory one too small": (
        ENGINE,
        "NCG_SHARED(double, warp_sums, kWarps*(S > 0 ? S : 1));",
        "NCG_SHARED(double, warp_sums, kWarps*(S > 0 ? S : 1) - 1);",
        "address",
    ),
    "a shuffle that half a warp skips": (
        ENGINE,
        "  wide += __shfl_down_sync(0xffffffffu, wide, 16);",
        "  if (threadIdx.x % 32 < 16) wide += __shfl_down_sync(0xffffffffu, wide, 16);",
        "address",
    ),
}


def sources_with(fault: str, where: Path) -> Path:
    """A copy of csrc with the fault in it."""
    file, sound, faulty, _ = FAULTS[fault]
    copy = where / "csrc"
    shutil.copytree(CSRC / "ncg", copy / "ncg")
    text = (copy / file).read_text()
    if text.count(sound) != 1:
        raise AssertionError(f"the fault {fault!r} no longer fits {file}: its text occurs {text.count(sound)} times")
    (copy / file).write_text(text.replace(sound, faulty))
    return copy


def build(where: Path, sanitizer: str, sources: Path = CSRC) -> Path:
    """Compile the check with ``address`` (and undefined) or ``thread`` sanitizer; returns the program."""
    compiler = os.environ.get("CXX", "g++")
    program = where / f"check-{sanitizer}"
    include = [f"-I{HERE / 'emulator'}", f"-I{sources}"]
    if sanitizer == "thread":
        flags, own = ["-fsanitize=thread", "-Wno-tsan"], ["-DNCG_EMULATOR_TSAN"]
    else:
        flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
        own = flags
    jobs = [(HERE / "emulator" / "emulator.cc", own)]
    jobs += [(source, flags) for source in (HERE / "check_engine.cc", *sorted((sources / "ncg/cuda").glob("*.cu")))]

    def compile_one(job: tuple[Path, list[str]]) -> str:
        source, options = job
        target = where / f"{source.stem}-{sanitizer}.o"
        subprocess.run(
            [compiler, *COMMON, *options, *include, "-x", "c++", "-c", str(source), "-o", str(target)], check=True
        )
        return str(target)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, jobs))
    subprocess.run([compiler, *flags, *objects, "-o", str(program)], check=True)
    return program


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the check; the sanitizers end it at the first finding."""
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=0"}
    return subprocess.run(
        [str(program), *arguments], capture_output=True, text=True, check=False, env=environment, timeout=1800
    )
