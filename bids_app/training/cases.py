"""Synthetic cases of known volume class in heads that a network never saw, for validation and tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy import ndimage
from torch import Generator, Tensor

from bids_app.measures.volumes import volume_class
from bids_app.training.anatomy import LesionMask
from bids_app.training.synthesis.fields import pick
from bids_app.training.synthesis.recipe import Recipe
from bids_app.training.synthesis.scan import BOTH, SynthScan, synthesize_with
from bids_app.training.synthesis.tissue import Source

HEALTHY = "none"
CLASSES = {"small": "15 mL or less", "medium": "15-70 mL", "large": "over 70 mL"}
"""Volume classes of a lesion, as `measures.volumes.volume_class` names them, in words."""
TEST_RECIPE = replace(Recipe(), shifted=0.0)
"""Both contrasts lie on each other, so that one truth holds for every model; the benchmark shifts them on purpose."""
_TRIES = 20


@dataclass(frozen=True)
class Case:
    """One synthetic scan.

    Attributes
    ----------
    head : str
        Confidence intervals are clustered by it.
    group : str
        Volume class of the lesion, a key of ``CLASSES``, or ``none``.
    image : torch.Tensor
        ``(2, z, y, x)``: T1w and FLAIR.
    truth : numpy.ndarray
        ``(z, y, x)`` booleans, 2 mm.
    """

    head: str
    group: str
    image: Tensor
    truth: np.ndarray

    @cached_property
    def elsewhere(self) -> np.ndarray:
        """Where a mark is a false lesion: more than 4 mm from the lesion, since what touches it is its margin."""
        return ~ndimage.binary_dilation(self.truth, iterations=2)


def make_cases(
    sources: Sequence[Source],
    lesions: Sequence[LesionMask],
    per_class: int,
    seed: int,
    healthy: int | None = None,
    recipe: Recipe = TEST_RECIPE,
) -> Iterator[Case]:
    """Scans of every head in every volume class, each with one lesion that shows in both contrasts, and healthy ones.

    Parameters
    ----------
    sources : sequence of Source
    lesions : sequence of LesionMask
    per_class : int
        Scans for each head and volume class. A lesion that ends up in another class, clipped to the brain, is drawn
        again.
    seed : int
        The same seed makes the same cases.
    healthy : int, optional
        Healthy scans for each head; as many as for a class if not given.
    """
    pools = {group: [m for m in lesions if volume_class(m.volume_ml) == group] for group in CLASSES}
    number = seed * 10**6
    for source in sources:
        for group, pool in pools.items():
            for _ in range(per_class if pool else 0):
                number += _TRIES
                scan = _scan_in_group(source, pool, group, number, recipe)
                truth = scan.target[BOTH].cpu().numpy() > 0
                yield Case(source.head.name, volume_class(scan.lesion_ml), scan.image, truth)
        for _ in range(per_class if healthy is None else healthy):
            number += _TRIES
            scan = synthesize_with(source, [], recipe, _generator(source, number))
            yield Case(source.head.name, HEALTHY, scan.image, np.zeros(scan.image.shape[1:], bool))


def _generator(source: Source, number: int) -> Generator:
    return Generator(source.labels.device).manual_seed(number)


def _scan_in_group(source: Source, pool: Sequence[LesionMask], group: str, number: int, recipe: Recipe) -> SynthScan:
    """A scan whose lesion has a volume of this class and shows in both contrasts."""
    for attempt in range(_TRIES):
        rng = _generator(source, number + attempt)
        scan = synthesize_with(source, [pick(pool, rng)], recipe, rng)
        in_both = all(channel.any() for channel in scan.target)
        if in_both and volume_class(scan.lesion_ml) == group:
            return scan
    raise RuntimeError(f"No lesion of class {group} could be put into {source.head.name} in {_TRIES} tries.")
