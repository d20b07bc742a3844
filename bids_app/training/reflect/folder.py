"""From trained networks to a model folder, and the threshold of its maps."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bids_app.anomaly.autoencoder import Autoencoder
from bids_app.anomaly.folder import AUTOENCODER, CARD, VELOCITY
from bids_app.anomaly.model import AnomalyModel
from bids_app.anomaly.velocity import Velocity
from bids_app.derivatives.write import atomic, write_json

DEVIATIONS = 3
"""Standard deviations above the mean of healthy scans at which the threshold lies."""


def write_anomaly_model(
    folder: Path, autoencoder: Autoencoder, velocity: Velocity, card: Mapping[str, Any]
) -> None:
    """Write a model folder: both networks in fp16, and a card of what is given and their sizes."""
    for name, network in ((AUTOENCODER, autoencoder), (VELOCITY, velocity)):
        with atomic(folder / name) as temporary:
            torch.save(_halved(network), temporary)
    sizes = {"autoencoder": autoencoder.size.to_card(), "velocity": velocity.size.to_card()}
    parameters = sum(weights.numel() for network in (autoencoder, velocity) for weights in network.parameters())
    write_json(folder / CARD, {**card, **sizes, "parameters": parameters})


def _halved(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.cpu().half() for name, value in network.state_dict().items()}


@dataclass(frozen=True)
class Calibration:
    """What healthy scans that a model has not seen say of its maps.

    Attributes
    ----------
    scans : int
    mean, deviation : float
        Of the mean anomaly in the brain, over scans.
    above : float
        Share of their brain voxels at or above the threshold, mean over scans.
    """

    scans: int
    mean: float
    deviation: float
    above: float

    @property
    def threshold(self) -> float:
        """Anomaly from which a voxel departs from a healthy brain."""
        return self.mean + DEVIATIONS * self.deviation

    def to_card(self) -> dict[str, Any]:
        """For the card, with the threshold as it is applied."""
        healthy = {"scans": self.scans, "mean": self.mean, "deviation": self.deviation, "above_threshold": self.above}
        rounded = {name: round(value, 5) for name, value in healthy.items()}
        return {"threshold": round(self.threshold, 5), "healthy_scans": rounded}


def calibrate(model: AnomalyModel, brains: Iterable[np.ndarray]) -> Calibration:
    """Threshold of a model from healthy scans.

    Parameters
    ----------
    model : AnomalyModel
    brains : iterable of ndarray
        Two or more; ``(slices, rows, columns)`` uint8 of `anomaly.slices.grey_values`.

    Raises
    ------
    ValueError
        If there are fewer than two.
    """
    anomalies = [model.explain(brain).anomaly[brain > 0] for brain in brains]
    if len(anomalies) < 2:
        raise ValueError(f"{len(anomalies)} healthy scans are too few: two or more.")
    means = np.array([values.mean() for values in anomalies])
    found = Calibration(len(means), float(means.mean()), float(means.std(ddof=1)), 0.0)
    above = np.mean([(values >= found.threshold).mean() for values in anomalies])
    return Calibration(found.scans, found.mean, found.deviation, float(above))


def add_to_card(folder: Path, content: Mapping[str, Any]) -> None:
    """Set some keys of a model's card; one is begun where there is none (models of REFLECT's authors)."""
    path = folder / CARD
    card = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"name": folder.name}
    write_json(path, card | dict(content))
