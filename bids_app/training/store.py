"""Heads and lesions on disk: built from the raw data once, and read by split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.processing import resample_to_output

from bids_app.derivatives.read import read_object
from bids_app.derivatives.write import atomic, write_json
from bids_app.errors import NoInputError
from bids_app.preprocessing.brain import extract_brain
from bids_app.preprocessing.headers import clean
from bids_app.training.alignment import to_ras_zyx
from bids_app.training.anatomy import (
    REAL_TEXTURE,
    Head,
    LesionMask,
    in_split,
    make_head,
    make_lesion,
    make_template_head,
)

FORMAT = 1
"""Grows when heads or lesions are built differently."""
CONTENTS = "contents.json"


@dataclass(frozen=True)
class Raw:
    """The files that heads and lesions are built from.

    Attributes
    ----------
    label_maps, lesion_masks : tuple of Path
    textured : dict of str to Path
        Those of ``REAL_TEXTURE`` that are there.
    """

    label_maps: tuple[Path, ...]
    lesion_masks: tuple[Path, ...]
    textured: dict[str, Path]

    @property
    def contents(self) -> dict:
        """What a cache holds that was built from these files."""
        heads = [path.name.split(".")[0] for path in self.label_maps] + list(self.textured)
        masks = sorted(path.name for path in self.lesion_masks)
        return {"format": FORMAT, "heads": sorted(heads), "lesion_masks": masks}


def find_raw(data: Path) -> Raw:
    """The files below a data folder, by name."""
    label_maps = sorted((data / "label_maps").glob("*.nii.gz"))
    lesion_masks = sorted((data / "lesion_masks").glob("*/*.nii.gz"))
    textured = {name: data / path for name, path in REAL_TEXTURE.items() if (data / path).exists()}
    return Raw(tuple(label_maps), tuple(lesion_masks), textured)


def prepare(data: Path, cache: Path) -> tuple[list[Head], list[LesionMask]]:
    """Heads and lesions, built from the raw data once and read from ``cache`` afterwards.

    A cache of other files, or of another version, is built again: a head that may no longer be trained on must not
    stay in it. Without raw data, the cache is taken as it is.

    Parameters
    ----------
    data : Path
        Folder with ``label_maps/`` and ``lesion_masks/``.
    cache : Path
        Folder for the prepared arrays.

    Returns
    -------
    heads : list of Head
    lesions : list of LesionMask

    Raises
    ------
    NoInputError
        If there is neither, or no lesion mask.
    """
    raw, known = find_raw(data), read_object(cache / CONTENTS)
    if raw.label_maps and known != raw.contents:
        if not raw.lesion_masks:
            raise NoInputError(f"{data} holds no lesion_masks/*/*.nii.gz.", "Check --data.")
        save_heads(build_heads(raw), cache / "heads")
        save_lesions(build_lesions(raw.lesion_masks), cache / "lesions.npz")
        known = raw.contents
        write_json(cache / CONTENTS, known)
    if not known:
        raise NoInputError(f"{data} holds no label_maps/*.nii.gz, and {cache} no prepared heads.", "Check --data.")
    return [load_head(cache / "heads" / f"{name}.npz") for name in known["heads"]], load_lesions(cache / "lesions.npz")


def prepare_split(data: Path, cache: Path, split: str) -> tuple[list[Head], list[LesionMask]]:
    """Heads and lesions of one split, ``train``, ``validation`` or ``test``; see `prepare`."""
    heads, lesions = prepare(data, cache)
    return in_split(heads, split), in_split(lesions, split)


def build_heads(raw: Raw) -> list[Head]:
    """All heads of the raw data."""
    heads = [make_head(path.name.split(".")[0], nib.load(path)) for path in raw.label_maps]
    return heads + [textured_head(name, path) for name, path in raw.textured.items()]


def save_heads(heads: Sequence[Head], folder: Path) -> None:
    """Write each head to ``folder/NAME.npz``."""
    for head in heads:
        arrays = {key: value for key, value in vars(head).items() if isinstance(value, np.ndarray)}
        with atomic(folder / f"{head.name}.npz") as whole:
            np.savez_compressed(whole, **arrays)


def load_head(path: Path) -> Head:
    """A head written by ``save_heads``."""
    with np.load(path) as arrays:
        return Head(name=path.stem, **{key: arrays[key] for key in arrays})


def save_lesions(lesions: Sequence[LesionMask], path: Path) -> None:
    """Write all lesions into one compressed file."""
    arrays = {
        "names": np.array([lesion.name for lesion in lesions]),
        "shapes": np.array([lesion.mask.shape for lesion in lesions]),
        "matrices": np.stack([lesion.mni_to_voxel for lesion in lesions]),
        "volumes": np.array([lesion.volume_ml for lesion in lesions]),
        "masks": np.concatenate([lesion.mask.ravel() for lesion in lesions]),
    }
    with atomic(path) as whole:
        np.savez_compressed(whole, **arrays)


def load_lesions(path: Path) -> list[LesionMask]:
    """Lesions written by ``save_lesions``."""
    with np.load(path) as arrays:
        stored = {key: arrays[key] for key in arrays}
    ends = np.cumsum(stored["shapes"].prod(axis=1))
    lesions = []
    for index, end in enumerate(ends):
        shape = tuple(stored["shapes"][index])
        mask = stored["masks"][end - np.prod(shape) : end].reshape(shape)
        name, volume = str(stored["names"][index]), float(stored["volumes"][index])
        lesions.append(LesionMask(name, mask, stored["matrices"][index], volume))
    return lesions


def build_lesions(paths: Sequence[Path]) -> list[LesionMask]:
    """The plausible ones of these lesion masks."""
    found = (make_lesion(path.name.split(".")[0].removesuffix("_lesion"), nib.load(path)) for path in paths)
    return [lesion for lesion in found if lesion is not None]


def textured_head(name: str, path: Path) -> Head:
    """A healthy T1w as a head that keeps its texture, its brain found as the App finds it."""
    image = resample_to_output(clean(path).image, (1.0, 1.0, 1.0), order=1)
    brain, _ = to_ras_zyx(extract_brain(image))
    return make_template_head(name, image, brain > 0)
