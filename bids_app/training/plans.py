"""Plans and dataset description of the lesion networks, in nnU-Net v2's own format."""

from __future__ import annotations

from dataclasses import dataclass

from bids_app.training.synthesis import PATCH, SPACING_MM

CONFIGURATION = "3d_fullres"
TRAINER = "nnUNetTrainer"
DATASET = "Dataset901_SyntheticStrokeT1w"

_RESAMPLING = {"force_separate_z": False, "memefficient_seg_resampling": False}


@dataclass(frozen=True)
class NetworkSize:
    """Size of a plain convolutional U-Net; the default has 887,112 parameters.

    Attributes
    ----------
    features : tuple of int
        Channels of each stage; all stages but the first halve the resolution.
    encoder_convs, decoder_convs : tuple of int
        Convolutions of each stage.
    patch : tuple of int
        ``(z, y, x)`` voxels of 2 mm; the default holds a whole brain.
    """

    features: tuple[int, ...] = (8, 16, 32, 64, 80)
    encoder_convs: tuple[int, ...] = (1, 2, 2, 2, 2)
    decoder_convs: tuple[int, ...] = (1, 1, 1, 1)
    patch: tuple[int, int, int] = PATCH


def architecture(size: NetworkSize) -> dict:
    """The ``architecture`` entry of a configuration."""
    stages = len(size.features)
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
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
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def configuration(size: NetworkSize) -> dict:
    """The only configuration: 2 mm, z-scored inside the brain, resampled with torch.

    ``resample_torch_fornnunet`` is chosen for its speed: the default (skimage, order 3) takes seconds per scan.
    """
    functions = {
        f"resampling_fn_{role}": "resample_torch_fornnunet" for role in ("data", "seg", "probabilities")
    }
    arguments = {
        f"resampling_fn_{role}_kwargs": {"is_seg": role == "seg", **_RESAMPLING}
        for role in ("data", "seg", "probabilities")
    }
    return {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 1,
        "patch_size": list(size.patch),
        "median_image_size_in_voxels": [72.0, 88.0, 68.0],
        "spacing": [SPACING_MM] * 3,
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [True],
        **functions,
        **arguments,
        "architecture": architecture(size),
        "batch_dice": False,
    }


def build_plans(size: NetworkSize | None = None) -> dict:
    """The contents of ``plans.json``.

    Axes are (z, y, x), as both of nnU-Net's NIfTI readers deliver them. ``NibabelIOWithReorient`` turns every image
    to RAS first, so that a scan stored LAS or LIA is not mirrored for the network.
    """
    return {
        "dataset_name": DATASET,
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": [145, 176, 137],
        "image_reader_writer": "NibabelIOWithReorient",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {CONFIGURATION: configuration(size or NetworkSize())},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": {"max": 1.0, "mean": 0.0, "median": 0.0, "min": 0.0, "percentile_00_5": 0.0,
                  "percentile_99_5": 1.0, "std": 1.0}
        },
    }


def build_dataset(cases: int) -> dict:
    """The contents of ``dataset.json``; ``cases`` is the number of heads scans are made from."""
    return {
        "channel_names": {"0": "T1w"},
        "labels": {"background": 0, "lesion": 1},
        "numTraining": cases,
        "file_ending": ".nii.gz",
        "name": DATASET,
        "description": "Synthetic T1w scans with stroke lesions, made during training",
    }
