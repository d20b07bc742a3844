"""Prints how well the lesions of the demo dataset were found.

``python -m demo.score DIR OUT`` compares the masks in OUT with the true ones in ``DIR/sourcedata/truth``. It works for
any dataset that keeps its true masks there, as ``sub-*_label-L_desc-truth_mask.nii.gz`` on any grid.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bids_app import images
from bids_app.derivatives import names
from bids_app.measures.overlap import dice
from bids_app.measures.volumes import volume_ml
from demo.dataset import TRUTH

COLUMNS = ("visit", "true mL", "found mL", "Dice")


@dataclass(frozen=True)
class Score:
    """One visit; `found_ml` and `dice` are None where the output folder holds no mask of it."""

    visit: str
    true_ml: float
    found_ml: float | None
    dice: float | None


def true_masks(dataset: Path) -> list[Path]:
    """The true masks of a dataset, sorted by visit."""
    return sorted((dataset / TRUTH).rglob("*_desc-truth_mask.nii.gz"))


def score(truth: Path, out_dir: Path) -> Score:
    """Compare one true mask with what was found, on the grid of the true one.

    The App stores its masks RAS+, whatever the order of the scan: the comparison goes through world coordinates.
    """
    name = names.ScanName.parse(truth.name)
    visit, true = names.visit_label(name.subject, name.session), images.load(truth)
    path = out_dir / names.lesion_mask(name)
    if not path.is_file():  # a visit without T1w
        path = out_dir / names.lesion_mask(name, "FLAIR")
    if not path.is_file():
        return Score(visit, volume_ml(true), None, None)
    found = images.load(path)
    overlap = dice(np.asarray(true.dataobj), np.asarray(images.resample(found, true, order=0).dataobj))
    return Score(visit, volume_ml(true), volume_ml(found), overlap)


def table(scores: list[Score]) -> Iterator[str]:
    """Lines of a plain table, the mean Dice last; a visit without mask counts as Dice 0."""
    yield "{:<14}{:>10}{:>10}{:>8}".format(*COLUMNS)
    for item in scores:
        found = "no mask" if item.found_ml is None else f"{item.found_ml:.1f}"
        overlap = "-" if item.dice is None else f"{item.dice:.3f}"
        yield f"{item.visit:<14}{item.true_ml:>10.1f}{found:>10}{overlap:>8}"
    yield f"{'mean':<34}{np.mean([item.dice or 0 for item in scores]):>8.3f}"


def main(arguments: list[str]) -> int:
    """Print the table; 0 if every visit has a mask, 1 if one has none, 2 for a wrong call."""
    if len(arguments) != 2:
        print("usage: python -m demo.score DIR OUT", file=sys.stderr)
        return 2
    dataset, out_dir = (Path(argument) for argument in arguments)
    masks = true_masks(dataset)
    if not masks:
        print(f"{dataset / TRUTH} holds no true mask: make the dataset with python -m demo.dataset.", file=sys.stderr)
        return 2
    scores = [score(mask, out_dir) for mask in masks]
    print("\n".join(table(scores)))
    return int(any(item.dice is None for item in scores))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
