"""Tiny nnU-Net models with random weights, in nnU-Net's own folder format."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from bids_app.images import Image, on_affine

#: What nnU-Net's fingerprint says of the lesions' grey values; CTNormalization uses it.
FOREGROUND = {"mean": 100.0, "std": 40.0, "percentile_00_5": 30.0, "percentile_99_5": 180.0}


def write_model(
    folder: Path,
    architecture: str = "PlainConvUNet",
    configuration: str = "3d_fullres",
    channels: tuple[str, ...] = ("T1w",),
    folds: tuple[str, ...] = ("0", "1"),
    patch: tuple[int, ...] = (24, 32, 28),
    spacing: tuple[float, ...] = (2.0, 2.0, 2.0),
    labels: dict | None = None,
    regions_class_order: list[int] | None = None,
    mirror_axes: tuple[int, ...] | None = None,
    reader: str = "SimpleITKIO",
    transpose: tuple[int, int, int] = (0, 1, 2),
    use_mask: bool = True,
    resampling: str = "resample_data_or_seg_to_shape",
    normalization: str = "ZScoreNormalization",
    gain: float = 30.0,
) -> Path:
    """Write a trained-model folder whose networks were never trained; `gain` scales their logits."""
    labels = labels or {"background": 0, "lesion": 1}
    outputs = _outputs(labels)
    settings = _configuration(architecture, patch, spacing, len(channels), use_mask)
    settings |= _resampling(resampling) | {"normalization_schemes": [normalization] * len(channels)}
    plans = {
        "dataset_name": "Dataset001_Tiny",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": [40, 40, 40],
        "image_reader_writer": reader,
        "transpose_forward": list(transpose),
        "transpose_backward": np.argsort(transpose).tolist(),
        "configurations": {configuration: settings},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(index): FOREGROUND for index in range(len(channels))},
    }
    dataset = {
        "channel_names": {str(index): name for index, name in enumerate(channels)},
        "labels": labels,
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    if regions_class_order:
        dataset["regions_class_order"] = regions_class_order
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    for seed, fold in enumerate(folds):
        torch.manual_seed(seed)
        checkpoint = {
            "network_weights": _weights(settings, len(channels), outputs, gain),
            "trainer_name": "nnUNetTrainer",
            "init_args": {"configuration": configuration, "fold": fold, "device": torch.device("cpu")},
            "inference_allowed_mirroring_axes": mirror_axes,
            "_best_ema": np.float64(0.5),
            "logging": {"mean_fg_dice": [np.float64(0.5), np.float32(0.25)]},
        }
        (folder / f"fold_{fold}").mkdir()
        torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


def head(shape: tuple[int, int, int] = (52, 60, 48), spacing: float = 1.0, seed: int = 0, contrast: int = 1) -> Image:
    """A smooth random brain of one contrast: an ellipsoid of positive values with a hole, zero around it, RAS+."""
    from scipy import ndimage

    random = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, size) for size in shape], indexing="ij"))
    inside = (grid**2).sum(axis=0) < 0.8
    texture = ndimage.gaussian_filter(random.normal(size=shape), 2.0)
    ramp = grid[0] * 0.5 + grid[1] * 0.3 - grid[2] * 0.2
    values = np.where(inside, 100 + 40 * contrast * ramp + 400 * texture, 0).astype(np.float32)
    hole = tuple(slice(size // 3, size // 2) for size in shape)
    values[hole] = 0  # counts as brain for nnU-Net, which fills the holes of its mask
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = -np.array(shape) * spacing / 2
    return on_affine(values, affine)


def _configuration(architecture: str, patch, spacing, channels: int, use_mask: bool) -> dict:
    """The part of the plans that describes one configuration."""
    dimension = len(patch)
    blocks = "n_conv_per_stage" if architecture == "PlainConvUNet" else "n_blocks_per_stage"
    return {
        "data_identifier": "tiny",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(patch),
        "median_image_size_in_voxels": list(patch),
        "spacing": list(spacing),
        "normalization_schemes": ["ZScoreNormalization"] * channels,
        "use_mask_for_norm": [use_mask] * channels,
        "batch_dice": False,
        "architecture": {
            "network_class_name": f"dynamic_network_architectures.architectures.unet.{architecture}",
            "arch_kwargs": {
                "n_stages": 3,
                "features_per_stage": [4, 8, 8],
                "conv_op": f"torch.nn.modules.conv.Conv{dimension}d",
                "kernel_sizes": [[3] * dimension] * 3,
                "strides": [[1] * dimension, [2] * dimension, [2] * dimension],
                blocks: [1, 1, 1],
                "n_conv_per_stage_decoder": [1, 1],
                "conv_bias": True,
                "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimension}d",
                "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }


def _resampling(name: str) -> dict:
    """The part of a configuration that describes resampling, with nnU-Net's usual options."""
    entries = {}
    for role, order in (("data", 3), ("seg", 1), ("probabilities", 1)):
        options = {"is_seg": role == "seg", "force_separate_z": None}
        splines = {"order": order, "order_z": 0} if name == "resample_data_or_seg_to_shape" else {}
        entries |= {f"resampling_fn_{role}": name, f"resampling_fn_{role}_kwargs": options | splines}
    return entries


def _weights(settings: dict, channels: int, outputs: int, gain: float) -> dict[str, torch.Tensor]:
    """Random weights of nnU-Net's own network; its last layer is scaled to give probabilities away from one half."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    network = get_network_from_plans(
        settings["architecture"]["network_class_name"],
        settings["architecture"]["arch_kwargs"],
        settings["architecture"]["_kw_requires_import"],
        channels,
        outputs,
        deep_supervision=True,
    )
    with torch.no_grad():
        for layer in network.decoder.seg_layers:
            layer.weight.mul_(gain)
    return network.state_dict()


def _outputs(labels: dict) -> int:
    values = [value for name, value in labels.items() if name != "ignore"]
    return len(values) - 1 if any(isinstance(value, list) for value in values) else len(values)
