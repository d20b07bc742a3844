"""Workers as processes: what is left when one dies. The worker's functions are replaced by quick ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bids_app.derivatives.names import ScanName
from bids_app.derivatives.record import read_record
from bids_app.derivatives.results import Provenance
from bids_app.errors import ConfigError, ExitCode
from bids_app.settings import Settings
from bids_app.study.models import Scan, Visit
from bids_app.workflow import pool, worker
from bids_app.workflow.job import Job
from bids_app.workflow.worker import Outcome, Tools


def start(settings: Settings, model_folder: Path) -> Tools:
    if not model_folder.name.startswith("model"):
        raise ConfigError(f"{model_folder} is no model.")
    return Tools("cpu", "CPU")


def process(job: Job) -> Outcome:
    if job.visit.subject == "bad":
        os._exit(9)  # as a worker that is killed for memory
    return Outcome(job.visit.label, 0.0, {"pid": os.getpid(), "threads": os.environ["OMP_NUM_THREADS"]})


@pytest.fixture
def settings(tmp_path: Path, monkeypatch) -> Settings:
    monkeypatch.setattr(worker, "start", start)
    monkeypatch.setattr(worker, "process", process)
    return Settings(out_dir=tmp_path / "out", work_dir=tmp_path / "work", nprocs=4, omp_nthreads=2)


def jobs(settings: Settings, *subjects: str) -> list[Job]:
    return [
        Job(
            Visit(label, None, Scan(Path(f"sub-{label}_T1w.nii.gz"), ScanName((("sub", label),)), "T1w"), None),
            settings, Provenance("conf", "1", Path("bids")), {}, Path("model"), "run",
        )
        for label in subjects
    ]  # fmt: skip


def test_one_worker_processes_all_visits(settings: Settings):
    with pool.WorkerPool(settings, 1, Path("model")) as workers:
        outcomes = list(workers.process(jobs(settings, "1", "2", "3")))
    assert {outcome.label for outcome in outcomes} == {"sub-1", "sub-2", "sub-3"}
    assert len({outcome.summary["pid"] for outcome in outcomes}) == 1
    assert {outcome.summary["threads"] for outcome in outcomes} == {"2"}


def test_a_dying_worker_takes_its_own_visit_alone(settings: Settings):
    with pool.WorkerPool(settings, 1, Path("model")) as workers:
        outcomes = {outcome.label: outcome for outcome in workers.process(jobs(settings, "1", "bad", "2"))}
    assert outcomes["sub-1"].done
    assert outcomes["sub-2"].done
    assert outcomes["sub-bad"].code is ExitCode.VISIT_FAILED
    assert "memory" in outcomes["sub-bad"].error
    assert read_record(settings.out_dir, "bad", None).status == "failed"


def test_a_model_that_cannot_be_run_is_found_before_any_visit(settings: Settings):
    with pytest.raises(ConfigError, match="other is no model"), pool.WorkerPool(settings, 1, Path("other")):
        pass


@pytest.mark.parametrize(("memory", "size"), [(None, 8), (16.0, 4), (1.0, 1)])
def test_no_more_workers_than_memory_allows(memory: float | None, size: int):
    assert pool._affordable(8, memory) == size
