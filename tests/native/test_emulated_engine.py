"""The CUDA engine's sources, run on the CPU by the emulator, under sanitizers; and proof that this can fail.

The short set runs in ``make test``; the full set, ThreadSanitizer and the seeded faults in ``make check-native``.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import emulated
import pytest

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ with its sanitizers")


def test_every_operation_under_address_sanitizer(tmp_path: Path) -> None:
    done = emulated.run(emulated.build(tmp_path, "address"), "--quick")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 failed" in done.stdout


@pytest.mark.native
@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_full_set(tmp_path: Path, sanitizer: str) -> None:
    program = emulated.build(tmp_path, sanitizer)
    for seed in ("11", "12") if sanitizer == "address" else ("13",):
        done = emulated.run(program, "--seed", seed, *([] if sanitizer == "address" else ["--quick"]))
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.native
@pytest.mark.parametrize("fault", emulated.FAULTS)
def test_seeded_fault_is_caught(tmp_path: Path, fault: str) -> None:
    sanitizer = emulated.FAULTS[fault][3]
    program = emulated.build(tmp_path, sanitizer, emulated.sources_with(fault, tmp_path))
    done = emulated.run(program, "--quick")
    assert done.returncode != 0, f"{fault}: not noticed"
    print((done.stdout + done.stderr)[:3000])
