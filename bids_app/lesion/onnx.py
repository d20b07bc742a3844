"""Lesion models in ONNX, as StrokeSeg distributes them: one network file, perhaps with a manifest beside it.

StrokeSeg's chain (Kerverdo et al., arXiv 2510.24378) is brain extraction, N4, rigid registration to MNI, crop to the
non-zero box, 1 mm, z-score, windows of 128 voxels with half overlap and Gaussian weights, threshold 0.5 in MNI, and the
mask brought back. Its two versions differ in the details below. A model whose manifest lists inputs, as those of
version 2 do, gets the steps of version 2, any other those of version 1. Brain extraction is this App's own in either
case, and so is the template; a FLAIR beside a T1w goes with it to MNI, as in version 1 (version 2 registers each by
itself, which leaves them apart).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from bids_app.errors import ConfigError
from bids_app.lesion.card import channel_name, read_card
from bids_app.lesion.folder import manifest_inputs, network_file
from bids_app.lesion.outputs import LesionOutput
from bids_app.lesion.plans import resample
from bids_app.lesion.preparation import Normalizer, Recipe, Resampler
from bids_app.lesion.segmentation import LesionModel
from bids_app.lesion.terms import read_terms, strokeseg_version
from bids_app.networks.device import Device
from bids_app.networks.engine import OnnxEngine
from bids_app.networks.resampling import resize
from bids_app.networks.weights import folder_sha256

SPACING_MM = (1.0, 1.0, 1.0)

#: Patch of a network that takes any size.
DEFAULT_PATCH = (128, 128, 128)

#: Channels of a network without a manifest, by their number.
DEFAULT_CHANNELS = {1: ("T1w",), 2: ("T1w", "FLAIR")}


@dataclass(frozen=True)
class Version:
    """Where the two versions of StrokeSeg differ once a brain lies in MNI.

    Attributes
    ----------
    normalizer : callable
        Version 1 counts holes in the brain as brain.
    resample_scan : callable
        To 1 mm; in MNI at 1 mm it changes nothing.
    multiple : int
        The scan is padded to whole multiples of this.
    mask_order : int
        The mask is made in MNI and brought back by nearest neighbour (0), or linearly and cut at one half (1).
    """

    normalizer: Normalizer
    resample_scan: Resampler
    multiple: int
    mask_order: int


def read_model(path: Path, folds: tuple[str, ...], device: Device) -> LesionModel:
    """Load an ONNX lesion model.

    Parameters
    ----------
    path : Path
        The ONNX file, or a folder with one. ``NAME.json`` beside ``NAME.onnx`` may name the inputs as StrokeSeg's
        manifests do (``{"inputs": [{"name": "T1"}]}``), ``card.json`` may give threshold, minimum volume and channels.
    folds : tuple of str
        Must be empty.

    Raises
    ------
    ConfigError
        If the file cannot be run, or its channels are unknown.
    """
    file = network_file(path, folds)
    engine = OnnxEngine(file, device)
    if engine.patch_size is not None and len(engine.patch_size) != 3:
        raise ConfigError(f"{file} is not a 3-d network.", "Use a network with inputs (batch, channels, x, y, z).")
    channels, notes = _channels(file, engine.channels)
    card, version = replace(read_card(file.parent, file.stem), channels=channels), VERSIONS[strokeseg_version(file)]
    return LesionModel(
        name=card.name,
        version=card.version,
        channels=channels,
        folds=(),
        sha256=folder_sha256([file]),
        card=card,
        terms=read_terms(path),
        recipe=_recipe(version, engine.channels),
        engines=(engine,),
        patch_size=engine.patch_size or DEFAULT_PATCH,
        mirror_axes=(),
        output=LesionOutput(index=0 if engine.outputs == 1 else 1, outputs=engine.outputs),
        notes=notes,
        multiple=version.multiple,
        mask_order=version.mask_order,
    )


def _channels(file: Path, count: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the channels, from the card, the manifest or their number, and a note if they were guessed."""
    manifest = file.with_suffix(".json")
    listed = tuple(channel_name(name, manifest) for name in manifest_inputs(file))
    names = read_card(file.parent, file.stem).channels or listed
    notes = () if names else (f"{file.name} has no manifest; its channels were taken to be the usual ones.",)
    names = names or DEFAULT_CHANNELS.get(count, ())
    if len(names) != count or len(set(names)) != count:
        raise ConfigError(
            f"{file} takes {count} channel(s), but {', '.join(names) or 'nothing'} is known of them.",
            f"Name them in {manifest.name} or card.json.",
        )
    return names, notes


def _recipe(version: Version, channels: int) -> Recipe:
    """Preparation of the scans for StrokeSeg's networks."""
    return Recipe(
        axes=(2, 1, 0),
        reorient=True,
        spacing=SPACING_MM,
        normalizers=(version.normalizer,) * channels,
        needs_mask=True,
        resample_scan=version.resample_scan,
        resample_logits=lambda logits, shape, before, after: resize(logits, shape, order=1),
    )


def _z_score(channel: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Zero mean and unit deviation inside; the rest is zero."""
    values = channel[inside]
    out = np.zeros_like(channel)
    out[inside] = (values - values.mean()) / max(float(values.std()), 1e-8)
    return out


def _over_filled_brain(channel: np.ndarray, outside: np.ndarray | None) -> np.ndarray:
    return _z_score(channel, outside >= 0)


def _over_nonzero(channel: np.ndarray, _: np.ndarray | None) -> np.ndarray:
    return _z_score(channel, channel != 0)


def _by_slice(volume: torch.Tensor, shape: Sequence[int], before: Sequence[float], after: Sequence[float]):
    """Linear, but the nearest slice where slices are three times as thick as voxels are wide: nnU-Net's way."""
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

    options = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    return resample(resample_data_or_seg_to_shape, options, 1, None, volume, shape, before, after)


#: By their number.
VERSIONS = {
    1: Version(_over_filled_brain, _by_slice, multiple=1, mask_order=1),
    2: Version(_over_nonzero, lambda volume, shape, *_: resize(volume, shape, order=0), multiple=32, mask_order=0),
}
