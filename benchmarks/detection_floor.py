"""The smallest lesions that are found, by an outside yardstick: the package bidsgate (pip install bidsgate).

    python -m benchmarks.detection_floor --data DIR --out DIR [options of the App]

copies the two heads that nothing was ever fitted to into a BIDS dataset, lets bidsgate put twelve white-matter
ellipsoids of 30 to 1500 mm3 into each, runs the whole App on them, brings its masks to bidsgate's grid and lets it
score them.
LST-AI v2, with T1w and FLAIR of other heads, found 64 of 72 with a mean Dice of 0.82 (bidsgate's README); these heads
have no FLAIR.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np

from benchmarks.injected import HEADS
from bids_app import images
from bids_app.derivatives import names
from bids_app.derivatives.names import ScanName

DESCRIPTION = {"Name": "Healthy heads", "BIDSVersion": "1.11.1", "License": "mixed", "Authors": ["Many", "Others"]}


def make_dataset(data: Path, bids: Path) -> None:
    """The heads as a BIDS dataset, stored as they are."""
    for label, source in HEADS.items():
        folder = bids / f"sub-{label}" / "anat"
        folder.mkdir(parents=True, exist_ok=True)
        nib.save(nib.load(data / source), folder / f"sub-{label}_T1w.nii.gz")
    describe(bids)


def describe(bids: Path) -> None:
    """Say that a folder is a raw dataset: bidsgate calls its scans derivatives."""
    (bids / "dataset_description.json").write_text(json.dumps(DESCRIPTION))
    (bids / "README").write_text("Scans of healthy adults from open datasets.\n")


def bidsgate(*arguments: str) -> None:
    """Run bidsgate, which is no dependency of the App."""
    subprocess.run([sys.executable, "-m", "bidsgate.cli", *arguments], check=True)


def on_truth_grid(out: Path, injected: Path, label: str) -> None:
    """The App's mask, which is stored RAS+, on the grid of the scan as ``OUT/sub-LABEL_seg.nii.gz``."""
    truth = images.load(injected / f"sub-{label}" / "anat" / f"sub-{label}_desc-lesionTruth_mask.nii.gz")
    found = images.load(out / names.lesion_mask(ScanName.parse(f"sub-{label}_T1w.nii.gz")))
    mask = images.resample(found, truth, order=0)
    values = np.asarray(mask.dataobj).astype(np.uint8)
    nib.save(nib.Nifti1Image(values, truth.affine), out / f"sub-{label}_seg.nii.gz")


def main() -> None:
    """Inject, run, score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with whole_head/")
    parser.add_argument("--out", type=Path, required=True, help="folder for datasets and outputs")
    arguments, options = parser.parse_known_args()
    bids, injected, out = (arguments.out / name for name in ("bids", "injected", "derivatives"))
    make_dataset(arguments.data, bids)
    bidsgate("inject-lesions", str(bids), "--out", str(injected))
    describe(injected)
    work = ("--work-dir", str(arguments.out / "work"), "--no-normalization", "--skip-bids-validation")
    subprocess.run([sys.executable, "run.py", str(injected), str(out), "participant", *work, *options], check=True)
    for label in HEADS:
        on_truth_grid(out, injected, label)
    pattern = str(out / "{base}_seg.nii.gz")
    places = ("--truth", str(injected), "--pred", pattern, "--out", str(out))
    bidsgate("score-lesions", *places, "--pipeline", "afterstroke")


if __name__ == "__main__":
    main()
