"""Plans and dataset description of the lesion networks, in nnU-Net v2's own format."""

from __future__ import annotations

from dataclasses import dataclass

from bids_app.training.synthesis.fields import PATCH, SPACING_MM
from bids_app.training.synthesis.tissue import BRAIN

CONFIGURATION = "3d_fullres"
TRAINER = "nnUNetTrainer"

_RESAMPLING = {"force_separate_z": False, "memefficient_seg_resampling": False}
_NETWORKS = "bids_app.networks.architectures"
_STOCK = "dynamic_network_architectures.architectures.unet.PlainConvUNet"

SPACE = "pose: brain-extracted, bias-corrected, rigidly aligned to MNI152NLin2009aSym, 1 mm, RAS"
"""What the models expect, for their cards."""

INPUT = "rigid"
"""The same, in the word by which the App knows it."""

USE = "Research only: not a medical device."
"""What the models are for, for their cards."""

ANATOMY_OUTPUTS = BRAIN
"""Outputs for the healthy anatomy, that training adds and the embedded model drops."""


@dataclass(frozen=True)
class NetworkSize:
    """Size of a U-Net that works at half the resolution.

    Attributes
    ----------
    features : tuple of int
        Channels of each stage; all stages but the first halve the resolution.
    encoder_convs, decoder_convs : tuple of int
        Convolutions of each stage.
    patch : tuple of int
        ``(z, y, x)`` voxels of 2 mm; the default holds a whole brain.
    """

    features: tuple[int, ...] = (16, 32, 64, 80)
    encoder_convs: tuple[int, ...] = (2, 2, 2, 2)
    decoder_convs: tuple[int, ...] = (1, 1, 1)
    patch: tuple[int, int, int] = PATCH


INTERMEDIATE_SIZE = NetworkSize(features=(16, 32, 48, 64), encoder_convs=(2, 2, 2, 1))
"""Two encoders within the same 0.9 million parameters."""


@dataclass(frozen=True)
class Fusion:
    """One way to use T1w and FLAIR.

    Attributes
    ----------
    name : str
        What the command line calls it.
    contrasts : tuple of str
        Scans the model needs, in order.
    size : NetworkSize
    """

    name: str
    contrasts: tuple[str, ...]
    size: NetworkSize = NetworkSize()

    @property
    def dataset(self) -> str:
        """Name of its nnU-Net dataset."""
        number = 901 + list(FUSIONS).index(self.name)
        return f"Dataset{number}_SyntheticStroke{self.name.capitalize()}"


FUSIONS = {
    fusion.name: fusion
    for fusion in (
        Fusion("t1w", ("T1w",)),
        Fusion("flair", ("FLAIR",)),
        Fusion("early", ("T1w", "FLAIR")),
        Fusion("intermediate", ("T1w", "FLAIR"), INTERMEDIATE_SIZE),
        Fusion("late", ("T1w", "FLAIR")),
    )
}


def unet_arguments(size: NetworkSize) -> dict:
    """Arguments of a plain U-Net of nnU-Net."""
    stages = len(size.features)
    return {
        "n_stages": stages,
        "features_per_stage": list(size.features),
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
        "n_conv_per_stage": list(size.encoder_convs),
        "n_conv_per_stage_decoder": list(size.decoder_convs),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }


def architecture(fusion: Fusion, extra_outputs: int = 0) -> dict:
    """The ``architecture`` entry of a configuration."""
    core = f"{_NETWORKS}.IntermediateUNet" if fusion.name == "intermediate" else _STOCK
    single = {
        "network_class_name": f"{_NETWORKS}.MirrorUNet",
        "arch_kwargs": unet_arguments(fusion.size) | {"extra_outputs": extra_outputs, "core_class": core},
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin", "core_class"],
    }
    return late_architecture(single) if fusion.name == "late" else single


def late_architecture(branch: dict) -> dict:
    """The ``architecture`` entry of a late fusion of networks that have the entry `branch`."""
    return {
        "network_class_name": f"{_NETWORKS}.LateFusion",
        "arch_kwargs": branch["arch_kwargs"] | {"branch_class": branch["network_class_name"]},
        "_kw_requires_import": [*branch["_kw_requires_import"], "branch_class"],
    }


def for_channels(plans: dict, count: int) -> dict:
    """Plans with a normalisation for each of so many channels: those there are, else the first for all.

    Parameters
    ----------
    plans : dict
        Content of a ``plans.json``, left as it is; of its configurations ``CONFIGURATION`` alone is kept.
    count : int
        Channels of the network.
    """
    configuration = dict(plans["configurations"][CONFIGURATION])
    for key in ("normalization_schemes", "use_mask_for_norm"):
        values = list(configuration[key])
        configuration[key] = values if len(values) == count else values[:1] * count
    known = plans.get("foreground_intensity_properties_per_channel", {})
    properties = {str(number): known.get(str(number), known.get("0", {})) for number in range(count)}
    return plans | {
        "configurations": {CONFIGURATION: configuration},
        "foreground_intensity_properties_per_channel": properties,
    }


def configuration(fusion: Fusion, extra_outputs: int = 0) -> dict:
    """The only configuration: 2 mm, z-scored inside the brain, resampled with torch.

    ``resample_torch_fornnunet`` is chosen for its speed: the default (skimage, order 3) takes seconds per scan.
    """
    roles = ("data", "seg", "probabilities")
    functions = {f"resampling_fn_{role}": "resample_torch_fornnunet" for role in roles}
    arguments = {f"resampling_fn_{role}_kwargs": {"is_seg": role == "seg", **_RESAMPLING} for role in roles}
    return {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(fusion.size.patch),
        "median_image_size_in_voxels": [72.0, 88.0, 68.0],
        "spacing": [SPACING_MM] * 3,
        "normalization_schemes": ["ZScoreNormalization"] * len(fusion.contrasts),
        "use_mask_for_norm": [True] * len(fusion.contrasts),
        **functions,
        **arguments,
        "architecture": architecture(fusion, extra_outputs),
        "batch_dice": False,
    }


def build_plans(fusion: Fusion, extra_outputs: int = 0) -> dict:
    """The contents of ``plans.json``.

    Axes are (z, y, x), as both of nnU-Net's NIfTI readers deliver them. ``NibabelIOWithReorient`` turns every image
    to RAS first, so that a scan stored LAS or LIA is not mirrored for the network.
    """
    values = {"max": 1.0, "mean": 0.0, "median": 0.0, "min": 0.0, "percentile_00_5": 0.0, "percentile_99_5": 1.0,
              "std": 1.0}
    return {
        "dataset_name": fusion.dataset,
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": [145, 176, 137],
        "image_reader_writer": "NibabelIOWithReorient",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {CONFIGURATION: configuration(fusion, extra_outputs)},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            str(channel): values for channel in range(len(fusion.contrasts))
        },
    }


def build_dataset(fusion: Fusion, cases: int) -> dict:
    """The contents of ``dataset.json``; ``cases`` is the number of heads scans are made from."""
    return {
        "channel_names": {str(channel): name for channel, name in enumerate(fusion.contrasts)},
        "labels": {"background": 0, "lesion": 1},
        "numTraining": cases,
        "file_ending": ".nii.gz",
        "name": fusion.dataset,
        "description": "Synthetic scans with stroke lesions, made during training",
    }


def shippable(checkpoint: dict) -> dict:
    """What is needed to run a checkpoint: weights and nnU-Net's few words on them, no optimizer.

    ``trainer_name`` is nnU-Net's own: its predictor looks the class up by name, and the network is that of the plans.
    """
    return {
        "network_weights": checkpoint["network_weights"],
        "optimizer_state": {},
        "grad_scaler_state": None,
        "logging": {},
        "_best_ema": None,
        "current_epoch": checkpoint["current_epoch"],
        "init_args": {"configuration": CONFIGURATION},
        "trainer_name": TRAINER,
        "inference_allowed_mirroring_axes": checkpoint["inference_allowed_mirroring_axes"],
    }
