"""A lesion model ready to run: scans in, lesion probability and disagreement of the folds out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bids_app.errors import VisitError
from bids_app.images import Image
from bids_app.lesion.card import Card
from bids_app.lesion.outputs import LesionOutput
from bids_app.lesion.preparation import Recipe, prepare, to_box, to_scan
from bids_app.lesion.terms import ModelTerms
from bids_app.networks.engine import Engine
from bids_app.networks.sliding_window import predict_logits


@dataclass(frozen=True)
class Prediction:
    """What a model says of a visit.

    Attributes
    ----------
    probability : Image
        Lesion probability, float32 in [0, 1], on the grid of the scans.
    deviation : Image or None
        Standard deviation of the probability between the folds, float32 in [0, 0.5]; None for a single fold.
    decided : Image or None
        1 where nnU-Net's own segmentation has the lesion, else 0, float32; None where that is where the probability
        reaches one half.
    """

    probability: Image
    deviation: Image | None
    decided: Image | None = None


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
    terms : ModelTerms
        What it wants to see, and how its answer becomes a mask, unless the user says otherwise.
    recipe : Recipe
    engines : tuple of Engine
        One a fold.
    patch_size : tuple of int
    mirror_axes : tuple of int
    output : LesionOutput
    notes : tuple of str
        Sentences about choices made while loading, for the log.
    multiple : int
        The prepared scan is padded with zeros to sides of whole multiples of this.
    mask_order : int or None
        Where the mask is made on the grid that the network sees and carried to the scan (StrokeSeg), the order of the
        interpolation; None where the probability is carried, and the mask made of it.
    """

    name: str
    version: str
    channels: tuple[str, ...]
    folds: tuple[str, ...]
    sha256: str
    card: Card
    terms: ModelTerms
    recipe: Recipe
    engines: tuple[Engine, ...]
    patch_size: tuple[int, ...]
    mirror_axes: tuple[int, ...]
    output: LesionOutput
    notes: tuple[str, ...] = ()
    multiple: int = 1
    mask_order: int | None = None

    def predict(self, scans: Sequence[Image]) -> Prediction:
        """Lesion probability of one visit.

        Folds are averaged voxel by voxel over their logits, as nnU-Net does it, so that the probability is that of
        ``nnUNetv2_predict``; the deviation is taken between the folds' own probabilities.

        Parameters
        ----------
        scans : sequence of Image
            One for each of `channels`, on one grid, as the model wants them (`terms`).

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
                    engine,
                    prepared.volume,
                    self.patch_size,
                    self.mirror_axes,
                    reduce=self.output.reduce,
                    multiple=self.multiple,
                ).cpu(),
                prepared,
                self.recipe,
            )
            for engine in self.engines
        ]
        mean = torch.stack(logits).mean(dim=0)
        deviation = _deviation([self.output.probability(fold) for fold in logits])
        decided = self.output.decided(mean).float() if self.output.decides else None

        def on_scan(values: torch.Tensor | None) -> Image | None:
            return None if values is None else to_scan(values, prepared, self.recipe, scans[0])

        return Prediction(on_scan(self.output.probability(mean)), on_scan(deviation), on_scan(decided))


def _deviation(probabilities: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """Standard deviation between the folds, voxel by voxel."""
    if len(probabilities) < 2:
        return None
    return torch.stack(list(probabilities)).std(dim=0, correction=0)
