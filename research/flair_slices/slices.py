"""Real FLAIR slices of acute strokes in three planes, as the network sees them.

The slices are those of the Stroke Outcome Optimization Project in MNI space at 1 mm, one per patient and plane. They
are z-scored inside the brain, zero outside, and laid on one grid per plane; columns grow to the right of the patient
(axial, coronal) or to the front (sagittal), rows to the front (axial) or upwards.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from scipy import ndimage

from bids_app.training.anatomy import split_of

Plane = Literal["axial", "sagittal", "coronal"]

FILES: Mapping[Plane, str] = {
    "axial": "soop_flair_axial_z18.npz",
    "sagittal": "soop_flair_sagittal_xm39.npz",
    "coronal": "soop_flair_coronal_ym18.npz",
}
#: Rows and columns of each plane: multiples of 32, a little more than the MNI grid of the files.
SHAPES: Mapping[Plane, tuple[int, int]] = {"axial": (192, 160), "sagittal": (160, 192), "coronal": (160, 160)}
#: Beyond this many standard deviations from the brain's median, unmarked tissue of a patient with an earlier stroke may
#: be that stroke.
UNUSUAL_SD = 1.0
SMOOTHING_PX = 1.5
#: A lesion of fewer pixels (mm2) does not make a slice one with lesion.
LESION_PX = 20
#: Contrasts below this are not seen by an expert on FLAIR alone (``contrast.tsv``).
VISIBLE = 0.5


@dataclass(frozen=True)
class Slices:
    """Slices of one plane.

    Attributes
    ----------
    plane : str
    patients : tuple of int
        One number per slice.
    image : ndarray
        ``(n, rows, columns)`` float16; z-scored inside the brain, zero outside.
    lesion : ndarray
        ``(n, rows, columns)`` bool: the expert's mask.
    ignored : ndarray
        ``(n, rows, columns)`` bool: unmarked pixels that may be an earlier stroke.
    contrast : ndarray
        ``(n,)``: how visible the masked lesion is, in standard deviations; NaN without one.
    earlier_stroke : ndarray
        ``(n,)`` bool: the patient had one, or it is not known.
    """

    plane: Plane
    patients: tuple[int, ...]
    image: np.ndarray
    lesion: np.ndarray
    ignored: np.ndarray
    contrast: np.ndarray
    earlier_stroke: np.ndarray

    def __len__(self) -> int:
        return len(self.patients)

    def __getitem__(self, chosen: np.ndarray) -> Slices:
        return Slices(
            self.plane,
            tuple(np.array(self.patients)[chosen].tolist()),
            self.image[chosen],
            self.lesion[chosen],
            self.ignored[chosen],
            self.contrast[chosen],
            self.earlier_stroke[chosen],
        )

    @property
    def has_lesion(self) -> np.ndarray:
        """``(n,)`` bool: at least `LESION_PX` pixels are marked."""
        return self.lesion.sum(axis=(1, 2)) >= LESION_PX

    @property
    def is_clean(self) -> np.ndarray:
        """``(n,)`` bool: nothing is marked."""
        return ~self.lesion.any(axis=(1, 2))

    def of_split(self, split: str) -> Slices:
        """The slices of the patients of a split: ``train``, ``validation`` or ``test``."""
        return self[np.array([split_of(f"sub-{patient}") == split for patient in self.patients])]


def load_slices(data: Path, plane: Plane) -> Slices:
    """All slices of a plane.

    Parameters
    ----------
    data : Path
        Folder with ``stroke_flair_slices`` and ``lesion_masks``.
    """
    folder = data / "stroke_flair_slices"
    with np.load(folder / FILES[plane]) as stored:
        patients, flair, lesion = stored["id"], stored["flair"], stored["lesion"] > 0
    contrast = _contrasts(folder / "contrast.tsv", plane)
    earlier = _patients_without_earlier_stroke(data / "lesion_masks" / "SOOP_participants.tsv")
    numbers = [int(str(patient).removeprefix("sub-")) for patient in patients]
    had_stroke = np.array([number not in earlier for number in numbers])
    image = np.stack([zscored(upright(values, plane)) for values in flair])
    masks = np.stack([upright(values, plane) for values in lesion])
    unusual = np.stack([_unusual(one) for one in image]) & ~masks & had_stroke[:, None, None]
    return Slices(
        plane,
        tuple(numbers),
        _on_grid(image.astype(np.float16), SHAPES[plane]),
        _on_grid(masks, SHAPES[plane]),
        _on_grid(unusual, SHAPES[plane]),
        np.array([contrast.get(number, np.nan) for number in numbers]),
        had_stroke,
    )


def upright(values: np.ndarray, plane: Plane) -> np.ndarray:
    """A stored slice with rows and columns as this module lays them; axes are stored x (to the left), y, z."""
    if plane == "sagittal":
        return values.T
    return values[::-1].T


def zscored(image: np.ndarray) -> np.ndarray:
    """Grey values in standard deviations from the mean of the brain, which is where they are not 0; float32."""
    values = image.astype(np.float32)
    brain = values > 0
    if not brain.any():
        return values
    inside = values[brain]
    return np.where(brain, (values - inside.mean()) / max(float(inside.std()), 1e-3), 0)


def _on_grid(images: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """``(n, rows, columns)`` with zeros around, the middle kept in the middle (the midline in that of a mirror)."""
    room = [goal - size for goal, size in zip(shape, images.shape[1:], strict=True)]
    # an odd number of columns has its midline in a pixel; on an even grid it lies half a pixel beside the middle
    margins = [(extra // 2, extra - extra // 2) for extra in room]
    return np.pad(images, [(0, 0), *margins])


def _unusual(image: np.ndarray) -> np.ndarray:
    """Pixels of the brain whose surroundings are far brighter or darker than most of it."""
    brain = image != 0
    share = ndimage.gaussian_filter(brain.astype(np.float32), SMOOTHING_PX)
    smooth = ndimage.gaussian_filter(image, SMOOTHING_PX) / np.maximum(share, 1e-3)
    middle = np.median(smooth[brain]) if brain.any() else 0.0
    return brain & (np.abs(smooth - middle) > UNUSUAL_SD)


def _contrasts(path: Path, plane: Plane) -> dict[int, float]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return {
        int(row["participant_id"]): float(row["contrast"])
        for row in rows
        if row["plane"].startswith(plane) and row["contrast"] != "n/a"
    }


def _patients_without_earlier_stroke(path: Path) -> set[int]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return {int(row["participant_id"].removeprefix("sub-")) for row in rows if row["priorstroke"] in ("0", "0.0")}
