"""From trained networks to a model folder, and the threshold of its maps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from bids_app.anomaly.authors import read_autoencoder
from bids_app.anomaly.autoencoder import Autoencoder
from bids_app.anomaly.findings import large_components
from bids_app.anomaly.folder import AUTOENCODER, CARD, DEVIATIONS, THEIR_SHAPE, USUAL, VELOCITY, read_card
from bids_app.anomaly.model import AnomalyModel, check_frame, load_anomaly_model, read_own_autoencoder
from bids_app.anomaly.usual import Usual
from bids_app.anomaly.velocity import Velocity
from bids_app.derivatives.write import atomic, write_json
from bids_app.errors import ConfigError, VisitError
from bids_app.networks.device import Device
from bids_app.text import read_json
from bids_app.wording import counted

Item = TypeVar("Item")
Brain = tuple[np.ndarray, np.ndarray]
BRAINS_BY_PLACE = (10, 40)
"""Healthy brains from which it is measured what is usual at each place: at least, and at most."""
BINS = 100_000
"""Of anomalies: a threshold of five digits lies at the border of two."""


def write_anomaly_model(
    folder: Path, autoencoder: Autoencoder, velocity: Velocity | None, card: Mapping[str, Any]
) -> None:
    """Write a model folder: the networks in fp16, and a card of what is given and their sizes.

    Without a velocity network it is no model yet, but one can be trained from it.
    """
    networks = {AUTOENCODER: autoencoder} | ({} if velocity is None else {VELOCITY: velocity})
    for name, network in networks.items():
        # to a stream: given a path, PyTorch writes its random name into the file
        with atomic(folder / name) as temporary, temporary.open("wb") as stream:
            torch.save(_halved(network), stream)
    sizes = {Path(name).stem: network.size.to_card() for name, network in networks.items()}
    parameters = sum(weights.numel() for network in networks.values() for weights in network.parameters())
    write_json(folder / CARD, {**card, **sizes, "parameters": parameters})


@dataclass(frozen=True)
class TrainedAutoencoder:
    """An autoencoder to train a velocity network on.

    Attributes
    ----------
    network : Autoencoder
    contrast : str or None
        ``T1w`` or ``FLAIR``, where its card says it.
    slice_shape : tuple of int or None
        Rows and columns that it takes; None is the box.
    preset : str or None
        Of its training, where its card says it.
    """

    network: Autoencoder
    contrast: str | None = None
    slice_shape: tuple[int, int] | None = None
    preset: str | None = None


def read_trained_autoencoder(path: Path) -> TrainedAutoencoder:
    """The autoencoder in a place.

    Parameters
    ----------
    path : Path
        A folder that `write_anomaly_model` wrote, a file of REFLECT's authors, or a folder that holds one.

    Raises
    ------
    ConfigError
        If there is none.
    """
    if (path / AUTOENCODER).is_file():
        card = read_card(path, of_authors=False)
        network = read_own_autoencoder(path / AUTOENCODER, card)
        check_frame(card.name, card.slice_shape, network)
        return TrainedAutoencoder(network, card.contrast, card.slice_shape, card.preset)
    files = [path] if path.is_file() else [file for file in sorted(path.glob("*.pt")) if "vae" in file.name.lower()]
    if len(files) != 1:
        raise ConfigError(
            f"{path} holds no autoencoder: neither {AUTOENCODER} nor one VAE*.pt.",
            "Make one with: afterstroke train autoencoder",
        )
    return TrainedAutoencoder(read_autoencoder(files[0]), slice_shape=THEIR_SHAPE)


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
    above_by_place : float or None
        Share at or above the threshold of each place, where the model has those.
    findings : float or None
        Findings by the threshold of each place, mean over scans.
    """

    scans: int
    mean: float
    deviation: float
    above: float
    above_by_place: float | None = None
    findings: float | None = None

    @property
    def threshold(self) -> float:
        """Anomaly from which a voxel differs from a healthy brain, as it is applied."""
        return round(self.mean + DEVIATIONS * self.deviation, 5)

    def to_card(self) -> dict[str, Any]:
        """For the card."""
        healthy = {"scans": self.scans, "mean": self.mean, "deviation": self.deviation, "above_threshold": self.above}
        if self.above_by_place is not None:
            healthy |= {"above_by_place": self.above_by_place, "findings": self.findings}
        rounded = {name: round(value, 5) for name, value in healthy.items()}
        return {"threshold": self.threshold, "healthy_scans": rounded}


def calibrate(model: AnomalyModel, brains: Iterable[Brain]) -> Calibration:
    """Threshold of a model from healthy scans, or from healthy slices of scans.

    Parameters
    ----------
    model : AnomalyModel
    brains : iterable of (ndarray, ndarray)
        ``(slices, rows, columns)`` uint8 of `anomaly.slices.grey_values`, and which slices count, ``(slices,)`` bool.
        The model sees all of them: with context, a slice is looked at beside its neighbours.

    Raises
    ------
    ConfigError
        If there are fewer than two with anything that counts, or they are too different to say.
    """
    means, spread, places, findings = [], np.zeros(BINS + 1), [], []
    limits = model.usual.limits if model.usual else None
    for grey, counts in brains:
        anomaly, inside = _anomalies(model, grey), (grey > 0) & counts[:, None, None]
        values = anomaly[inside]
        if values.size:
            means.append(values.mean(dtype=np.float64))
            spread += np.bincount((values * BINS).astype(np.int64), minlength=BINS + 1) / values.size
            if limits is not None:
                unusual = (anomaly >= limits) & inside
                places.append(unusual.sum() / values.size)
                findings.append(len(large_components(unusual)[1]))
    if len(means) < 2:
        raise ConfigError(
            f"{counted(len(means), 'scan')} with healthy slices cannot measure a threshold: two are needed.",
            "Give more healthy scans.",
        )
    found = Calibration(len(means), float(np.mean(means)), float(np.std(means, ddof=1)), 0.0)
    if not 0 < found.threshold <= 1:
        raise ConfigError(
            f"Mean anomalies of {found.mean:.3f} with a deviation of {found.deviation:.3f} between "
            f"{counted(len(means), 'healthy scan')} give a threshold of {found.threshold:.3f}, which is not in (0, 1].",
            "Measure it with more healthy scans (afterstroke train calibrate), or give --anomaly-threshold.",
        )
    above = spread[round(found.threshold * BINS) :].sum() / len(means)
    by_place = {"above_by_place": float(np.mean(places)), "findings": float(np.mean(findings))} if places else {}
    return replace(found, above=float(above), **by_place)


def for_places(brains: Sequence[Item]) -> list[Item]:
    """Those of some brains from which it is measured what is usual at each place; none if they are few."""
    least, most = BRAINS_BY_PLACE
    chosen = np.unique(np.linspace(0, len(brains) - 1, most).astype(int)) if len(brains) >= least else ()
    return [brains[number] for number in chosen]


def measure(
    folder: Path, device: Device, places: Iterable[Brain], held_out: Iterable[Brain], apart: bool = True
) -> Calibration:
    """Measure a model on healthy brains, and write beside its networks what is usual at each place, and its threshold.

    Parameters
    ----------
    places : iterable of (ndarray, ndarray)
        See `for_places`; as of `calibrate`. From none of them, the model has one threshold for all places.
    held_out : iterable of (ndarray, ndarray)
        See `calibrate`.
    apart : bool
        Whether these are other brains than those of `places`: only then they tell how much of a brain lies above the
        threshold of its place.
    """
    model = load_anomaly_model(folder, device, with_usual=False)
    usual = Usual.of(_placed(model, *brain) for brain in places)
    measured = calibrate(replace(model, usual=usual if apart else None), held_out)
    if usual is None:
        (folder / USUAL).unlink(missing_ok=True)
    else:
        with atomic(folder / USUAL) as temporary:
            usual.save(temporary)
    add_to_card(folder, measured.to_card())
    return measured


def _placed(model: AnomalyModel, grey: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return _anomalies(model, grey), (grey > 0) & counts[:, None, None]


def _anomalies(model: AnomalyModel, grey: np.ndarray) -> np.ndarray:
    try:
        return model.explain(grey).anomaly
    except VisitError as error:  # it would be so in every visit
        raise ConfigError(error.message, error.hint) from error


def add_to_card(folder: Path, content: Mapping[str, Any]) -> None:
    """Set some keys of a model's card; one is begun where there is none (models of REFLECT's authors)."""
    path = folder / CARD
    card = read_json(path) if path.is_file() else {"name": folder.name}
    write_json(path, card | dict(content))
