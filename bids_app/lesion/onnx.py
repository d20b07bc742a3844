"""Lesion models in ONNX, as StrokeSeg distributes them: one network file, perhaps with a manifest beside it.

StrokeSeg's chain (Kerverdo et al., arXiv 2510.24378) after brain extraction, bias correction and rigid registration:
crop to the non-zero box, 1 mm, z-score over the brain, windows of 128 voxels with half overlap and Gaussian weights.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from bids_app.errors import ConfigError
from bids_app.lesion.folder import network_file, read_json
from bids_app.lesion.preparation import Recipe
from bids_app.lesion.segmentation import LesionModel, LesionOutput, channel_name, read_card
from bids_app.networks.device import Device
from bids_app.networks.engine import OnnxEngine
from bids_app.networks.resampling import resize
from bids_app.networks.weights import folder_sha256

SPACING_MM = (1.0, 1.0, 1.0)

#: Patch of a network that takes any size.
DEFAULT_PATCH = (128, 128, 128)

#: Channels of a network without a manifest, by their number.
DEFAULT_CHANNELS = {1: ("T1w",), 2: ("T1w", "FLAIR")}


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
    card = replace(read_card(file.parent, file.stem), channels=channels)
    return LesionModel(
        name=card.name,
        version=card.version,
        channels=channels,
        folds=(),
        sha256=folder_sha256([file]),
        card=card,
        recipe=_recipe(engine.channels),
        engines=(engine,),
        patch_size=engine.patch_size or DEFAULT_PATCH,
        mirror_axes=(),
        output=LesionOutput(index=0 if engine.outputs == 1 else 1, outputs=engine.outputs),
        notes=notes,
    )


def _channels(file: Path, count: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the channels, from the card, the manifest or their number, and a note if they were guessed."""
    manifest = file.with_suffix(".json")
    names = read_card(file.parent, file.stem).channels
    if not names and manifest.is_file():
        inputs = read_json(manifest).get("inputs")
        inputs = [item for item in inputs if isinstance(item, dict)] if isinstance(inputs, list) else []
        names = tuple(channel_name(str(item.get("name", "")), manifest) for item in inputs)
    notes = () if names else (f"{file.name} has no manifest; its channels were taken to be the usual ones.",)
    names = names or DEFAULT_CHANNELS.get(count, ())
    if len(names) != count or len(set(names)) != count:
        raise ConfigError(
            f"{file} takes {count} channel(s), but {', '.join(names) or 'nothing'} is known of them.",
            f"Name them in {manifest.name} or card.json.",
        )
    return names, notes


def _recipe(channels: int) -> Recipe:
    """Preparation of the scans for StrokeSeg's networks."""
    return Recipe(
        axes=(2, 1, 0),
        reorient=True,
        spacing=SPACING_MM,
        normalizers=(_z_score,) * channels,
        needs_mask=True,
        resample_scan=lambda volume, shape, before, after: resize(volume, shape, order=3),
        resample_logits=lambda logits, shape, before, after: resize(logits, shape, order=1),
    )


def _z_score(channel: np.ndarray, outside: np.ndarray | None) -> np.ndarray:
    """Zero mean and unit deviation inside the brain; the rest stays zero."""
    inside = outside >= 0
    values = channel[inside]
    out = np.zeros_like(channel)
    out[inside] = (values - values.mean()) / max(float(values.std()), 1e-8)
    return out
