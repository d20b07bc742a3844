"""Workers as processes: what is left when one dies. The worker's functions are replaced by quick ones."""

from __future__ import annotations

import errno
import multiprocessing
import multiprocessing.synchronize
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bids_app.derivatives.names import ScanName
from bids_app.derivatives.record import read_record
from bids_app.derivatives.results import Provenance
from bids_app.errors import ConfigError, ExitCode, UnavailableError
from bids_app.settings import Settings
from bids_app.study.models import Scan, Visit
from bids_app.workflow import pool, worker
from bids_app.workflow.job import Job
from bids_app.workflow.worker import News, Outcome, Tools


class Unsendable(Exception):
    """An error that cannot be made again from what is sent of it, as those of some libraries."""

    def __init__(self, text: str):
        super().__init__(text, lambda: None)


def start(settings: Settings, model_folder: Path, tell) -> Tools:
    if model_folder.name == "killer":
        os._exit(9)
    if not model_folder.name.startswith("model"):
        raise ConfigError(f"{model_folder} is no model.")
    return Tools("cpu", "CPU")


def process(job: Job, tell) -> Outcome:
    tell(News(job.visit.label, "prepare"))
    if job.visit.subject.startswith("bad"):
        os._exit(9)  # as a worker that is killed for memory
    if job.visit.subject.startswith("bug"):
        raise Unsendable("a bug")
    if job.visit.subject.startswith("brief"):
        time.sleep(0.5)
        (job.settings.work_dir.parent / job.visit.label).touch(exist_ok=False)  # fails if it is done twice
    if job.visit.subject.startswith("slow"):
        job.settings.work_dir.mkdir(exist_ok=True)
        (job.settings.work_dir / "begun").touch()
        time.sleep(60)
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
        outcomes = list(workers.process(jobs(settings, "1", "2", "3"), str))
    assert {outcome.label for outcome in outcomes} == {"sub-1", "sub-2", "sub-3"}
    assert len({outcome.summary["pid"] for outcome in outcomes}) == 1
    assert {outcome.summary["threads"] for outcome in outcomes} == {"2"}


def test_a_dying_worker_takes_its_own_visit_alone(settings: Settings):
    with pool.WorkerPool(settings, 1, Path("model")) as workers:
        outcomes = {outcome.label: outcome for outcome in workers.process(jobs(settings, "1", "bad", "2"), str)}
    assert outcomes["sub-1"].done
    assert outcomes["sub-2"].done
    assert outcomes["sub-bad"].code is ExitCode.VISIT_FAILED
    assert "memory" in outcomes["sub-bad"].error
    assert read_record(settings.out_dir, "bad", None).status == "failed"


def test_only_visits_in_work_are_isolated_when_a_worker_dies(settings: Settings):
    with pool.WorkerPool(settings, 1, Path("model")) as workers:
        todo = jobs(settings, "1", "bad", "2", "3", "4")
        outcomes = {outcome.label: outcome for outcome in workers.process(todo, str)}
    assert len(outcomes) == 5
    after = {outcomes[label].summary["pid"] for label in ("sub-2", "sub-3", "sub-4")}
    assert len(after) == 1, "a worker of its own for every visit that was not even begun"


def test_several_dying_workers_end_no_run(settings: Settings):
    with pool.WorkerPool(settings, 2, Path("model")) as workers:
        outcomes = list(workers.process(jobs(settings, "bad1", "1", "bad2", "2", "bad3"), str))
    assert sorted(outcome.label for outcome in outcomes if outcome.done) == ["sub-1", "sub-2"]
    assert sorted(outcome.label for outcome in outcomes if not outcome.done) == ["sub-bad1", "sub-bad2", "sub-bad3"]


def test_an_idle_worker_that_dies_costs_nothing(settings: Settings):
    with pool.WorkerPool(settings, 1, Path("model")) as workers:
        (idle,) = multiprocessing.active_children()
        idle.kill()
        idle.join()
        time.sleep(0.5)
        assert all(outcome.done for outcome in workers.process(jobs(settings, "1", "2"), str))


def test_a_worker_that_dies_while_it_starts_is_told_in_a_sentence(settings: Settings):
    with pytest.raises(UnavailableError, match="killed while it started"), pool.WorkerPool(settings, 1, Path("killer")):
        pass


def test_workers_need_no_semaphores(settings: Settings, monkeypatch):
    """As where /dev/shm is full, read-only or absent."""

    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(multiprocessing.synchronize.SemLock, "__init__", refuse)
    with pool.WorkerPool(settings, 2, Path("model")) as workers:
        assert all(outcome.done for outcome in workers.process(jobs(settings, "1", "2", "bad", "3"), str)) is False
    assert pool.in_worker(worker.start, settings, Path("model")) == Tools("cpu", "CPU")


def test_what_workers_tell_is_heard_before_the_outcome(settings: Settings):
    heard = []
    with pool.WorkerPool(settings, 1, Path("model")) as workers:
        for outcome in workers.process(jobs(settings, "1", "2"), heard.append):
            heard.append(outcome.label)
    assert heard == [News("sub-1", "prepare"), "sub-1", News("sub-2", "prepare"), "sub-2"]


def test_a_visit_beside_one_whose_worker_dies_is_not_done_twice(settings: Settings):
    with pool.WorkerPool(settings, 2, Path("model")) as workers:
        outcomes = {outcome.label: outcome for outcome in workers.process(jobs(settings, "brief1", "bad"), str)}
    assert (outcomes["sub-brief1"].done, outcomes["sub-bad"].done) == (True, False)


def test_visits_in_work_are_let_finish_where_the_first_failure_is_the_end(settings: Settings):
    with pool.WorkerPool(settings, 2, Path("model")) as workers:
        outcomes = workers.process(jobs(settings, "1", "brief1", "brief2", "brief3"), str)
        assert next(outcomes).label == "sub-1"
        outcomes.close()
    assert (settings.work_dir.parent / "sub-brief1").exists()
    assert not (settings.work_dir.parent / "sub-brief3").exists()
    assert not multiprocessing.active_children()


def test_an_error_that_cannot_be_sent_comes_as_text(settings: Settings):
    with (
        pytest.raises(RuntimeError, match=r"Unsendable: .*a bug"),
        pool.WorkerPool(settings, 1, Path("model")) as workers,
    ):
        list(workers.process(jobs(settings, "bug"), str))
    assert not multiprocessing.active_children()


def test_a_worker_that_cannot_be_started_is_told_in_a_sentence(settings: Settings, monkeypatch):
    def refuse(*_):
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(multiprocessing.context.SpawnProcess, "start", refuse)
    with (
        pytest.raises(UnavailableError, match="cannot be started: Resource"),
        pool.WorkerPool(settings, 1, Path("model")),
    ):
        pass


RUN = """
import sys
from pathlib import Path
from bids_app.process import hear_signals
from tests.workflow import test_pool as here
here.worker.start, here.worker.process = here.start, here.process
settings = here.Settings(out_dir=Path(sys.argv[1], "out"), work_dir=Path(sys.argv[1]), nprocs=2)
if __name__ == "__main__":
    hear_signals()
    try:
        with here.pool.WorkerPool(settings, 2, Path("model")) as workers:
            for outcome in workers.process(here.jobs(settings, "slow", "1"), str):
                Path(sys.argv[1], "idle").touch()  # one worker has nothing to do any more
    except KeyboardInterrupt as error:
        sys.exit(128 + getattr(error, "signal", 2))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_busy_and_an_idle_worker_without_a_traceback(tmp_path: Path, number: signal.Signals):
    script = tmp_path / "run_pool.py"
    script.write_text(RUN)
    root = Path(__file__).parents[2]
    run = subprocess.Popen(
        [sys.executable, script, tmp_path], cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    until = time.monotonic() + 60
    while not ((tmp_path / "begun").exists() and (tmp_path / "idle").exists()):
        assert time.monotonic() < until and run.poll() is None, run.communicate()[0]
        time.sleep(0.05)
    # a terminal, or a batch system, tells all at once; here the workers have time to say something of it
    children = [int(child) for child in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()]
    for child in children:
        os.kill(child, number)
    time.sleep(0.3)
    os.kill(run.pid, number)
    said, _ = run.communicate(timeout=20)
    assert (run.returncode, said) == (128 + number, "")
    assert not (tmp_path / "out").exists(), "a worker that was ended was taken for one that died"
    until = time.monotonic() + 5
    while any(map(is_running, children)):
        assert time.monotonic() < until, "a process outlived the run"
        time.sleep(0.05)


def is_running(process: int) -> bool:
    """Whether a process is there, and not only waits for somebody to notice its end."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_model_that_cannot_be_run_is_found_before_any_visit(settings: Settings):
    with pytest.raises(ConfigError, match="other is no model"), pool.WorkerPool(settings, 1, Path("other")):
        pass


@pytest.mark.parametrize(("memory", "size"), [(None, 8), (16.0, 4), (1.0, 1)])
def test_no_more_workers_than_memory_allows(memory: float | None, size: int):
    assert pool._affordable(8, memory) == size
