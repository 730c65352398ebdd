"""Looking files up, refusing damaged ones, splitting and standardising."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ncg_cuda import scenarios
from ncg_cuda.scenarios import DataFile, Scenario, ScenarioDataError, data, reg_bos

Copy = tuple[Scenario, DataFile, Path]


def test_found_in_folder_then_in_root(copy: Copy, tmp_path: Path) -> None:
    scenario, file, path = copy
    assert file.find() == path
    in_root = tmp_path / file.name
    path.rename(in_root)
    assert file.find() == in_root
    assert scenario.present()
    assert scenario.load().origin == scenario.locate() == str(in_root)


@pytest.mark.parametrize(("folder", "said"), [(None, "is not set"), ("absent", "is not a directory"), ("", "not in")])
def test_absent_file_says_what_to_put_where(
    folder: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if folder is None:
        monkeypatch.delenv("NCG_DATA_DIR", raising=False)
    else:
        monkeypatch.setenv("NCG_DATA_DIR", str(tmp_path / folder))
    scenario = scenarios.get("reg-lif")
    assert not scenario.present()
    with pytest.raises(ScenarioDataError) as caught:
        scenario.load()
    message = str(caught.value)
    assert said in message
    assert "<directory>/birth_rate/birth_rate.csv" in message
    assert "NCG_DATA_DIR=<directory>" in message
    assert message in scenario.locate()


def test_boston_falls_back_to_keras_and_says_so_when_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import keras

    monkeypatch.setenv("NCG_DATA_DIR", str(tmp_path))
    rng = np.random.default_rng(0)
    table = rng.normal(size=(506, 14))
    empty = np.empty((0, 13)), np.empty(0)

    def download(test_split: float) -> object:
        assert test_split == 0.0
        return (table[:, :13], table[:, 13]), empty

    monkeypatch.setattr(keras.datasets.boston_housing, "load_data", download)
    loaded = scenarios.get("reg-bos").load()
    assert (len(loaded.y_train), len(loaded.y_val)) == (405, 101)
    assert loaded.origin == "keras.datasets.boston_housing"

    def no_network(test_split: float) -> object:
        raise Exception("URL fetch failure\n on somewhere: None -- unreachable")

    monkeypatch.setattr(keras.datasets.boston_housing, "load_data", no_network)
    with pytest.raises(ScenarioDataError, match=r"boston_housing/HousingData\.csv.*failed here: URL fetch failure on"):
        scenarios.get("reg-bos").load()


def test_truncated_inside_a_row(copy: Copy) -> None:
    scenario, _, path = copy
    content = path.read_bytes().rstrip()
    path.write_bytes(content[: content.rindex(b",") - 2])
    with pytest.raises(ScenarioDataError, match=r"row \d+ has \d+ cells where the header has \d+"):
        scenario.load()


def test_truncated_between_rows(copy: Copy) -> None:
    scenario, file, path = copy
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-7]))
    with pytest.raises(ScenarioDataError, match=rf"{file.rows - 7} data rows where the complete file has {file.rows}"):
        scenario.load()


def test_empty_file(copy: Copy) -> None:
    scenario, _, path = copy
    path.write_bytes(b"")
    with pytest.raises(ScenarioDataError, match="it is empty"):
        scenario.load()


def test_binary_file(copy: Copy) -> None:
    scenario, _, path = copy
    path.write_bytes(b"\x1f\x8b\x08\xff\xfe" * 40)
    with pytest.raises(ScenarioDataError, match="not CSV text"):
        scenario.load()


def test_directory_instead_of_file(copy: Copy) -> None:
    scenario, _, path = copy
    path.unlink()
    path.mkdir()
    with pytest.raises(ScenarioDataError, match="cannot be read"):
        scenario.load()


def test_wrong_columns(copy: Copy) -> None:
    scenario, file, path = copy
    column = file.columns[-1]
    path.write_text(path.read_text().replace(column, "Something else", 1))
    with pytest.raises(ScenarioDataError, match=rf"column '{column}' is not among its columns"):
        scenario.load()


def test_several_wrong_columns(copy: Copy) -> None:
    scenario, file, path = copy
    path.write_text("Something else\n1\n")
    with pytest.raises(ScenarioDataError, match=rf"columns '{file.columns[0]}', .* are not among its columns Some"):
        scenario.load()


@pytest.mark.parametrize("cell", ["abc", "inf", "1e999"])
def test_cell_that_is_no_finite_number(copy: Copy, cell: str) -> None:
    scenario, file, path = copy
    lines = path.read_text().splitlines()
    cells = lines[4].split(",")
    cells[-1] = cell
    lines[4] = ",".join(cells)
    path.write_text("\n".join(lines))
    with pytest.raises(ScenarioDataError, match=rf"row 5, column '{file.columns[-1]}' holds '{cell}'"):
        scenario.load()


def test_missing_cell_where_there_should_be_none(copy: Copy) -> None:
    scenario, _, path = copy
    if scenario.name != "reg-lif":
        pytest.skip("this file has missing cells by nature: their rows are dropped")
    lines = path.read_text().splitlines()
    lines[3] = lines[3].rpartition(",")[0] + ","
    path.write_text("\n".join(lines))
    with pytest.raises(ScenarioDataError, match="1 rows with a missing cell"):
        scenario.load()


def test_byte_order_mark_quotes_and_column_order_do_not_matter(copy: Copy) -> None:
    scenario, _, path = copy
    expected = scenario.load()
    rows = [line.split(",") for line in path.read_text().splitlines()]
    path.write_text("\ufeff" + "\r\n".join(",".join(f'"{cell}"' for cell in reversed(row)) for row in rows))
    found = scenario.load()
    np.testing.assert_array_equal(found.x_train, expected.x_train)
    np.testing.assert_array_equal(found.y_val, expected.y_val)


def test_boston_rows_with_missing_cells_are_dropped(present: object) -> None:
    present("reg-bos")  # type: ignore[operator]
    path = reg_bos.FILE.require()
    # An independent reading: a row is complete if it has no cell NA.
    complete = [line for line in path.read_text().splitlines()[1:] if "NA" not in line.split(",")]
    assert len(complete) == 394
    loaded = scenarios.get("reg-bos").load()
    assert len(loaded.y_train) + len(loaded.y_val) == 394
    prices = sorted(float(line.split(",")[-1]) for line in complete)
    y = np.concatenate([loaded.y_train, loaded.y_val]).ravel().astype(np.float64) * loaded.target_scale
    y += prices[0] - y.min()
    np.testing.assert_allclose(np.sort(y), prices, atol=1e-4)


def test_split_is_fixed_disjoint_and_complete() -> None:
    train, val = data.split_indices(101)
    assert len(val) == 20
    assert sorted([*train, *val]) == list(range(101))
    # The values themselves: a change would silently make old and new results incomparable.
    assert val[:6].tolist() == [5, 12, 21, 22, 23, 29]
    np.testing.assert_array_equal(data.split_indices(101)[1], val)


def test_standardised_by_the_training_part_alone() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(3.0, 5.0, (200, 4)), rng.normal(-7.0, 2.0, 200)
    x[:, 2] = 4.0  # a constant column must not become NaN
    loaded = data.standardised_regression(x, y, "test")
    train, val = data.split_indices(200)
    assert loaded.x_train.dtype == loaded.y_train.dtype == np.float32
    assert loaded.y_train.shape == (160, 1)
    np.testing.assert_allclose(loaded.x_train.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(loaded.x_train.std(axis=0), [1, 1, 0, 1], atol=1e-6)
    expected = (y[val] - y[train].mean()) / y[train].std()
    np.testing.assert_allclose(loaded.y_val[:, 0], expected, rtol=1e-5, atol=1e-6)
    assert loaded.target_scale == pytest.approx(y[train].std())
