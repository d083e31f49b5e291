import shutil
from pathlib import Path

import pytest

from vlpress.model import built_in, resolve
from vlpress.model.built_in import BUILT_IN, built_in_names, find_built_in
from vlpress.quant.checkpoint.loading import resolve_folder


def test_only_models_with_files_are_named(tmp_path: Path) -> None:
    assert built_in_names(tmp_path) == ()
    packaged = [model.name for model in BUILT_IN if model.is_packaged]
    for name in packaged:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    assert built_in_names(tmp_path) == tuple(model.name for model in BUILT_IN)
    shutil.rmtree(tmp_path / "tiny")
    assert built_in_names(tmp_path) == ("tiny3", "tiny3.5")  # nothing to derive the outliers from


def test_tiny_and_its_outliers_are_installed() -> None:
    assert built_in_names()[:2] == ("tiny", "tiny-outliers")


@pytest.mark.parametrize("name", built_in_names())
def test_every_name_has_a_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLPRESS_CACHE", str(tmp_path))
    assert (resolve_folder(name) / "model.safetensors").is_file()


@pytest.mark.parametrize("name", [model.name for model in BUILT_IN if model.is_packaged])
def test_a_missing_built_in_model_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolve, "built_in_folder", lambda model: None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"'{name}' is missing.*install"):
        resolve.find_local_model(name)
    (tmp_path / name).mkdir()
    assert resolve.find_local_model(name) == Path(name)


def test_derived_models_name_a_packaged_one() -> None:
    sources = [model.outliers_of for model in BUILT_IN if model.outliers_of]
    rows = [find_built_in(source) for source in sources]
    assert rows and all(row is not None and row.is_packaged for row in rows)
    assert find_built_in("tinny") is None
    assert built_in.PACKAGE.name == "model"
