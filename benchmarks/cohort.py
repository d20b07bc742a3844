"""Memory and time of the group level, by the number of visits.

    python -m benchmarks.cohort WORK [500 2000 8000 20000] [--early]

makes output folders of so many visits below WORK, of one participant each, and runs the group level on each of them in
a process of its own. Records and tables are as long as those of real visits (36 findings, and what the record names);
masks are small, so that their reading, whose time depends on the disk, is left out. ``--early`` writes what early
versions wrote: the list of all participants beside each of them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

from bids_app import images
from bids_app.derivatives import names
from bids_app.derivatives.columns import dictionary
from bids_app.derivatives.record import Record, Stamp, write_record
from bids_app.derivatives.sessions import RawDataset, write_raw_dataset, write_raw_participants
from bids_app.derivatives.write import write_image, write_json, write_table
from bids_app.group.run import run_group
from bids_app.settings import DEFAULT_SPACE, Settings

SIZES = (500, 2000, 8000)
LESIONS, FINDINGS, OTHER_FILES = 3, 36, 45


def fake(out: Path, visits: int, early: bool = False) -> Path:
    """An output folder of so many finished visits.

    Parameters
    ----------
    early : bool
        Whether the list of all participants is written beside each of them.
    """
    labels = [f"{number:06d}" for number in range(1, visits + 1)]
    columns = ("participant_id", "age", "sex", "site")
    rows = {label: (f"sub-{label}", "67", "F", "A") for label in labels}
    raw = RawDataset("Cohort", {label: [None] for label in labels}, columns, rows)
    shared = _shared_files(out / ".shared")
    state = write_raw_dataset(out, raw)
    for label in labels:
        _fake_visit(out, label, shared)
        if early:
            _early_note(out, label, raw)
        else:
            write_raw_participants(out, label, raw, state)
    shutil.rmtree(out / ".shared")
    return out


def _shared_files(folder: Path) -> dict[str, Path]:
    """What is the same for all visits, to be linked: two tables, a mask and its sidecar."""
    mask = images.on_affine(np.ones((12, 14, 10), np.uint8), np.eye(4))
    found = {}
    for word, count in (("lesion", LESIONS), ("finding", FINDINGS)):
        values = dict.fromkeys(dictionary(word), "-12.34")
        table = pd.DataFrame([values | {"index": str(index)} for index in range(1, count + 1)])
        found[word] = write_table(folder / f"{word}.tsv", table)
    found["mask"] = write_image(folder / "mask.nii.gz", mask)
    found["sidecar"] = write_json(folder / "mask.json", {"Registration": {"Status": "passed"}})
    return found


def _fake_visit(out: Path, label: str, shared: dict[str, Path]) -> None:
    scan = names.ScanName.parse(f"sub-{label}_T1w.nii.gz")
    mask = names.lesion_mask(scan, DEFAULT_SPACE)
    files = {
        names.lesion_table(scan): shared["lesion"],
        names.findings_table(scan): shared["finding"],
        mask: shared["mask"],
        names.sidecar(mask): shared["sidecar"],
    }
    (out / mask).parent.mkdir(parents=True)
    for path, source in files.items():
        os.link(source, out / path)
    others = [f"sub-{label}/anat/sub-{label}_desc-other{number}_mask.nii.gz" for number in range(OTHER_FILES)]
    paths = [*map(str, files), *others]
    summary = dict.fromkeys(dictionary("session"), 12.34) | {"session_id": "n/a", "status": "done"}
    record = Record(
        label, None, "done", "1.0", "a1b2c3d4", "0" * 16, {"t1w": "0" * 64}, summary=summary,
        outputs=dict.fromkeys(paths, "0" * 64), output_stamps=dict.fromkeys(paths, Stamp(10**6, time.time_ns())),
    )  # fmt: skip
    write_record(out, record)


def _early_note(out: Path, label: str, raw: RawDataset) -> None:
    content = {
        "dataset": raw.name, "visits": raw.visits, "columns": raw.columns, "row": raw.rows[label],
        "listed": list(raw.rows), "dictionary": {},
    }  # fmt: skip
    path = out / names.raw_participants(label)
    path.write_text(json.dumps(content), encoding="utf-8")


def measured(out: Path) -> tuple[float, float]:
    """Peak memory in MB and seconds of the group level on a folder, in this process."""
    started = time.monotonic()
    run_group(Settings(out_dir=out), lambda line: print(line, file=sys.stderr))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, time.monotonic() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("visits", type=int, nargs="*", default=SIZES)
    parser.add_argument("--early", action="store_true")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measured(given.work)))
        return 0
    print("| visits | peak memory, MB | seconds |\n|---|---|---|")
    for visits in given.visits:
        out = fake(given.work / f"cohort-{visits}", visits, given.early)
        command = [sys.executable, "-m", "benchmarks.cohort", str(out), "--one"]
        memory, seconds = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        print(f"| {visits:,} | {memory:.0f} | {seconds:.1f} |", flush=True)
        shutil.rmtree(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
