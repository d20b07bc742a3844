"""Lesion frequency maps: the share of participants with a lesion at each voxel of a standard space."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from nibabel.filebasedimages import ImageFileError

from bids_app import images
from bids_app.derivatives import names, sidecars
from bids_app.derivatives.description import DISCLAIMER
from bids_app.group.collect import Cohort, label_of, standard_space, warning
from bids_app.group.progress import Say, silent, told
from bids_app.images import Image
from bids_app.study.models import Problem
from bids_app.text import read_json

Value = TypeVar("Value")

_UNREADABLE = (OSError, EOFError, ValueError, zlib.error, ImageFileError)


@dataclass(frozen=True)
class StandardMask:
    """The lesion mask of a visit in a standard space; `path` is relative to the output folder."""

    subject: str
    label: str
    path: str


@dataclass(frozen=True)
class FrequencyMap:
    """A lesion frequency map.

    Attributes
    ----------
    image : Image
        Shares in [0, 1], float32, RAS+.
    masks : tuple of StandardMask
        Those that went into it.
    """

    space: str
    image: Image
    masks: tuple[StandardMask, ...]

    @property
    def participants(self) -> int:
        return len({mask.subject for mask in self.masks})


@dataclass(frozen=True)
class _Grid:
    """Shape and affine of an image brought to RAS+, rounded so that equal grids compare equal."""

    shape: tuple[int, ...]
    affine: tuple[float, ...]

    @classmethod
    def of(cls, image: Image) -> _Grid:
        return cls(image.shape, tuple((np.round(image.affine, 3) + 0.0).ravel().tolist()))

    @property
    def matrix(self) -> np.ndarray:
        """The affine, shape (4, 4)."""
        return np.array(self.affine).reshape(4, 4)


def masks_by_space(cohort: Cohort) -> dict[str, list[StandardMask]]:
    """The standard-space lesion masks of the finished visits, by space."""
    found: dict[str, list[StandardMask]] = {}
    for record in cohort.done:
        for path in record.outputs:
            if space := standard_space(path):
                found.setdefault(space, []).append(StandardMask(record.subject, label_of(record), path))
    return dict(sorted(found.items()))


def frequency_map(
    out_dir: Path, space: str, masks: Sequence[StandardMask], say: Say = silent
) -> tuple[FrequencyMap | None, tuple[Problem, ...]]:
    """Average the masks of one space: first over the visits of each participant, then over participants.

    So every participant weighs the same, however many visits there were. Masks stored in another voxel order are
    brought to RAS+. Left out, each with a warning: masks that cannot be read, masks on another grid than most, and
    masks whose registration to the space failed its check.

    Returns
    -------
    FrequencyMap or None
        None if no mask is left.
    problems : tuple of Problem
    """
    heads = told(masks, f"Headers of masks in {space} read", say)
    grids, problems = _try_each(heads, lambda mask: _grid(out_dir, mask))
    if not grids:
        return None, tuple(problems)
    common = Counter(grids.values()).most_common(1)[0][0]
    total, used, subjects = np.zeros(common.shape).ravel(), [], 0
    ordered = told(sorted(grids, key=lambda mask: mask.subject), f"Masks in {space} read", say)
    for _, own in groupby(ordered, key=lambda mask: mask.subject):
        found, more = _try_each(own, lambda mask: _lesion_voxels(out_dir, mask, common))
        problems += more
        used += found
        if found:
            voxels, visits = np.unique(np.concatenate(list(found.values())), return_counts=True)
            total[voxels] += visits / len(found)
            subjects += 1
    if not used:
        return None, tuple(problems)
    shares = (total / subjects).astype(np.float32).reshape(common.shape)
    return FrequencyMap(space, images.on_affine(shares, common.matrix), tuple(used)), tuple(problems)


class _LeftOutError(Exception):
    """Why a mask does not go into the map."""


def _try_each(
    masks: Iterable[StandardMask], read: Callable[[StandardMask], Value]
) -> tuple[dict[StandardMask, Value], list[Problem]]:
    """What `read` gives for each mask, and a warning for each mask it raised `_LeftOutError` for."""
    values, problems = {}, []
    for mask in masks:
        try:
            values[mask] = read(mask)
        except _LeftOutError as reason:
            message = f"The lesion mask {mask.path} is left out of the frequency map: {reason}."
            problems.append(warning("mask-left-out", message, mask.path))
    return values, problems


def _grid(out_dir: Path, mask: StandardMask) -> _Grid:
    """Grid of a mask that may be used."""
    if _registration_failed(out_dir / mask.path):
        raise _LeftOutError("the registration to this space failed its check")
    try:
        return _Grid.of(images.to_ras(images.load(out_dir / mask.path)))
    except _UNREADABLE as error:
        raise _LeftOutError(f"it cannot be read ({error})") from error


def _lesion_voxels(out_dir: Path, mask: StandardMask, grid: _Grid) -> np.ndarray:
    """Where in `grid`, as a row of voxels, there is lesion: few numbers, whatever the size of the grid."""
    try:
        image = images.to_ras(images.load(out_dir / mask.path))
        if _Grid.of(image) != grid:
            raise _LeftOutError("it lies on another grid than most masks of this space")
        return np.flatnonzero(np.asarray(image.dataobj) > 0)
    except _UNREADABLE as error:
        raise _LeftOutError(f"it cannot be read ({error})") from error


def _registration_failed(path: Path) -> bool:
    """Whether the sidecar of an image says that its registration failed; a missing sidecar says nothing."""
    try:
        content = read_json(names.sidecar(path))
        return content["Registration"]["Status"] == "failed"
    except (OSError, ValueError, TypeError, KeyError):
        return False


def sidecar(found: FrequencyMap) -> dict[str, Any]:
    """What is said of a map: how it was made, of how many, from which masks."""
    return {
        "Description": "Lesion frequency map: share of participants with a lesion at each voxel, 0 to 1. The masks of "
        "a participant with several visits are averaged first, so that every participant weighs the same. "
        f"{DISCLAIMER}",
        "Sources": [sidecars.own(mask.path) for mask in found.masks],
        "SpatialReference": sidecars.space_reference(found.space),
        "Resolution": sidecars.RESOLUTION,
        "Participants": found.participants,
        "Visits": len(found.masks),
    }
