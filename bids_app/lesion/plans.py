"""What nnU-Net's plans say, turned into a network and a recipe for the scans.

Whatever the plans name is looked up in lists of known classes: nothing that a model folder says is imported or run.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bids_app.errors import ConfigError
from bids_app.lesion.preparation import Normalizer, Recipe, Resampler
from bids_app.networks.resampling import resize

ARCHITECTURES = ("PlainConvUNet", "ResidualEncoderUNet", "ResidualUNet")

#: The networks that this project adds, by the module that plans name them with.
OWN_ARCHITECTURES = {"bids_app.networks.architectures": ("MirrorUNet", "IntermediateUNet", "LateFusion")}

#: Readers of medical images, and whether they bring scans to RAS+ first.
READERS = {
    "SimpleITKIO": False,
    "NibabelIO": False,
    "SimpleITKIOWithReorient": True,
    "NibabelIOWithReorient": True,
}

NORMALIZATIONS = ("ZScoreNormalization", "CTNormalization", "NoNormalization", "RescaleTo01Normalization")


@dataclass(frozen=True)
class Plans:
    """One configuration of a ``plans.json``.

    Attributes
    ----------
    path : Path
        The file, for messages.
    content : dict
        All of it.
    configuration : dict
        The configuration that was trained, with what it inherits.
    """

    path: Path
    content: dict[str, Any]
    configuration: dict[str, Any]

    @property
    def patch_size(self) -> tuple[int, ...]:
        return tuple(int(size) for size in self.configuration["patch_size"])


def read_configuration(path: Path, content: dict[str, Any], name: str) -> Plans:
    """One configuration of the plans, old formats converted by nnU-Net itself.

    Raises
    ------
    ConfigError
        If it cannot be understood, lacks something, or is the second stage of a cascade.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about plans of older versions, which nnU-Net converts
            configuration = PlansManager(content).get_configuration(name).configuration
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{path} cannot be understood: {error}.", "Copy the model again.") from error
    needed = {"architecture", "patch_size", "spacing", "normalization_schemes", "use_mask_for_norm"}
    if missing := sorted(needed - set(configuration)):
        raise ConfigError(f"{path} lacks {', '.join(missing)} for {name}.", "Copy the model again.")
    if configuration.get("previous_stage"):
        raise ConfigError(
            f"{path.parent} is the second stage of a cascade, which needs the first stage's output.",
            "Use 2d, 3d_lowres or 3d_fullres.",
        )
    return Plans(path, content, configuration)


def build_network(plans: Plans, channels: int, outputs: int) -> torch.nn.Module:
    """The network of the plans, without memory for its weights (they are assigned from a checkpoint).

    Raises
    ------
    ConfigError
        If the plans name a class that is not on the lists of known ones, or arguments it does not take.
    """
    try:
        architecture = plans.configuration["architecture"]
        network, arguments = architecture["network_class_name"], dict(architecture["arch_kwargs"])
        for key in architecture["_kw_requires_import"]:
            arguments[key] = _known_class(arguments[key], plans.path)
        arguments["deep_supervision"] = False
        with torch.device("meta"):
            return _architecture(network, plans.path)(input_channels=channels, num_classes=outputs, **arguments)
    except (TypeError, AssertionError, AttributeError, ValueError, LookupError, RuntimeError) as error:
        raise ConfigError(f"{plans.path} describes no network that can be built: {error!r}.") from error


def _architecture(name: str, source: Path) -> type[torch.nn.Module]:
    """A network by the name in the plans: one of nnU-Net's, wherever the plans say it lies, or one of ours."""
    from dynamic_network_architectures.architectures import unet

    from bids_app.networks import architectures

    module, _, last = name.rpartition(".")
    if last in OWN_ARCHITECTURES.get(module, ()):
        return getattr(architectures, last)
    if last in ARCHITECTURES:
        return getattr(unet, last)
    raise ConfigError(
        f"{source} asks for the network {name}, which this App does not run.", f"It runs {', '.join(ARCHITECTURES)}."
    )


def make_recipe(plans: Plans, channels: int) -> Recipe:
    """How the scans are prepared.

    Raises
    ------
    ConfigError
        If the plans name a reader, preprocessor, normalization or resampling that is not known.
    """
    reader = plans.content.get("image_reader_writer", "SimpleITKIO")
    if reader not in READERS:
        raise ConfigError(f"{plans.path} asks for the image reader {reader}.", f"Known readers: {', '.join(READERS)}.")
    preprocessor = plans.configuration.get("preprocessor_name", "DefaultPreprocessor")
    if preprocessor != "DefaultPreprocessor":
        raise ConfigError(f"{plans.path} asks for the preprocessor {preprocessor}.", "Use DefaultPreprocessor.")
    forward = plans.content.get("transpose_forward", (0, 1, 2))
    return Recipe(
        axes=tuple((2, 1, 0)[axis] for axis in forward),  # readers hand out arrays as z, y, x
        reorient=READERS[reader],
        spacing=tuple(float(side) for side in plans.configuration["spacing"]),
        normalizers=tuple(_normalizer(plans, channel) for channel in range(channels)),
        needs_mask=any(plans.configuration["use_mask_for_norm"]),
        resample_scan=_resampler(plans, "resampling_fn_data"),
        resample_logits=_resampler(plans, "resampling_fn_probabilities"),
    )


def _known_class(name: str | None, source: Path) -> type | None:
    """A layer of `torch.nn`, a residual block, or a network that is part of another, by the dotted name in the plans.

    Nothing else is ever imported.
    """
    from dynamic_network_architectures.building_blocks import residual

    if name is None:
        return None
    module, _, last = name.rpartition(".")
    if last in (*ARCHITECTURES, *OWN_ARCHITECTURES.get(module, ())):
        return _architecture(name, source)
    if module == residual.__name__ and last in ("BasicBlockD", "BottleneckD"):
        return getattr(residual, last)
    known = module == "torch.nn" or module.startswith("torch.nn.modules.")
    layer = getattr(torch.nn, last, None) if known else None
    if not (isinstance(layer, type) and issubclass(layer, torch.nn.Module)):
        raise ConfigError(f"{source} asks for {name}, which is no layer of torch.nn.", "Use a model of nnU-Net.")
    return layer


def _normalizer(plans: Plans, channel: int) -> Normalizer:
    """nnU-Net's normalisation of one channel."""
    from nnunetv2.preprocessing.normalization import default_normalization_schemes as schemes

    names = plans.configuration["normalization_schemes"]
    if channel >= len(names) or names[channel] not in NORMALIZATIONS:
        raise ConfigError(
            f"{plans.path} has no known normalization for channel {channel}: {names}.",
            f"Known ones: {', '.join(NORMALIZATIONS)}.",
        )
    statistics = plans.content.get("foreground_intensity_properties_per_channel")
    statistics = statistics or plans.content.get("foreground_intensity_properties_by_modality") or {}
    scheme = getattr(schemes, names[channel])(
        use_mask_for_norm=bool(plans.configuration["use_mask_for_norm"][channel]),
        intensityproperties=statistics.get(str(channel), {}),
    )
    return scheme.run


def _resampler(plans: Plans, key: str) -> Resampler:
    """nnU-Net's resampling by name, in our fast way where it does the same."""
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
    from nnunetv2.preprocessing.resampling.no_resampling import no_resampling_hack
    from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet

    name = plans.configuration.get(key, "resample_data_or_seg_to_shape")
    options = dict(plans.configuration.get(f"{key}_kwargs", {}))
    if name == "resample_data_or_seg_to_shape":
        by_slice = options.get("force_separate_z", False)
        return partial(resample, resample_data_or_seg_to_shape, options, options.get("order", 3), by_slice)
    if name == "resample_torch_fornnunet":
        return partial(resample, resample_torch_fornnunet, options, 1, options.get("force_separate_z"))
    if name == "no_resampling_hack":
        return partial(_resample_by, no_resampling_hack, options)
    raise ConfigError(f"{plans.path} asks for the resampling {name}.", "Use one that comes with nnU-Net.")


def resample(
    function, options: dict[str, Any], order: int, by_slice: bool | None, volume: torch.Tensor, shape, before, after
) -> torch.Tensor:
    """Splines of an order in all directions, or nnU-Net's own function slice by slice where the slices are thick."""
    from nnunetv2.preprocessing.resampling import default_resampling as default

    limit = options.get("separate_z_anisotropy_threshold", default.ANISO_THRESHOLD)
    apart, _ = default.determine_do_sep_z_and_axis(by_slice, before, after, limit)
    if apart:
        return _resample_by(function, options, volume, shape, before, after)
    return resize(volume, shape, order)


def _resample_by(function, options: dict[str, Any], volume: torch.Tensor, shape, before, after) -> torch.Tensor:
    """One of nnU-Net's own functions."""
    return torch.as_tensor(np.asarray(function(volume.numpy(), shape, before, after, **options)), dtype=torch.float32)
