"""What a training on synthetic scans may begin with: the checkpoint of another one, or a model that was embedded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bids_app.errors import ConfigError
from bids_app.lesion.folder import CARD, ModelFolder, read_folder, read_json
from bids_app.lesion.nnunet import model_channels
from bids_app.networks.weights import load_checkpoint, network_weights
from bids_app.training.plans import CONFIGURATION, FUSIONS
from bids_app.training.transfer import fitted_weights


@dataclass(frozen=True)
class WarmStart:
    """Weights to begin with.

    Attributes
    ----------
    fusion : str
        Key of `FUSIONS`: what was trained.
    weights : mapping of str to torch.Tensor
        By parameter name.
    steps : int
        That these weights have been trained for, in all.
    source : Path
        Where they are from.
    """

    fusion: str
    weights: Mapping[str, Tensor]
    steps: int
    source: Path

    def fitted(self, fusion: str, network: torch.nn.Module) -> dict[str, Tensor]:
        """Weights for a network that is about to be trained.

        Of a late fusion, any other network takes the branch of its (first) contrast; early fusion extends it. Outputs
        that only training has, and embedding dropped, begin with zeros.

        Parameters
        ----------
        fusion : str
            What the network is.
        network : torch.nn.Module

        Raises
        ------
        ConfigError
            If the weights do not fit.
        """
        weights, target = self.weights, dict(network.named_parameters())
        if not self._serves(fusion):
            raise ConfigError(
                f"{self.source} was trained on {' and '.join(FUSIONS[self.fusion].contrasts)}, which is no start for "
                f"{fusion}.",
                "Start from a model of the same contrast; early fusion starts from a T1w model.",
            )
        if self.fusion == "late" and fusion != "late":
            index = FUSIONS["late"].contrasts.index(FUSIONS[fusion].contrasts[0])
            weights = branch_weights(weights, index)
        # nnU-Net's checkpoints list most weights by several names
        known = {name: _with_outputs(name, weights[name], target[name]) for name in target if name in weights}
        return fitted_weights(known, target, self.source, groups=2)


    def _serves(self, fusion: str) -> bool:
        """Whether the contrasts go together: of a FLAIR network, the weights would fit a T1w network as well."""
        own, wanted = FUSIONS[self.fusion].contrasts, FUSIONS[fusion].contrasts
        return self.fusion == "late" or own == wanted or own == wanted[:1]


def branch_weights(weights: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    """The weights of one branch of a late fusion, by their names in a network of their own."""
    prefix = f"branches.{index}."
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def read_warm_start(path: Path, fold: str) -> WarmStart:
    """Read a checkpoint of `bids_app.training.run`, or a model folder that `bids_app.training.embed` made of one.

    Parameters
    ----------
    path : Path
        File or folder.
    fold : str
        Of a model folder, the fold to take; the first where it has no such fold.

    Raises
    ------
    ConfigError
        If there is no such file, or the folder is incomplete.
    """
    if path.is_dir():
        return _of_folder(read_folder(path), fold)
    if not path.is_file():
        raise ConfigError(f"There is no checkpoint or model folder {path}.", "Check --init.")
    state = torch.load(path, map_location="cpu", weights_only=True)
    steps = state["step"] + state["steps_before"]
    return WarmStart(state["fusion"], state["averaged_weights"], steps, path)


def _of_folder(folder: ModelFolder, fold: str) -> WarmStart:
    fold = fold if fold in dict(folder.checkpoints) else folder.checkpoints[0][0]
    weights = _weights(folder, fold)
    for index, (_, branch) in enumerate(folder.branches):
        weights |= {f"branches.{index}.{name}": value for name, value in _weights(branch, fold).items()}
    return WarmStart(_fusion_of(folder), weights, _steps(folder, fold), folder.path)


def _steps(folder: ModelFolder, fold: str) -> int:
    """Steps of a fold in all, or of the branch that had most; 0 where the card does not say."""
    if folder.branches:
        return max(_steps(branch, fold) for _, branch in folder.branches)
    card = read_json(folder.path / CARD)
    return card.get("steps", {}).get(f"fold_{fold}", 0) + card.get("steps_before", 0)


def _weights(folder: ModelFolder, fold: str) -> dict[str, Tensor]:
    path = dict(folder.checkpoints)[fold]
    return network_weights(load_checkpoint(path), path)


def _fusion_of(folder: ModelFolder) -> str:
    """Key of `FUSIONS` for a model folder."""
    if folder.branches:
        return "late"
    if "IntermediateUNet" in str(folder.plans["configurations"][CONFIGURATION]["architecture"]):
        return "intermediate"
    channels = model_channels(folder)
    return channels[0].lower() if len(channels) == 1 else "early"


def _with_outputs(name: str, value: Tensor, wanted: Tensor) -> Tensor:
    """Weights of an output layer, with zeros for the outputs that it lacks; others as they are."""
    missing = len(wanted) - len(value) if ".seg_layers." in name else 0
    return torch.cat([value, value.new_zeros(missing, *value.shape[1:])]) if missing > 0 else value
