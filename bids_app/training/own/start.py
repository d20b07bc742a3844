"""Weights and plans of the model that a training starts from (``--init``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bids_app.errors import ConfigError
from bids_app.lesion.folder import ModelFolder, is_onnx, read_folder
from bids_app.lesion.nnunet import model_channels
from bids_app.networks.registry import embedded_models, find_model
from bids_app.networks.weights import load_checkpoint, network_weights
from bids_app.training.plans import CONFIGURATION, FUSIONS, for_channels
from bids_app.training.transfer import fitted_weights

_EXTENDABLE = ("early",)
_MIRROR = "MirrorUNet"


@dataclass(frozen=True)
class Start:
    """A model to start from.

    Attributes
    ----------
    name : str
        As the user gave it.
    channels : tuple of str
        What it takes.
    sources : tuple of (str, ModelFolder)
        For each part of the fusion to be trained (``t1w``, ``early``, ...) the folder whose weights it starts from.
    embedded : bool
        Whether it is one of the App's own models, which have seen no scan of the user's.
    """

    name: str
    channels: tuple[str, ...]
    sources: tuple[tuple[str, ModelFolder], ...]
    embedded: bool

    @property
    def network_class(self) -> str:
        """Dotted name of its network, of a branch for a late fusion."""
        return _architecture(self.sources[0][1])["network_class_name"]

    def plans_for(self, part: str) -> dict:
        """Plans for one part: those of the model, with one normalisation a channel."""
        folder = dict(self.sources)[part]
        plans = {key: value for key, value in folder.plans.items() if key != "continue_training"}
        return for_channels(plans, len(FUSIONS[part].contrasts))

    def checkpoint(self, part: str, fold: int) -> Path:
        """The checkpoint that a fold of a part starts from: that of the same fold, else the first."""
        folder = dict(self.sources)[part]
        checkpoints = dict(folder.checkpoints)
        return checkpoints.get(str(fold), folder.checkpoints[0][1])


def find_start(name: str | None, fusion: str) -> Start | None:
    """Find the model to start from, and make sure that its weights fit the fusion.

    Parameters
    ----------
    name : str or None
        An embedded model's name or a folder; None starts from random weights.
    fusion : str
        What will be trained.

    Raises
    ------
    ConfigError
        If there is no such model, or it does not fit; the message says what differs.
    """
    if name is None:
        return None
    path = find_model(name)
    if is_onnx(path):
        raise ConfigError(f"{name} is an ONNX network, which cannot be trained.", "Start from a folder of nnU-Net.")
    folder = read_folder(path)
    if CONFIGURATION not in folder.plans.get("configurations", {}):
        known = ", ".join(folder.plans.get("configurations", {})) or "none"
        raise ConfigError(f"{name} has no configuration {CONFIGURATION}, only {known}.", "Start from another model.")
    channels = model_channels(folder)
    embedded = path in [model.folder for model in embedded_models()]
    return Start(name, channels, _sources(name, folder, channels, fusion), embedded)


def _sources(name: str, folder: ModelFolder, channels: tuple[str, ...], fusion: str) -> tuple:
    """Which part starts from which folder."""
    wanted = FUSIONS[fusion].contrasts
    if fusion == "late":
        if folder.branches:
            return tuple((contrast.lower(), branch) for contrast, branch in folder.branches)
        if channels == ("T1w",):
            return (("t1w", folder), ("flair", folder))
    elif not folder.branches:
        is_intermediate = "IntermediateUNet" in str(_architecture(folder))
        if channels == wanted and is_intermediate == (fusion == "intermediate"):
            return ((fusion, folder),)
        if channels == ("T1w",) and fusion in _EXTENDABLE:
            return ((fusion, folder),)
    raise ConfigError(
        f"{name} is a {_kind(folder, channels)}, from which --fusion {fusion} of {' and '.join(wanted)} cannot start.",
        "Start from a model of the same kind; a T1w model also starts early fusion and both branches of late fusion.",
    )


def starting_weights(network: torch.nn.Module, checkpoint: Path, architecture: Mapping) -> dict[str, Tensor]:
    """State of `network` from the weights of a checkpoint; see `fitted_weights`.

    Parameters
    ----------
    network : torch.nn.Module
        The network to be trained.
    architecture : mapping
        The ``architecture`` entry of its plans.

    Raises
    ------
    ConfigError
        If the weights do not fit.
    """
    weights = network_weights(load_checkpoint(checkpoint), checkpoint)
    groups = 2 if str(architecture["network_class_name"]).endswith(_MIRROR) else 1
    return fitted_weights(weights, network.state_dict(), checkpoint, groups)


def _configuration(folder: ModelFolder) -> dict:
    return folder.plans["configurations"][CONFIGURATION]


def _architecture(folder: ModelFolder) -> dict:
    try:
        return _configuration(folder)["architecture"]
    except KeyError as error:
        raise ConfigError(
            f"{folder.path / 'plans.json'} describes no architecture.", "Start from a model of nnU-Net 2.5 or later."
        ) from error


def _kind(folder: ModelFolder, channels: tuple[str, ...]) -> str:
    """A model in words, as in ``MirrorUNet of T1w``."""
    name = "late fusion" if folder.branches else _architecture(folder)["network_class_name"].rpartition(".")[2]
    if not folder.branches and "IntermediateUNet" in str(_architecture(folder)):
        name = "intermediate fusion"
    return f"{name} of {' and '.join(channels)}"
