"""Any trained-model folder of nnU-Net v2 as a lesion model, without nnU-Net's environment variables or workers.

A folder holds ``plans.json``, ``dataset.json`` and ``fold_*/checkpoint_final.pth`` (else ``checkpoint_best.pth``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bids_app.errors import ConfigError
from bids_app.lesion.card import channel_name, read_card
from bids_app.lesion.folder import ModelFolder, read_folder
from bids_app.lesion.inputs import LesionInput, Stated
from bids_app.lesion.outputs import lesion_output
from bids_app.lesion.plans import build_network, make_recipe, read_configuration
from bids_app.lesion.segmentation import LesionModel
from bids_app.lesion.terms import terms_of, wanted_input
from bids_app.networks.device import Device
from bids_app.networks.engine import TorchEngine
from bids_app.networks.weights import folder_sha256, load_checkpoint, network_weights


def read_models(path: Path, folds: tuple[str, ...], device: Device) -> tuple[LesionModel, ...]:
    """Load a trained-model folder with the networks of the chosen folds.

    Parameters
    ----------
    path : Path
        The folder, or one above that holds exactly one.
    folds : tuple of str
        ``0``, ``1``, ... or ``all``; empty takes every numbered fold, else ``all``.

    Returns
    -------
    tuple of LesionModel
        The model, and after it the branches of a late fusion, each a model for its contrast alone. Networks are shared.

    Raises
    ------
    ConfigError
        If anything is missing, damaged or of a kind this App does not run; the message names the file.
    """
    folder = read_folder(path, folds)
    wanted = wanted_input(folder)
    branches = [_read(branch, (), device, wanted) for _, branch in folder.branches]
    return (_read(folder, branches, device, wanted), *branches)


def _read(
    folder: ModelFolder, branches: Sequence[LesionModel], device: Device, wanted: Stated[LesionInput]
) -> LesionModel:
    """One model; that of a late fusion is built around the networks of its branches."""
    card = read_card(folder.path, folder.path.name)
    channels = model_channels(folder)
    output, notes = lesion_output(folder.dataset, folder.path / "dataset.json")
    checkpoint = load_checkpoint(folder.checkpoints[0][1])
    plans = read_configuration(folder.path / "plans.json", folder.plans, _configuration_name(folder, checkpoint))
    mirror_axes = _mirror_axes(checkpoint, len(plans.patch_size), folder.checkpoints[0][1])
    _check_branches(folder, channels, branches)
    engines = []
    for number, (_, file) in enumerate(folder.checkpoints):
        checkpoint = checkpoint or load_checkpoint(file)
        network = build_network(plans, len(channels), output.outputs)
        _load_weights(network, checkpoint, file, channels, [branch.engines[number] for branch in branches])
        engines.append(TorchEngine(network, len(channels), output.outputs, device))
        checkpoint = None  # one checkpoint in memory at a time
    return LesionModel(
        name=card.name,
        version=card.version,
        channels=channels,
        folds=tuple(fold for fold, _ in folder.checkpoints),
        sha256=folder_sha256(folder.files),
        card=card,
        terms=terms_of(folder, wanted),
        recipe=make_recipe(plans, len(channels)),
        engines=tuple(engines),
        patch_size=plans.patch_size,
        mirror_axes=mirror_axes,
        output=output,
        notes=notes,
    )


def _check_branches(folder: ModelFolder, channels: tuple[str, ...], branches: Sequence[LesionModel]) -> None:
    """Fail if the branches of a late fusion are not models of its channels, one each, in their order."""
    theirs = tuple(branch.channels for branch in branches)
    if branches and theirs != tuple((channel,) for channel in channels):
        found = "; ".join(" and ".join(names) for names in theirs)
        raise ConfigError(
            f"The fusion {folder.path} takes {' and '.join(channels)}, but its branches take {found}.",
            "Name one branch for each channel in its card.json, in their order.",
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


def model_channels(folder: ModelFolder) -> tuple[str, ...]:
    """Our names (``T1w``, ``FLAIR``) of a model's channels in order: those of its card, else of its ``dataset.json``.

    Raises
    ------
    ConfigError
        If a channel is neither T1w nor FLAIR, or there are none, too many or the same one twice.
    """
    return read_card(folder.path, folder.path.name).channels or _listed_channels(folder)


def _listed_channels(folder: ModelFolder) -> tuple[str, ...]:
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


def _load_weights(
    network: torch.nn.Module,
    checkpoint: dict[str, Any],
    file: Path,
    channels: tuple[str, ...],
    branches: Sequence[TorchEngine] = (),
) -> None:
    """Give a network the weights of a checkpoint, and its branches if there are any."""
    weights = network_weights(checkpoint, file)
    if not branches:
        _check_channels(network, weights, file, channels)
    try:
        if branches:
            network.fusion.load_state_dict(
                {key.removeprefix("fusion."): value for key, value in weights.items()}, assign=True
            )
            network.branches = torch.nn.ModuleList(branch.network for branch in branches)
        else:
            network.load_state_dict(weights, assign=True)
    except (RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split()[:30])
        raise ConfigError(
            f"The weights in {file} do not fit the network of plans.json: {reason} ...",
            "A trainer that changes the network is not supported.",
        ) from error


def _check_channels(
    network: torch.nn.Module, weights: dict[str, torch.Tensor], file: Path, channels: tuple[str, ...]
) -> None:
    """Fail if the first convolution of a checkpoint takes another number of channels than that of the network."""
    given, expected = (
        next((value.shape[1] for value in tensors.values() if value.ndim >= 4), None)
        for tensors in (weights, network.state_dict())
    )
    if given is not None and expected and given != expected:
        raise ConfigError(
            f"The network in {file} takes {given * len(channels) // expected} channel(s), but its model names "
            f"{len(channels)}: {', '.join(channels)}.",
            "dataset.json (or card.json) and the checkpoint are of different models.",
        )
