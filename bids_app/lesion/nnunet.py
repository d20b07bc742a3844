"""Any trained-model folder of nnU-Net v2 as a lesion model, without nnU-Net's environment variables or workers.

A folder holds ``plans.json``, ``dataset.json`` and ``fold_*/checkpoint_final.pth`` (else ``checkpoint_best.pth``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bids_app.errors import ConfigError
from bids_app.lesion.plans import build_network, make_recipe, read_configuration
from bids_app.lesion.segmentation import LesionModel, LesionOutput, channel_name, read_card, read_json
from bids_app.networks.device import Device
from bids_app.networks.engine import TorchEngine
from bids_app.networks.weights import folder_sha256, load_checkpoint

CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth")


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


def read_model(path: Path, folds: tuple[str, ...], device: Device) -> LesionModel:
    """Load a trained-model folder with the networks of the chosen folds.

    Parameters
    ----------
    path : Path
        The folder, or one above that holds exactly one.
    folds : tuple of str
        ``0``, ``1``, ... or ``all``; empty takes every numbered fold, else ``all``.

    Raises
    ------
    ConfigError
        If anything is missing, damaged or of a kind this App does not run; the message names the file.
    """
    folder = read_folder(path, folds)
    card = read_card(folder.path, folder.path.name)
    channels = card.channels or _channels(folder)
    output, notes = lesion_output(folder.dataset, folder.path / "dataset.json")
    checkpoint = load_checkpoint(folder.checkpoints[0][1])
    plans = read_configuration(folder.path / "plans.json", folder.plans, _configuration_name(folder, checkpoint))
    mirror_axes = _mirror_axes(checkpoint, len(plans.patch_size), folder.checkpoints[0][1])
    engines = []
    for _, file in folder.checkpoints:
        checkpoint = checkpoint or load_checkpoint(file)
        network = build_network(plans, len(channels), output.outputs)
        _load_weights(network, checkpoint, file, channels)
        engines.append(TorchEngine(network, len(channels), output.outputs, device))
        checkpoint = None  # one checkpoint in memory at a time
    return LesionModel(
        name=card.name,
        version=card.version,
        channels=channels,
        folds=tuple(fold for fold, _ in folder.checkpoints),
        sha256=folder_sha256(folder.files),
        card=card,
        recipe=make_recipe(plans, len(channels)),
        engines=tuple(engines),
        patch_size=plans.patch_size,
        mirror_axes=mirror_axes,
        output=output,
        notes=notes,
    )


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


def lesion_output(dataset: dict[str, Any], source: Path) -> tuple[LesionOutput, tuple[str, ...]]:
    """Which output is the lesion: a label named lesion or stroke, else the only label, else the first with a note.

    Parameters
    ----------
    dataset : dict
        Content of ``dataset.json``.
    source : Path
        That file, for messages.

    Raises
    ------
    ConfigError
        If there is no foreground label.
    """
    labels = dataset.get("labels")
    labels = labels if isinstance(labels, dict) else {}
    values = {
        name: value if isinstance(value, list) else [value]
        for name, value in labels.items()
        if name not in ("background", "ignore")
    }
    if not values:
        raise ConfigError(f"{source} has no label besides the background.", "Use a model that segments lesions.")
    names = list(values)
    named = [name for name in names if re.fullmatch(r"lesions?|stroke", name, re.IGNORECASE)]
    named = named or [name for name in names if re.search(r"lesion|stroke", name, re.IGNORECASE)]
    chosen = (named or names)[0]
    notes = () if named or len(names) == 1 else (f"No label of {', '.join(names)} is called lesion: took {chosen}.",)
    if any(len(value) > 1 for value in values.values()):  # regions: one output with its own sigmoid each
        return LesionOutput(names.index(chosen), len(names), independent=True), notes
    order = sorted(value[0] for value in values.values())
    return LesionOutput(1 + order.index(values[chosen][0]), 1 + len(order)), notes


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


def _configuration_name(folder: ModelFolder, checkpoint: dict[str, Any]) -> str:
    """Configuration by what the checkpoint says, else the folder's name, else the only one of the plans."""
    known = list(folder.plans.get("configurations", {}))
    arguments = checkpoint.get("init_args")
    trained = arguments.get("configuration") if isinstance(arguments, dict) else None
    parts = folder.path.name.split("__")
    for name in (trained, parts[2] if len(parts) == 3 else None, known[0] if len(known) == 1 else None):
        if name in known:
            return name
    raise ConfigError(
        f"It cannot be told which configuration of {folder.path / 'plans.json'} was trained.",
        f"Name the folder TRAINER__PLANS__CONFIGURATION; the plans have: {', '.join(known) or 'none'}.",
    )


def _mirror_axes(checkpoint: dict[str, Any], dimension: int, file: Path) -> tuple[int, ...]:
    """Axes that were mirrored in training, and so may be in prediction."""
    axes = checkpoint.get("inference_allowed_mirroring_axes")
    axes = () if axes is None else axes
    if not isinstance(axes, (tuple, list)) or not set(axes) <= set(range(dimension)):
        raise ConfigError(f"{file} allows mirroring along {axes}, which a {dimension}-d network does not have.")
    return tuple(axes)


def _channels(folder: ModelFolder) -> tuple[str, ...]:
    """Our names of the channels that ``dataset.json`` lists, in order."""
    source = folder.path / "dataset.json"
    listed = folder.dataset.get("channel_names") or folder.dataset.get("modality") or {}
    try:
        names = tuple(channel_name(str(listed[key]), source) for key in sorted(listed, key=int))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{source} does not number its channels: {listed}.", "Copy the model again.") from error
    if not 1 <= len(names) <= 2 or len(set(names)) != len(names):
        raise ConfigError(
            f"{source} lists the channels {', '.join(names) or 'none'}; this App runs models of T1w, FLAIR or both.",
            "Use another model.",
        )
    return names


def _load_weights(network: torch.nn.Module, checkpoint: dict[str, Any], file: Path, channels: tuple[str, ...]) -> None:
    """Give a network the weights of a checkpoint."""
    weights = checkpoint.get("network_weights")
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ConfigError(f"{file} holds no network_weights.", "Use a checkpoint saved by nnU-Net.")
    # left over from distributed or compiled training
    weights = {key.removeprefix("module.").removeprefix("_orig_mod."): value for key, value in weights.items()}
    first = next((value for value in weights.values() if value.ndim >= 4), None)
    if first is not None and first.shape[1] != len(channels):
        raise ConfigError(
            f"The network in {file} takes {first.shape[1]} channel(s), but its model names {len(channels)}: "
            f"{', '.join(channels)}.",
            "dataset.json (or card.json) and the checkpoint are of different models.",
        )
    try:
        network.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split()[:30])
        raise ConfigError(
            f"The weights in {file} do not fit the network of plans.json: {reason} ...",
            "A trainer that changes the network is not supported.",
        ) from error
