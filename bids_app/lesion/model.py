"""Loading a lesion model, whatever its format."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from bids_app.errors import ConfigError
from bids_app.lesion import nnunet, onnx
from bids_app.lesion.card import Card
from bids_app.lesion.folder import is_onnx, read_folder
from bids_app.lesion.segmentation import LesionModel, Prediction
from bids_app.networks import registry
from bids_app.networks.device import CPU, Device

__all__ = ["Card", "LesionModel", "LesionModels", "Prediction", "load_model", "load_models"]


@dataclass(frozen=True)
class LesionModels:
    """A lesion model, and what stands in for it where a contrast is missing.

    Attributes
    ----------
    models : tuple of LesionModel
        The model itself first; after it the branches of a late fusion.
    """

    models: tuple[LesionModel, ...]

    def for_contrasts(self, available: Collection[str]) -> LesionModel | None:
        """The first model whose channels are all among the available contrasts; None if there is none."""
        return next((model for model in self.models if set(model.channels) <= set(available)), None)


def load_models(path: Path, folds: tuple[str, ...] = (), device: Device = CPU) -> LesionModels:
    """Load a lesion model with all its folds onto a device.

    Parameters
    ----------
    path : Path
        A trained-model folder of nnU-Net v2 (or the folder above it, if it holds one), an ONNX file, or a folder with
        one ONNX file.
    folds : tuple of str
        Folds to average, as in ``("0", "1")`` or ``("all",)``; empty takes every fold there is.
    device : Device
        Where the networks run.

    Raises
    ------
    ConfigError
        If the model is incomplete, damaged, changed (an embedded one), or of a kind this App does not run.
    UnavailableError
        If the device cannot run it.
    """
    if not path.exists():
        raise ConfigError(f"There is no model {path}.", "Give an embedded model's name, a folder or an ONNX file.")
    if is_onnx(path):
        return LesionModels((onnx.read_model(path, folds, device),))
    registry.verify(path)
    for _, branch in read_folder(path, folds).branches:
        registry.verify(branch.path)
    return LesionModels(nnunet.read_models(path, folds, device))


def load_model(path: Path, folds: tuple[str, ...] = (), device: Device = CPU) -> LesionModel:
    """The model itself, without what stands in for it; see `load_models`."""
    return load_models(path, folds, device).models[0]
