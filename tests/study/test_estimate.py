"""What a run is expected to take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bids_app.settings import Settings
from bids_app.study.estimate import MOST_THREADS, OUTPUT_MB, START_SECONDS, STEP_SECONDS, WORK_MB, estimate

SETTINGS = Settings(out_dir=Path("out"), nprocs=2, omp_nthreads=2)
VISIT = sum(STEP_SECONDS.values())


def test_the_demo_is_foreseen_as_it_was_measured():
    """377.5 s for four visits on two cores: docs/benchmarks.md."""
    assert estimate(4, SETTINGS).seconds == pytest.approx(377.5, abs=5)


def test_nothing_takes_nothing():
    assert estimate(0, SETTINGS) == type(estimate(1, SETTINGS))(0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("nprocs", "threads", "visits", "rounds", "factor"),
    [(2, 1, 2, 1, 2), (8, 2, 4, 1, 1), (8, 2, 5, 2, 1), (4, 4, 1, 1, 0.5), (32, 32, 1, 1, 2 / MOST_THREADS)],
)
def test_time_follows_the_cpus(nprocs, threads, visits, rounds, factor):
    found = estimate(visits, replace(SETTINGS, nprocs=nprocs, omp_nthreads=threads))
    assert found.seconds == pytest.approx(START_SECONDS + rounds * VISIT * factor)


def test_space_follows_the_visits_and_how_many_there_are_at_a_time():
    found = estimate(10, replace(SETTINGS, nprocs=8))
    assert (found.output_mb, found.work_mb) == (10 * OUTPUT_MB, 4 * WORK_MB)
    assert estimate(1, replace(SETTINGS, nprocs=8)).work_mb == WORK_MB


def test_what_is_switched_off_takes_no_time():
    off = replace(SETTINGS, anomaly=False, normalization=False)
    steps = ("prepare", "pose", "segment", "deliver")
    assert estimate(1, off).seconds == pytest.approx(START_SECONDS + sum(STEP_SECONDS[step] for step in steps))
