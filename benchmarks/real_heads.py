"""Healthy heads from four scanners, one clinical T1w+FLAIR pair and one healthy FLAIR alone through the whole App.

    python -m benchmarks.real_heads --data DIR --out DIR

makes a BIDS dataset of the scans in DIR, runs the participant and group levels on it, prints the table of
docs/benchmarks.md, and writes pictures of brain masks, registrations and lesion masks to OUT/pictures.
``pycortex`` and ``uih`` were never used to fit anything.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import pandas as pd

from benchmarks.pictures import picture_visit

#: Scans below the data folder, by participant and suffix.
SCANS = {
    ("chris", "T1w"): "whole_head/chris_t1.nii.gz",
    ("studyforrest", "T1w"): "whole_head/studyforrest_sub02_T1w_1mm.nii.gz",
    ("pycortex", "T1w"): "whole_head/pycortex_S1_raw.nii.gz",
    ("uih", "T1w"): "whole_head/uih_umr770_t1_gre_fsp_3d_1mm.nii.gz",
    ("tcga", "T1w"): "paired_clinical/TCGA-FG-6692_T1.nii.gz",
    ("tcga", "FLAIR"): "paired_clinical/TCGA-FG-6692_FLAIR.nii.gz",
    ("synthsr", "FLAIR"): "whole_head/synthsr_FLAIR.nii.gz",
}


def make_dataset(data: Path, bids: Path) -> None:
    """Copy the scans into a BIDS dataset, as they are."""
    bids.mkdir(parents=True, exist_ok=True)
    description = {"Name": "Real heads", "BIDSVersion": "1.11.1", "License": "mixed", "Authors": ["Many", "Others"]}
    (bids / "dataset_description.json").write_text(json.dumps(description))
    (bids / "README").write_text("Scans of four healthy adults and one clinical patient, from open datasets.\n")
    for (label, suffix), source in SCANS.items():
        target = bids / f"sub-{label}" / "anat" / f"sub-{label}_{suffix}.nii.gz"
        target.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.load(data / source), target)


def run(bids: Path, out: Path, work: Path, options: list[str]) -> float:
    """Both levels of the App; returns the seconds of the participant level."""
    command = [sys.executable, "run.py", str(bids), str(out)]
    started = time.monotonic()
    subprocess.run([*command, "participant", "--work-dir", str(work), *options], check=False)
    seconds = time.monotonic() - started
    subprocess.run([*command, "group"], check=False)
    return seconds


def table(out: Path) -> pd.DataFrame:
    """One row a head: brain volume, false lesion volume, checks of the registrations."""
    sessions = pd.read_csv(out / "group_sessions.tsv", sep="\t", na_values="n/a")
    columns = ["participant_id", "status", "brain_volume_ml", "lesion_count", "lesion_volume_ml"]
    return sessions[[*columns, "flair_registration", "pose_registration", "mni_registration", "problems"]]


def as_markdown(rows: pd.DataFrame) -> str:
    """The table as docs/benchmarks.md has it."""
    lines = [rows.columns, ["---"] * len(rows.columns), *rows.astype(str).values]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with whole_head/ and paired_clinical/")
    parser.add_argument("--out", type=Path, required=True, help="folder for the dataset, outputs and pictures")
    arguments, options = parser.parse_known_args()
    bids, out = arguments.out / "bids", arguments.out / "derivatives"
    make_dataset(arguments.data, bids)
    seconds = run(bids, out, arguments.out / "work", options)
    print(as_markdown(table(out)))
    print(f"\nparticipant level: {seconds:.0f} s for {len({label for label, _ in SCANS})} visits")
    for label in sorted({label for label, _ in SCANS}):
        picture_visit(out, label, arguments.out / "pictures" / f"sub-{label}.png")


if __name__ == "__main__":
    main()
