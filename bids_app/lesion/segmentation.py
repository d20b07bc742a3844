"""A lesion model ready to run: scans in, lesion probability and disagreement of the folds out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bids_app.errors import ConfigError, VisitError
from bids_app.images import Image
from bids_app.lesion.components import MIN_VOLUME_MM3
from bids_app.lesion.folder import CARD, read_json
from bids_app.lesion.preparation import Recipe, prepare, to_box, to_scan
from bids_app.networks.engine import Engine
from bids_app.networks.sliding_window import predict_logits

#: How datasets write the names of our channels (lower case, letters and digits only).
CHANNEL_NAMES = {
    "T1w": ("t1w", "t1", "t1weighted", "mrit1", "t1mri", "t1mprage", "mprage"),
    "FLAIR": ("flair", "t2flair", "t2wflair", "mriflair", "flairmri"),
}


@dataclass(frozen=True)
class Card:
    """What a model's ``card.json`` says; every value has a default.

    Attributes
    ----------
    name, version : str
    threshold : float
        Probability in (0, 1] from which a voxel is lesion.
    min_volume_mm3 : float
        Smallest lesion that is kept, mm3.
    channels : tuple of str
        ``T1w`` and ``FLAIR`` in the network's order; empty if the model says it elsewhere.
    """

    name: str
    version: str = "n/a"
    threshold: float = 0.5
    min_volume_mm3: float = MIN_VOLUME_MM3
    channels: tuple[str, ...] = ()


@dataclass(frozen=True)
class LesionOutput:
    """Which of a network's outputs is the lesion, and how its logits become a probability.

    Attributes
    ----------
    index : int
        Output channel of the lesion.
    outputs : int
        Number of output channels.
    independent : bool
        Whether every output is a region with its own sigmoid; otherwise outputs are classes under one softmax.
    """

    index: int
    outputs: int
    independent: bool = False

    def reduce(self, logits: torch.Tensor) -> torch.Tensor:
        """The channels of (n, outputs, \\*spatial) that the probability needs, by a linear map.

        Of two classes this is the difference of their logits: the softmax is the sigmoid of it, and because averaging
        and resampling are linear too, one channel carries all there is to know.
        """
        if self.independent or self.outputs == 1:
            return logits[:, self.index : self.index + 1]
        if self.outputs == 2:
            return logits[:, self.index : self.index + 1] - logits[:, 1 - self.index : 2 - self.index]
        return logits

    def probability(self, reduced: torch.Tensor) -> torch.Tensor:
        """Lesion probability, shape (\\*spatial), from reduced logits, shape (k, \\*spatial)."""
        if len(reduced) == 1:
            return torch.sigmoid(reduced[0])
        return torch.softmax(reduced, dim=0)[self.index]


@dataclass(frozen=True)
class Prediction:
    """What a model says of a visit.

    Attributes
    ----------
    probability : Image
        Lesion probability, float32 in [0, 1], on the grid of the scans.
    deviation : Image or None
        Standard deviation of the probability between the folds, float32 in [0, 0.5]; None for a single fold.
    """

    probability: Image
    deviation: Image | None


@dataclass(frozen=True)
class LesionModel:
    """A lesion model with the networks of all its folds loaded.

    Attributes
    ----------
    name, version : str
    channels : tuple of str
        The scans it needs, in order: ``("T1w",)``, ``("FLAIR",)`` or ``("T1w", "FLAIR")``.
    folds : tuple of str
        The folds that are averaged; empty for a model without folds.
    sha256 : str
        One checksum over all files that were loaded.
    card : Card
    recipe : Recipe
    engines : tuple of Engine
        One a fold.
    patch_size : tuple of int
    mirror_axes : tuple of int
    output : LesionOutput
    notes : tuple of str
        Sentences about choices made while loading, for the log.
    """

    name: str
    version: str
    channels: tuple[str, ...]
    folds: tuple[str, ...]
    sha256: str
    card: Card
    recipe: Recipe
    engines: tuple[Engine, ...]
    patch_size: tuple[int, ...]
    mirror_axes: tuple[int, ...]
    output: LesionOutput
    notes: tuple[str, ...] = ()

    def predict(self, scans: Sequence[Image]) -> Prediction:
        """Lesion probability of one visit.

        Folds are averaged voxel by voxel over their logits, as nnU-Net does it, so that the probability is that of
        ``nnUNetv2_predict``; the deviation is taken between the folds' own probabilities.

        Parameters
        ----------
        scans : sequence of Image
            One for each of `channels`, on one grid, zero outside the brain, RAS+ (the model's pose).

        Raises
        ------
        VisitError
            If the number of scans is not that of the channels, a scan is empty, or memory does not suffice.
        """
        if len(scans) != len(self.channels):
            wanted = " and ".join(self.channels)
            raise VisitError(f"The model {self.name} needs {wanted}; this visit gave it {len(scans)} scan(s).")
        prepared = prepare(scans, self.recipe)
        logits = [
            to_box(
                predict_logits(
                    engine, prepared.volume, self.patch_size, self.mirror_axes, reduce=self.output.reduce
                ).cpu(),
                prepared,
                self.recipe,
            )
            for engine in self.engines
        ]
        probability = self.output.probability(torch.stack(logits).mean(dim=0))
        deviation = _deviation([self.output.probability(fold) for fold in logits])
        return Prediction(
            to_scan(probability, prepared, self.recipe, scans[0]),
            None if deviation is None else to_scan(deviation, prepared, self.recipe, scans[0]),
        )


def read_card(folder: Path, default_name: str) -> Card:
    """The card of a model folder; defaults where there is none.

    Raises
    ------
    ConfigError
        If the card is no JSON object or its values are out of range.
    """
    path = folder / CARD
    content = read_json(path) if path.is_file() else {}
    try:
        card = Card(
            name=str(content.get("name", default_name)),
            version=str(content.get("version", Card.version)),
            threshold=float(content.get("threshold", Card.threshold)),
            min_volume_mm3=float(content.get("min_volume_mm3", Card.min_volume_mm3)),
            channels=tuple(channel_name(str(name), path) for name in content.get("channels", ())),
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path} has a value of the wrong kind: {error}.", "Correct the card.") from error
    if not 0 < card.threshold <= 1 or not card.min_volume_mm3 >= 0:
        raise ConfigError(
            f"{path} sets threshold {card.threshold} and min_volume_mm3 {card.min_volume_mm3}.",
            "The threshold lies in (0, 1], the volume is not negative.",
        )
    return card


def channel_name(name: str, source: Path) -> str:
    """Our name, ``T1w`` or ``FLAIR``, of a channel as a dataset names it.

    Raises
    ------
    ConfigError
        If the channel is neither.
    """
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    for ours, theirs in CHANNEL_NAMES.items():
        if plain in theirs:
            return ours
    raise ConfigError(
        f"{source} names a channel '{name}'; this App gives a model T1w and FLAIR only.",
        'If it is one of these, say so in the model\'s card.json, as in {"channels": ["T1w"]}.',
    )


def _deviation(probabilities: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """Standard deviation between the folds, voxel by voxel."""
    if len(probabilities) < 2:
        return None
    return torch.stack(list(probabilities)).std(dim=0, correction=0)
