"""The atlas that names where a finding lies: what most heads of the training split have at each place of the box.

``python -m bids_app.training.atlas --data DATA --cache CACHE`` writes ``bids_app/data/atlas/``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from bids_app import images
from bids_app.anomaly.atlas import LABELS, STRUCTURES
from bids_app.anomaly.slices import CENTRE_MM, SHAPE, box
from bids_app.training.anatomy import FAR_CSF, Head
from bids_app.training.store import prepare_split
from bids_app.training.synthesis.fields import apply_matrix, patch_points

OTHER = 0


def majority(heads: Sequence[Head]) -> np.ndarray:
    """The label that most heads have, ``(z, y, x)`` uint8 in the box; 0 where that is none of `STRUCTURES`."""
    known = np.array([OTHER, *STRUCTURES], np.uint8)
    votes = np.zeros((len(known), *SHAPE), np.uint8)
    for head in heads:
        votes += in_box(head)[None] == known[:, None, None, None]
    return known[votes.argmax(axis=0)]


def in_box(head: Head) -> np.ndarray:
    """Labels of an affinely aligned head in the box, nearest voxel; what is no structure of the brain is 0."""
    matrix = np.eye(4)
    matrix[:3, 3] = CENTRE_MM
    to_voxel = head.pose_to_voxel @ np.linalg.inv(head.pose_to_mni) @ matrix
    voxels = apply_matrix(to_voxel, patch_points(SHAPE, spacing_mm=1.0))[0].round().long()
    limits = torch.tensor(head.labels.shape[::-1])
    inside = ((voxels >= 0) & (voxels < limits)).all(dim=-1)
    x, y, z = voxels.clamp_min(0).minimum(limits - 1).unbind(-1)
    labels = torch.where(inside, torch.from_numpy(head.labels)[z, y, x], 0).numpy()
    return np.where(np.isin(labels, list(STRUCTURES)) & (labels != FAR_CSF), labels, OTHER).astype(np.uint8)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bids_app.training.atlas", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with label_maps/ and lesion_masks/")
    parser.add_argument("--cache", type=Path, required=True, help="folder of the prepared heads")
    options = parser.parse_args(arguments)
    heads = [head for head in prepare_split(options.data, options.cache, "train")[0] if head.image is None]
    labels = majority(heads).transpose(2, 1, 0)
    LABELS.parent.mkdir(parents=True, exist_ok=True)
    images.save(images.on_affine(np.ascontiguousarray(labels), box().affine), LABELS)
    print(f"{len(heads)} heads: {LABELS}")


if __name__ == "__main__":
    main()
