"""Lesions put into real healthy heads: what is marked in them without, and what is found of each size.

    python -m benchmarks.injected MODEL --data DIR [--per-size 12]

prepares the two heads that nothing was ever fitted to (``pycortex_S1`` and ``uih``) as the App does, prints the
volume that the model marks in each as it is, then puts one test lesion of the Stroke Outcome Optimization Project or of
LESYMAP at a time into them and prints Dice and share found by size. The lesions are painted here with SciPy at 1 mm by
code that shares nothing with the training synthesis.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage

from benchmarks.intervals import interval
from benchmarks.pose import pose_head
from bids_app import images
from bids_app.images import Image
from bids_app.lesion.components import find_lesions
from bids_app.lesion.model import LesionModel, load_model
from bids_app.measures.overlap import dice
from bids_app.training.anatomy import split_of

HEADS = {"pycortex": "whole_head/pycortex_S1_raw.nii.gz", "uih": "whole_head/uih_umr770_t1_gre_fsp_3d_1mm.nii.gz"}
SIZES_ML = (0.1, 1.0, 5.0, 15.0, 70.0, 100.0)
FOUND_SHARE = 0.1
MIN_ML = 0.05
STAGES = ("cavity", "gliosis", "fresh")


@dataclass(frozen=True)
class Trial:
    """One injected lesion.

    Attributes
    ----------
    head, stage : str
    drawn_ml, volume_ml : float
        Volume of the mask as it was drawn, and what is left of it in tissue of the head.
    dice : float
    found : bool
        Whether a tenth of it was marked.
    """

    head: str
    stage: str
    drawn_ml: float
    volume_ml: float
    dice: float
    found: bool

    @property
    def visible(self) -> bool:
        """Whether enough of it lies in tissue, and not in sulci or ventricles, to be looked for."""
        return self.volume_ml >= MIN_ML


def test_masks(data: Path) -> list[Path]:
    """The lesion masks of the test split, by name."""
    paths = sorted((data / "lesion_masks").glob("*/*.nii.gz"))
    return [path for path in paths if split_of(path.name.removesuffix(".nii.gz").removesuffix("_lesion")) == "test"]


def placed(mask: Image, head: Image, flip: bool) -> np.ndarray:
    """A lesion mask carried from MNI to a head in the pose (native size), 0-1; flipped about the midline if asked.

    The pose is rigid: the brain is scaled to that of MNI by the ratio of their bounding boxes.
    """
    brain = images.data(head) > 0
    corners = np.argwhere(brain)
    low, high = images.world(head, np.array([corners.min(axis=0), corners.max(axis=0)]))
    scale = (high - low) / np.array([141.0, 178.0, 135.0])  # of the MNI brain, mm
    center = (low + high) / 2
    to_mni = np.diag([*(1 / scale), 1.0])
    to_mni[:3, 3] = np.array([0.0, -17.0, 8.0]) - center / scale
    mirror = np.diag([-1.0 if flip else 1.0, 1, 1, 1])
    to_mask = np.linalg.inv(mask.affine) @ mirror @ to_mni @ head.affine
    values = ndimage.affine_transform(
        np.asarray(mask.dataobj, dtype=np.float32), to_mask[:3, :3], to_mask[:3, 3], head.shape, order=1
    )
    return values * brain


def painted(head: Image, share: np.ndarray, stage: str, rng: np.random.Generator) -> tuple[Image, np.ndarray]:
    """The head with a lesion of some age, and the true mask.

    Parameters
    ----------
    head : Image
        Brain in the pose, zero outside.
    share : ndarray
        Lesion, 0-1, on its grid.
    stage : str
        One of ``STAGES``.
    """
    values = images.data(head).astype(np.float64)
    inside = values[values > 0]
    fluid, tissue = np.percentile(inside, 2), np.percentile(inside, 55)
    # a lesion is tissue that was damaged: what is fluid already stays as it is
    truth = (share > 0.5) & (values > fluid + 0.25 * (tissue - fluid))
    edge = ndimage.gaussian_filter(truth.astype(float), 0.7)
    grain = ndimage.gaussian_filter(rng.normal(size=values.shape), 3.0)
    grain /= grain.std()
    if stage == "cavity":
        depth = ndimage.distance_transform_edt(truth)
        hollow = np.clip((depth - rng.uniform(0.5, 3.0) + grain) / 1.5, 0, 1)
        rim = fluid + (tissue - fluid) * rng.uniform(0.5, 0.8)
        goal = rim + (fluid * rng.uniform(1.0, 1.4) - rim) * hollow
    else:
        low, high = (0.35, 0.6) if stage == "gliosis" else (0.65, 0.85)
        goal = values * np.clip(rng.uniform(low, high) + 0.08 * grain, 0.2, 1.0)
    changed = values + edge * np.minimum(goal - values, 0)
    noise = rng.normal(0, 0.01 * tissue, values.shape) * (edge > 0.1)
    return images.like(head, np.where(values > 0, np.maximum(changed + noise, 1e-3), 0).astype(np.float32)), truth


def marked(model: LesionModel, head: Image) -> np.ndarray:
    """What the model marks in a head, at the operating point of its card."""
    terms = model.terms
    found = find_lesions(model.predict([head]).probability, terms.threshold.value, terms.min_volume_mm3.value)
    return images.data(found.mask) > 0


def trials(
    model: LesionModel, heads: dict[str, Image], masks: Sequence[Path], per_size: int, seed: int = 7
) -> Iterator[Trial]:
    """``per_size`` lesions of every size class in every head, all stages in turn, either side."""
    rng = np.random.default_rng(seed)
    volumes = {path: float(np.asarray(nib.load(path).dataobj).astype(bool).sum()) / 1000 for path in masks}
    for low, high in pairwise(SIZES_ML):
        pool = [path for path, volume in volumes.items() if low <= volume < high]
        for name, head in heads.items():
            for number in range(per_size):
                path = pool[rng.integers(len(pool))]
                share = placed(nib.load(path), head, flip=bool(rng.integers(2)))
                stage = STAGES[number % len(STAGES)]
                scan, truth = painted(head, share, stage, rng)
                mask = marked(model, scan)
                found = np.sum(mask & truth) >= FOUND_SHARE * max(1, truth.sum())
                yield Trial(name, stage, volumes[path], truth.sum() / 1000, dice(truth, mask), bool(found))


def table(found: Sequence[Trial]) -> Iterator[str]:
    """Dice and share found by the volume that was drawn, and by stage; intervals by bootstrap over lesions."""
    yield "| lesion as drawn | n | of these not in tissue | Dice | found |"
    yield "|---|---|---|---|---|"
    for low, high in pairwise(SIZES_ML):
        chosen = [trial for trial in found if low <= trial.drawn_ml < high]
        yield _row(f"{low:g}-{high:g} mL", chosen)
    for stage in STAGES:
        yield _row(stage, [trial for trial in found if trial.stage == stage])


def _row(name: str, chosen: Sequence[Trial]) -> str:
    visible = [trial for trial in chosen if trial.visible]
    counts = f"| {name} | {len(chosen)} | {len(chosen) - len(visible)} "
    if not visible:
        return counts + "| | |"
    cells = (interval(np.array([getattr(trial, value) for trial in visible], float)) for value in ("dice", "found"))
    return f"{counts}| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.injected", description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="model folder of a T1w model")
    parser.add_argument("--data", type=Path, required=True, help="folder with whole_head/ and lesion_masks/")
    parser.add_argument("--per-size", type=int, default=12, help="lesions a head and size (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    model = load_model(options.model)
    heads = {name: pose_head(options.data / path) for name, path in HEADS.items()}
    for name, head in heads.items():
        print(f"{name} without lesion: {marked(model, head).sum() / 1000:.2f} mL marked")
    print("\n".join(table(list(trials(model, heads, test_masks(options.data), options.per_size)))))


if __name__ == "__main__":
    main()
