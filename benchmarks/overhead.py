"""How much of a run is not computation: starting, indexing, the workflow engine, handing over.

    python -m benchmarks.overhead BIDS OUT WORK

runs the participant level on a dataset with one worker and compares the wall time, from the command to its end, with
the seconds that the steps of the visits took themselves. Validation of the raw dataset is switched off, as its time
depends on the dataset alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from bids_app.settings import available_cpus


def step_seconds(out: Path) -> dict[str, float]:
    """Seconds of every step, over all visits of a fresh output folder."""
    total: dict[str, float] = {}
    for path in out.glob("sub-*/log/*/*_seconds.json"):
        for step, seconds in json.loads(path.read_text()).items():
            total[step] = total.get(step, 0.0) + seconds
    return total


def main() -> int:
    bids, out, work = (Path(argument) for argument in sys.argv[1:4])
    cpus = str(available_cpus())
    options = ["--work-dir", str(work), "--skip-bids-validation", "--nprocs", cpus, "--omp-nthreads", cpus]
    started = time.monotonic()
    code = subprocess.run([sys.executable, "run.py", str(bids), str(out), "participant", *options]).returncode
    wall = time.monotonic() - started
    steps = step_seconds(out)
    computed = sum(steps.values())
    print("\n| what | seconds | share |\n|---|---|---|")
    for step, seconds in steps.items():
        print(f"| {step} | {seconds:.1f} | {seconds / wall:.1%} |")
    print(f"| everything else | {wall - computed:.1f} | {(wall - computed) / wall:.1%} |")
    print(f"| whole run | {wall:.1f} | |")
    return code


if __name__ == "__main__":
    sys.exit(main())
