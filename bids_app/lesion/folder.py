"""Where the parts of a lesion model lie: nnU-Net's folders and ONNX files. Paths alone: no network, no PyTorch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bids_app.errors import ConfigError

CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth")
CARD = "card.json"


@dataclass(frozen=True)
class ModelFolder:
    """A trained-model folder that was found complete.

    Attributes
    ----------
    path : Path
    plans, dataset : dict
        Contents of ``plans.json`` and ``dataset.json``.
    checkpoints : tuple of (str, Path)
        Fold and checkpoint, in the order they are averaged.
    """

    path: Path
    plans: dict[str, Any]
    dataset: dict[str, Any]
    checkpoints: tuple[tuple[str, Path], ...]

    @property
    def files(self) -> list[Path]:
        """All files the model is made of."""
        return [self.path / "plans.json", self.path / "dataset.json", *(path for _, path in self.checkpoints)]


def model_files(path: Path, folds: tuple[str, ...] = ()) -> list[Path]:
    """The files that a model and its chosen folds are loaded from, its card and manifest included.

    Parameters
    ----------
    path : Path
        What `load_model` takes.
    folds : tuple of str
        As for `load_model`; naming all that the model would take gives the same files as naming none.

    Raises
    ------
    ConfigError
        If the model is incomplete or has no such fold.
    """
    if is_onnx(path):
        file = network_file(path, folds)
        return [file, *_existing(file.with_suffix(".json"), file.parent / CARD)]
    folder = read_folder(path, folds)
    return [*folder.files, *_existing(folder.path / CARD)]


def _existing(*paths: Path) -> list[Path]:
    return [path for path in paths if path.is_file()]


def is_onnx(path: Path) -> bool:
    """Whether `path` is an ONNX file or a folder that holds ONNX files and no nnU-Net plans."""
    if path.is_file():
        return path.suffix == ".onnx"
    return not (path / "plans.json").exists() and any(path.glob("*.onnx"))


def network_file(path: Path, folds: tuple[str, ...] = ()) -> Path:
    """The one ONNX file at `path`, which has no folds to choose from.

    Raises
    ------
    ConfigError
        If folds are asked for, or there are several files.
    """
    if folds:
        raise ConfigError(f"The ONNX model {path} has no folds.", "Leave --folds out.")
    if path.is_file():
        return path
    files = sorted(path.glob("*.onnx"))
    if len(files) != 1:
        names = ", ".join(file.name for file in files)
        raise ConfigError(f"{path} holds several ONNX networks: {names}.", "Give the path of one file.")
    return files[0]


def read_folder(path: Path, folds: tuple[str, ...] = ()) -> ModelFolder:
    """Find the parts of a trained-model folder; no network is loaded.

    Raises
    ------
    ConfigError
        If a part is missing.
    """
    folder = _model_folder(path)
    plans, dataset = read_json(folder / "plans.json"), read_json(folder / "dataset.json")
    return ModelFolder(folder, plans, dataset, _checkpoints(folder, folds))


def read_json(path: Path) -> dict:
    """Content of a JSON object of a model folder.

    Raises
    ------
    ConfigError
        If the file is missing, no JSON, or no object.
    """
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"The model lacks {path}.", "Check the model folder.") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}.", "Copy the model again.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is not a JSON object.", "Copy the model again.")
    return content


def _model_folder(path: Path) -> Path:
    """The trained-model folder at `path`, or the only one just below it."""
    if (path / "plans.json").exists() or any(path.glob("fold_*")):
        return path
    inside = sorted(plans.parent for plans in path.glob("*/plans.json") if any(plans.parent.glob("fold_*")))
    if len(inside) == 1:
        return inside[0]
    if inside:
        names = ", ".join(folder.name for folder in inside)
        raise ConfigError(f"{path} holds several models: {names}.", "Give the path of one of them.")
    raise ConfigError(
        f"{path} is no trained-model folder of nnU-Net v2.", "It must hold plans.json, dataset.json and fold_* folders."
    )


def _checkpoints(folder: Path, folds: tuple[str, ...]) -> tuple[tuple[str, Path], ...]:
    """Checkpoint of every chosen fold."""
    there = {path.name.removeprefix("fold_") for path in folder.glob("fold_*") if path.is_dir()}
    numbered = sorted((fold for fold in there if fold.isdigit()), key=int)
    chosen = [fold.removeprefix("fold_") for fold in folds] or numbered or sorted(there)
    if not chosen:
        raise ConfigError(f"The model {folder} has no fold_* folder.", "Copy the whole model.")
    if missing := [fold for fold in chosen if fold not in there]:
        known = ", ".join(numbered + sorted(there - set(numbered)))
        raise ConfigError(f"The model {folder} has no fold {', '.join(missing)}.", f"It has: {known or 'none'}.")
    return tuple((fold, _checkpoint(folder / f"fold_{fold}")) for fold in dict.fromkeys(chosen))


def _checkpoint(fold: Path) -> Path:
    """The final checkpoint of a fold, else its best one."""
    for name in CHECKPOINTS:
        if (fold / name).is_file():
            return fold / name
    raise ConfigError(
        f"{fold} holds neither {' nor '.join(CHECKPOINTS)}.", "Finish its training, or leave it out with --folds."
    )
