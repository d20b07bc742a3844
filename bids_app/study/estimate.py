"""How long a run takes and how much it writes, foreseen from what was measured (docs/benchmarks.md, "Overhead").

These are the only numbers that a plan and the time left of a run rest on: change them with the measurement.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from bids_app.settings import Settings

STEP_SECONDS = {
    "prepare": 15.2,
    "pose": 13.5,
    "segment": 5.9,
    "align": 9.6,
    "normalize": 24.2,
    "explain": 22.0,
    "deliver": 0.5,
}
"""Seconds of each step of a visit with `MEASURED_THREADS` threads, without GPU: means of the demo's four visits."""

MEASURED_THREADS = 2
MOST_THREADS = 4  # more were not measured, and registration gains little from them
START_SECONDS = 14.0  # once a run: imports, checksums, networks
OUTPUT_MB = 120  # a visit in the output folder
WORK_MB = 150  # a visit in the work folder, while it is processed


@dataclass(frozen=True)
class Estimate:
    """What a run is expected to take.

    Attributes
    ----------
    seconds : float
        From its start to its end.
    output_mb, work_mb : float
        Disk space of the output folder, and of the work folder at most.
    """

    seconds: float
    output_mb: float
    work_mb: float


def step_seconds(settings: Settings) -> dict[str, float]:
    """Seconds that each step of a visit takes with these settings, in their order; 0 for what is switched off."""
    skipped = set()
    if not settings.anomaly:
        skipped.add("explain")
    if not settings.standard_spaces:
        skipped.add("normalize")
        skipped |= {"align"} if not settings.anomaly else set()
    factor = MEASURED_THREADS / min(settings.omp_nthreads, MOST_THREADS)
    return {step: 0.0 if step in skipped else seconds * factor for step, seconds in STEP_SECONDS.items()}


def estimate(visits: int, settings: Settings) -> Estimate:
    """What a run on this machine takes for so many visits that are to do."""
    if not visits:
        return Estimate(0.0, 0.0, 0.0)
    side_by_side = min(visits, settings.workers)
    seconds = START_SECONDS + ceil(visits / side_by_side) * sum(step_seconds(settings).values())
    return Estimate(seconds, float(visits * OUTPUT_MB), float(side_by_side * WORK_MB))
