"""Real data files where they are present, and copies of them to damage."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ncg_cuda import scenarios
from ncg_cuda.scenarios import DataFile, Scenario, reg_bos, reg_lif

FILES = {"reg-bos": reg_bos.FILE, "reg-lif": reg_lif.FILE}


@pytest.fixture
def present() -> Callable[[str], Scenario]:
    """A scenario by name; the test is skipped, with the reason, where its data are absent."""

    def get(name: str) -> Scenario:
        scenario = scenarios.get(name)
        if not scenario.present():
            pytest.skip(f"{name}: {scenario.locate().split('. ')[0]}")
        return scenario

    return get


@pytest.fixture(params=sorted(FILES))
def copy(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Scenario, DataFile, Path]:
    """A scenario, its file's description and a private copy of the file, which the scenario will find."""
    scenario, file = scenarios.get(request.param), FILES[request.param]
    original = file.find()
    if original is None:
        pytest.skip(f"{request.param}: {scenario.locate().split('. ')[0]}")
    path = tmp_path / file.folder / file.name
    path.parent.mkdir()
    shutil.copyfile(original, path)
    path.chmod(0o644)
    monkeypatch.setenv("NCG_DATA_DIR", str(tmp_path))
    return scenario, file, path
