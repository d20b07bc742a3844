"""Loading a lesion model, whatever its format."""

from __future__ import annotations

from pathlib import Path

from bids_app.errors import ConfigError
from bids_app.lesion import nnunet, onnx
from bids_app.lesion.folder import is_onnx
from bids_app.lesion.segmentation import Card, LesionModel, Prediction
from bids_app.networks import registry
from bids_app.networks.device import CPU, Device

__all__ = ["Card", "LesionModel", "Prediction", "load_model"]


def load_model(path: Path, folds: tuple[str, ...] = (), device: Device = CPU) -> LesionModel:
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
    registry.verify(path)
    if is_onnx(path):
        return onnx.read_model(path, folds, device)
    return nnunet.read_model(path, folds, device)
