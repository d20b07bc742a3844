"""Where the parts of a lesion model lie: nnU-Net's folders and ONNX files. Paths alone: no network, no PyTorch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bids_app.errors import ConfigError
from bids_app.text import read_text

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
    branches : tuple of (str, ModelFolder)
        Contrast and model of each branch of a late fusion whose own checkpoints hold the fusion alone.
    """

    path: Path
    plans: dict[str, Any]
    dataset: dict[str, Any]
    checkpoints: tuple[tuple[str, Path], ...]
    branches: tuple[tuple[str, ModelFolder], ...] = ()

    @property
    def files(self) -> list[Path]:
        """All files the model is made of, those of its branches included."""
        own = [self.path / "plans.json", self.path / "dataset.json", *(path for _, path in self.checkpoints)]
        return own + [file for _, branch in self.branches for file in branch.files]

    @property
    def cards(self) -> list[Path]:
        """The cards there are, of the model and of its branches."""
        return [file for _, branch in self.branches for file in branch.cards] + _existing(self.path / CARD)


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
    return [*folder.files, *folder.cards]


def model_folds(path: Path, folds: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The folds that are averaged, as `model_files` finds them; of an ONNX file one without a name."""
    return ("",) if is_onnx(path) else tuple(fold for fold, _ in read_folder(path, folds).checkpoints)


def served_contrasts(path: Path, folds: tuple[str, ...] = ()) -> tuple[frozenset[str], ...]:
    """The contrasts (``T1w``, ``FLAIR``) that a model runs on: all its own, or those of one of its branches.

    Read from names alone. What is neither a T1w nor a FLAIR is refused when the model is loaded.

    Parameters
    ----------
    path, folds
        As for `load_models`.

    Returns
    -------
    tuple of frozenset of str
        The model's own first. Empty for a model that names no channels (an ONNX file without a manifest).

    Raises
    ------
    ConfigError
        As `model_files`.
    """
    if is_onnx(path):
        file = network_file(path, folds)
        return _named_contrasts(file.parent, manifest_inputs(file))
    folder = read_folder(path, folds)
    return tuple(found for _, part in (("", folder), *folder.branches) for found in _contrasts_of(part))


def _contrasts_of(folder: ModelFolder) -> tuple[frozenset[str], ...]:
    listed = folder.dataset.get("channel_names") or folder.dataset.get("modality") or {}
    return _named_contrasts(folder.path, listed.values() if isinstance(listed, dict) else ())


def _named_contrasts(folder: Path, listed: Iterable[object]) -> tuple[frozenset[str], ...]:
    """The contrasts that a card names, else those of the listed channels; nothing where neither names any."""
    card = folder / CARD
    channels = (read_json(card).get("channels") if card.is_file() else None) or listed
    # every way in which datasets write FLAIR holds the word
    found = frozenset("FLAIR" if "flair" in str(name).lower() else "T1w" for name in channels)
    return (found,) if found else ()


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


def manifest_inputs(file: Path) -> tuple[str, ...]:
    """The inputs that StrokeSeg 2's manifest of an ONNX file names, ``NAME.json`` beside ``NAME.onnx``.

    Empty where there is no manifest, or it names none.

    Raises
    ------
    ConfigError
        If the manifest is no JSON object.
    """
    manifest = file.with_suffix(".json")
    listed = read_json(manifest).get("inputs") if manifest.is_file() else None
    listed = listed if isinstance(listed, list) else []
    return tuple(str(item.get("name", "")) for item in listed if isinstance(item, dict))


def read_folder(path: Path, folds: tuple[str, ...] = ()) -> ModelFolder:
    """Find the parts of a trained-model folder; no network is loaded.

    Raises
    ------
    ConfigError
        If a part is missing, or a branch does not have the folds of the fusion.
    """
    folder = _model_folder(path)
    if folder != path and (path / CARD).is_file() and not (folder / CARD).is_file():
        raise ConfigError(f"The card {path / CARD} lies above its model.", f"Move it into {folder}.")
    plans, dataset = read_json(folder / "plans.json"), read_json(folder / "dataset.json")
    checkpoints = _checkpoints(folder, folds)
    return ModelFolder(folder, plans, dataset, checkpoints, _branches(folder, [fold for fold, _ in checkpoints]))


def _branches(folder: Path, folds: list[str]) -> tuple[tuple[str, ModelFolder], ...]:
    """The branches that the card of a late fusion names, as in ``{"T1w": "../t1w", "FLAIR": "../flair"}``."""
    card = folder / CARD
    named = read_json(card).get("branches", {}) if card.is_file() else {}
    if not isinstance(named, dict):
        raise ConfigError(f"{card} has branches that are no object.", "Name a folder for each contrast.")
    found = []
    for contrast, place in named.items():
        branch = (folder / str(place)).resolve()
        if _is_fusion(branch):
            raise ConfigError(f"{card} names {branch} as a branch, which is a fusion itself.", "Correct the card.")
        found.append((str(contrast), read_folder(branch, tuple(folds))))
    return tuple(found)


def _is_fusion(folder: Path) -> bool:
    card = folder / CARD
    return card.is_file() and bool(read_json(card).get("branches"))


def read_json(path: Path) -> dict:
    """Content of a JSON object of a model folder.

    Raises
    ------
    ConfigError
        If the file is missing, no JSON, or no object.
    """
    try:
        content = json.loads(read_text(path).content)
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
