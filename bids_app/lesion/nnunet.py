"""Any trained-model folder of nnU-Net v2 as a lesion model, without nnU-Net's environment variables or workers.

A folder holds ``plans.json``, ``dataset.json`` and ``fold_*/checkpoint_final.pth`` (else ``checkpoint_best.pth``).
What the plans name is looked up in lists of known classes: nothing that a model folder says is imported or run.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bids_app.errors import ConfigError
from bids_app.lesion.preparation import Normalizer, Recipe, Resampler
from bids_app.lesion.segmentation import LesionModel, LesionOutput, channel_name, read_card, read_json
from bids_app.networks.device import Device
from bids_app.networks.engine import TorchEngine
from bids_app.networks.resampling import resize
from bids_app.networks.weights import folder_sha256, load_checkpoint

CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth")

ARCHITECTURES = ("PlainConvUNet", "ResidualEncoderUNet", "ResidualUNet")

#: Readers of medical images, and whether they bring scans to RAS+ first.
READERS = {
    "SimpleITKIO": False,
    "NibabelIO": False,
    "SimpleITKIOWithReorient": True,
    "NibabelIOWithReorient": True,
}

NORMALIZATIONS = ("ZScoreNormalization", "CTNormalization", "NoNormalization", "RescaleTo01Normalization")


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
    first = load_checkpoint(folder.checkpoints[0][1])
    configuration = _configuration(folder, first)
    card = read_card(folder.path, folder.path.name)
    channels = card.channels or _channels(folder)
    output, notes = lesion_output(folder.dataset, folder.path / "dataset.json")
    engines = []
    for index, (_, file) in enumerate(folder.checkpoints):
        checkpoint = first if index == 0 else load_checkpoint(file)
        network = build_network(configuration, len(channels), output.outputs, folder.path / "plans.json")
        _load_weights(network, checkpoint, file, channels)
        engines.append(TorchEngine(network, len(channels), output.outputs, device))
    return LesionModel(
        name=card.name,
        version=card.version,
        channels=channels,
        folds=tuple(fold for fold, _ in folder.checkpoints),
        sha256=folder_sha256(folder.files),
        card=card,
        recipe=_recipe(folder, configuration, len(channels)),
        engines=tuple(engines),
        patch_size=tuple(int(size) for size in configuration.patch_size),
        mirror_axes=tuple(first.get("inference_allowed_mirroring_axes") or ()),
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
    """Which output is the lesion: a label named lesion or stroke, else the only label, else label 1 with a note.

    Returns
    -------
    LesionOutput, tuple of str
        The output, and notes about how it was chosen.

    Raises
    ------
    ConfigError
        If there is no foreground label.
    """
    labels = {name: value for name, value in dataset.get("labels", {}).items() if name not in ("background", "ignore")}
    if not labels:
        raise ConfigError(f"{source} has no label besides the background.", "Use a model that segments lesions.")
    names = list(labels)
    named = [name for name in names if re.fullmatch(r"(?i)lesions?|stroke", name)]
    named = named or [name for name in names if re.search(r"(?i)lesion|stroke", name)]
    notes = ()
    if not named and len(names) > 1:
        notes = (f"None of the labels {', '.join(names)} is called lesion; '{names[0]}' was taken.",)
    chosen = (named or names)[0]
    if any(isinstance(value, list) and len(value) > 1 for value in labels.values()):  # regions: one output each
        return LesionOutput(names.index(chosen), len(names), independent=True), notes
    values = sorted(value[0] if isinstance(value, list) else value for value in labels.values())
    value = labels[chosen][0] if isinstance(labels[chosen], list) else labels[chosen]
    return LesionOutput(1 + values.index(value), 1 + len(values)), notes


def build_network(configuration: Any, channels: int, outputs: int, source: Path) -> torch.nn.Module:
    """The network of a configuration, without memory for its weights (they are assigned from a checkpoint).

    Parameters
    ----------
    configuration : nnunetv2 ConfigurationManager
    channels, outputs : int

    Raises
    ------
    ConfigError
        If the plans name a class that is not on the lists of known ones, or arguments it does not take.
    """
    from dynamic_network_architectures.architectures import unet

    name = configuration.network_arch_class_name.rpartition(".")[2]
    if name not in ARCHITECTURES:
        raise ConfigError(
            f"{source} asks for the network {configuration.network_arch_class_name}, which this App does not run.",
            f"It runs {', '.join(ARCHITECTURES)}.",
        )
    arguments = dict(configuration.network_arch_init_kwargs)
    for key in configuration.network_arch_init_kwargs_req_import:
        arguments[key] = _known_class(arguments.get(key), source)
    arguments["deep_supervision"] = False
    try:
        with torch.device("meta"):
            return getattr(unet, name)(input_channels=channels, num_classes=outputs, **arguments)
    except (TypeError, AssertionError, ValueError, IndexError, KeyError) as error:
        raise ConfigError(
            f"{source} describes no {name} that can be built: {error}.", "Copy the model again."
        ) from error


def _model_folder(path: Path) -> Path:
    """The trained-model folder at `path`, or the only one just below it."""
    if path.is_dir() and ((path / "plans.json").exists() or any(path.glob("fold_*"))):
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
    there = sorted(
        (path.name.removeprefix("fold_") for path in folder.glob("fold_*") if path.is_dir()),
        key=lambda fold: (not fold.isdigit(), int(fold) if fold.isdigit() else 0, fold),
    )
    chosen = [fold.removeprefix("fold_") for fold in folds] or [fold for fold in there if fold.isdigit()] or there
    if not chosen:
        raise ConfigError(f"The model {folder} has no fold_* folder.", "Copy the whole model.")
    if missing := [fold for fold in chosen if fold not in there]:
        raise ConfigError(
            f"The model {folder} has no fold {', '.join(missing)}.", f"It has: {', '.join(there) or 'none'}."
        )
    return tuple((fold, _checkpoint(folder / f"fold_{fold}")) for fold in dict.fromkeys(chosen))


def _checkpoint(fold: Path) -> Path:
    """The final checkpoint of a fold, else its best one."""
    for name in CHECKPOINTS:
        if (fold / name).is_file():
            return fold / name
    raise ConfigError(
        f"{fold} holds neither {' nor '.join(CHECKPOINTS)}.", "Finish its training, or leave it out with --folds."
    )


def _configuration(folder: ModelFolder, checkpoint: dict[str, Any]):
    """nnU-Net's view of the configuration that was trained."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    source = folder.path / "plans.json"
    name = _configuration_name(folder, checkpoint)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about plans of older versions, which nnU-Net converts
            configuration = PlansManager(folder.plans).get_configuration(name)
            missing = {"patch_size", "spacing", "normalization_schemes"} - set(configuration.configuration)
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{source} cannot be understood: {error}.", "Copy the model again.") from error
    if missing:
        raise ConfigError(f"{source} lacks {', '.join(sorted(missing))} for {name}.", "Copy the model again.")
    if configuration.previous_stage_name is not None:
        raise ConfigError(
            f"{folder.path} is the second stage of a cascade, which needs the first stage's output.",
            "Use 2d, 3d_lowres or 3d_fullres.",
        )
    return configuration


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


def _channels(folder: ModelFolder) -> tuple[str, ...]:
    """Our names of the channels that ``dataset.json`` lists, in order."""
    source = folder.path / "dataset.json"
    listed = folder.dataset.get("channel_names") or folder.dataset.get("modality") or {}
    names = tuple(channel_name(str(listed[key]), source) for key in sorted(listed, key=int))
    if not 1 <= len(names) <= 2 or len(set(names)) != len(names):
        raise ConfigError(
            f"{source} lists the channels {', '.join(names) or 'none'}; this App runs models of T1w, FLAIR or both.",
            "Use another model.",
        )
    return names


def _known_class(name: str | None, source: Path) -> type | None:
    """A class of `torch.nn`, or a residual block, by the dotted name in the plans; nothing else is ever imported."""
    from dynamic_network_architectures.building_blocks import residual

    if name is None:
        return None
    module, _, last = name.rpartition(".")
    if module == residual.__name__ and last in ("BasicBlockD", "BottleneckD"):
        return getattr(residual, last)
    found = getattr(torch.nn, last, None) if module == "torch.nn" or module.startswith("torch.nn.modules") else None
    if not (isinstance(found, type) and issubclass(found, torch.nn.Module)):
        raise ConfigError(
            f"{source} asks for {name}, which is no layer of torch.nn.", "Use a model trained by nnU-Net."
        )
    return found


def _load_weights(network: torch.nn.Module, checkpoint: dict[str, Any], file: Path, channels: tuple[str, ...]) -> None:
    """Give a network the weights of a checkpoint."""
    weights = checkpoint.get("network_weights")
    if not isinstance(weights, dict):
        raise ConfigError(f"{file} holds no network_weights.", "Use a checkpoint saved by nnU-Net.")
    # left over from distributed or compiled training
    weights = {key.removeprefix("module.").removeprefix("_orig_mod."): value for key, value in weights.items()}
    first = next((value for value in weights.values() if getattr(value, "ndim", 0) >= 4), None)
    if first is not None and first.shape[1] != len(channels):
        raise ConfigError(
            f"The network in {file} takes {first.shape[1]} channel(s), but {len(channels)} are listed: "
            f"{', '.join(channels)}.",
            "dataset.json (or card.json) and checkpoint are of different models.",
        )
    try:
        network.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split()[:30])
        raise ConfigError(
            f"The weights in {file} do not fit the network of plans.json: {reason} ...",
            "Trainers that change the network are not supported.",
        ) from error


def _recipe(folder: ModelFolder, configuration: Any, channels: int) -> Recipe:
    """How the scans are prepared, from the plans."""
    source = folder.path / "plans.json"
    plans = folder.plans
    reader = str(plans.get("image_reader_writer") or folder.dataset.get("overwrite_image_reader_writer", "SimpleITKIO"))
    if reader not in READERS:
        raise ConfigError(f"{source} asks for the image reader {reader}.", f"Known readers: {', '.join(READERS)}.")
    if (preprocessor := configuration.configuration.get("preprocessor_name")) not in (None, "DefaultPreprocessor"):
        raise ConfigError(f"{source} asks for the preprocessor {preprocessor}.", "Use nnU-Net's default preprocessor.")
    forward = plans.get("transpose_forward", [0, 1, 2])
    return Recipe(
        axes=tuple((2, 1, 0)[axis] for axis in forward),  # readers hand out arrays as z, y, x
        reorient=READERS[reader],
        spacing=tuple(float(side) for side in configuration.spacing),
        normalizers=tuple(_normalizer(plans, configuration, channel, source) for channel in range(channels)),
        needs_mask=any(configuration.use_mask_for_norm),
        resample_scan=_resampler(configuration, "resampling_fn_data", source),
        resample_logits=_resampler(configuration, "resampling_fn_probabilities", source),
    )


def _normalizer(plans: dict[str, Any], configuration: Any, channel: int, source: Path) -> Normalizer:
    """nnU-Net's normalisation of one channel."""
    from nnunetv2.preprocessing.normalization import default_normalization_schemes as schemes

    names = configuration.normalization_schemes
    if channel >= len(names) or names[channel] not in NORMALIZATIONS:
        raise ConfigError(
            f"{source} has no known normalization for channel {channel}: {names}.",
            f"Known ones: {', '.join(NORMALIZATIONS)}.",
        )
    properties = plans.get("foreground_intensity_properties_per_channel")
    properties = properties or plans.get("foreground_intensity_properties_by_modality") or {}
    scheme = getattr(schemes, names[channel])(
        use_mask_for_norm=bool(configuration.use_mask_for_norm[channel]),
        intensityproperties=properties.get(str(channel), {}),
    )
    return scheme.run


def _resampler(configuration: Any, key: str, source: Path) -> Resampler:
    """nnU-Net's resampling by name; its default one in our fast way."""
    from nnunetv2.preprocessing.resampling.no_resampling import no_resampling_hack
    from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet

    name = configuration.configuration.get(key, "resample_data_or_seg_to_shape")
    options = dict(configuration.configuration.get(f"{key}_kwargs", {}))
    if name == "resample_data_or_seg_to_shape":
        return partial(_default_resampling, options)
    if name == "resample_torch_fornnunet":
        return partial(_other_resampling, resample_torch_fornnunet, options)
    if name == "no_resampling_hack":
        return partial(_other_resampling, no_resampling_hack, options)
    raise ConfigError(
        f"{source} asks for the resampling {name}, which this App does not know.", "Use nnU-Net's default."
    )


def _default_resampling(options: dict[str, Any], volume: torch.Tensor, shape, before, after) -> torch.Tensor:
    """nnU-Net's default: splines, and slice by slice where the slices are thick."""
    from nnunetv2.preprocessing.resampling import default_resampling as default

    limit = options.get("separate_z_anisotropy_threshold", default.ANISO_THRESHOLD)
    by_slice, _ = default.determine_do_sep_z_and_axis(options.get("force_separate_z", False), before, after, limit)
    if not by_slice:
        return resize(volume, shape, options.get("order", 3))
    return _other_resampling(default.resample_data_or_seg_to_shape, options, volume, shape, before, after)


def _other_resampling(function, options: dict[str, Any], volume: torch.Tensor, shape, before, after) -> torch.Tensor:
    """One of nnU-Net's own functions."""
    return torch.as_tensor(np.asarray(function(volume.numpy(), shape, before, after, **options)), dtype=torch.float32)
