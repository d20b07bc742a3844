"""Which files a model is loaded from; nothing here opens a network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bids_app.errors import ConfigError
from bids_app.lesion.folder import model_files, served_contrasts


def make(folder: Path, *files: str) -> Path:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("{}")
    return folder


@pytest.fixture
def nnunet(tmp_path: Path) -> Path:
    return make(
        tmp_path / "model", "plans.json", "dataset.json", "debug.json", "fold_all/checkpoint_final.pth",
        "fold_0/checkpoint_final.pth", "fold_0/checkpoint_best.pth", "fold_1/checkpoint_best.pth",
    )  # fmt: skip


def names_of(path: Path, folds: tuple[str, ...] = ()) -> list[str]:
    return sorted(file.relative_to(path).as_posix() for file in model_files(path, folds))


def test_files_of_a_trained_model_folder(nnunet: Path):
    shared, first, second = ["dataset.json", "plans.json"], "fold_0/checkpoint_final.pth", "fold_1/checkpoint_best.pth"
    assert names_of(nnunet) == sorted([*shared, first, second])
    assert names_of(nnunet, ("1", "0")) == names_of(nnunet)
    assert names_of(nnunet, ("1",)) == sorted([*shared, second])
    assert names_of(nnunet, ("all",)) == sorted([*shared, "fold_all/checkpoint_final.pth"])
    make(nnunet, "card.json")  # its threshold changes results
    assert "card.json" in names_of(nnunet)
    assert model_files(nnunet.parent) == model_files(nnunet)


def test_files_of_an_onnx_model(tmp_path: Path):
    assert names_of(make(tmp_path, "net.onnx", "notes.json")) == ["net.onnx"]
    make(tmp_path, "net.json", "card.json")
    assert names_of(tmp_path) == ["card.json", "net.json", "net.onnx"]
    assert model_files(tmp_path / "net.onnx") == model_files(tmp_path)
    with pytest.raises(ConfigError, match="has no folds"):
        model_files(tmp_path, ("0",))


def test_contrasts_that_a_model_runs_on(tmp_path: Path, nnunet: Path):
    assert served_contrasts(nnunet) == (), "it names no channels"
    (nnunet / "dataset.json").write_text('{"channel_names": {"0": "T1-weighted", "1": "T2_FLAIR"}}')
    assert served_contrasts(nnunet) == ({"T1w", "FLAIR"},)
    for name, channel in (("a", "MPRAGE"), ("b", "flair")):
        branch = make(tmp_path / name, "plans.json", *(f"fold_{fold}/checkpoint_final.pth" for fold in (0, 1)))
        (branch / "dataset.json").write_text(json.dumps({"modality": {"0": channel}}))
    (nnunet / "card.json").write_text('{"branches": {"T1w": "../a", "FLAIR": "../b"}}')
    assert served_contrasts(nnunet) == ({"T1w", "FLAIR"}, {"T1w"}, {"FLAIR"})
    (tmp_path / "b" / "card.json").write_text('{"channels": ["T1w"]}')
    assert served_contrasts(tmp_path / "b") == ({"T1w"},), "the card knows better"


def test_contrasts_of_an_onnx_model(tmp_path: Path):
    model = make(tmp_path, "net.onnx")
    assert served_contrasts(model) == ()
    (tmp_path / "net.json").write_text('{"inputs": [{"name": "FLAIR"}]}')
    assert served_contrasts(model) == ({"FLAIR"},)


@pytest.mark.parametrize("files", [(), ("README",), ("a.onnx", "b.onnx"), ("plans.json", "dataset.json")])
def test_an_unusable_folder_is_named(tmp_path: Path, files: tuple[str, ...]):
    folder = make(tmp_path / "broken", *files)
    folder.mkdir(exist_ok=True)
    with pytest.raises(ConfigError, match="broken"):
        model_files(folder)
