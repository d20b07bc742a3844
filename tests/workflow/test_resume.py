"""Doing a visit again, in a worker and with a plugin: nipype, record and outputs are real, the steps are stubs."""

from __future__ import annotations

import errno
import multiprocessing
import multiprocessing.synchronize
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from bids_app.derivatives import names
from bids_app.derivatives.record import Record, read_record, write_record
from bids_app.derivatives.results import Anomalies, Prepared
from bids_app.environment import thread_variables
from bids_app.errors import ExitCode, UnavailableError
from bids_app.settings import Settings
from bids_app.study.estimate import STEP_SECONDS
from bids_app.study.models import Visit
from bids_app.workflow import cluster, graph, interfaces, stages, worker
from bids_app.workflow.cluster import process_with_plugin
from bids_app.workflow.job import Job, hold_visit, leave_error
from bids_app.workflow.worker import News, Outcome, Tell
from tests.derivatives.mock import make_explained, make_results, make_visit, provenance

STEPS = ["prepare 01", "pose", "segment", "normalize", "explain"]


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """Steps that were really done; they make small images in no time."""
    done: list[str] = []

    def prepare(job: Job, folder: Path):
        done.append(f"prepare {job.visit.subject}")
        return make_results(folder, job.visit)[0]

    def later(step: str, index: int):
        def do(*arguments):
            done.append(step)
            visit = next(item for item in arguments if hasattr(item, "visit")).visit
            return make_results(arguments[-1], visit)[index]

        return do

    monkeypatch.setattr(stages, "prepare", prepare)
    monkeypatch.setattr(stages, "pose", later("pose", 1))
    monkeypatch.setattr(stages, "segment", later("segment", 2))
    monkeypatch.setattr(stages, "align", lambda *_: None)
    monkeypatch.setattr(stages, "normalize", later("normalize", 3))

    def explain(job: Job, prepared: Prepared, segmented, aligned, normalized, folder: Path) -> Anomalies:
        done.append("explain")
        return Anomalies(make_explained(folder, prepared, normalized))

    monkeypatch.setattr(interfaces, "explain", explain)
    monkeypatch.setattr(stages, "locate", lambda segmented, *_: segmented)
    monkeypatch.setattr(stages, "locate_findings", lambda anomalies, normalized: anomalies)
    monkeypatch.setattr("bids_app.workflow.tools.limit_threads", lambda threads: None)
    return done


@pytest.fixture(params=["worker", "plugin"])
def way(request) -> str:
    """How visits are processed."""
    return request.param


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return make_job(tmp_path, "01")


def make_job(folder: Path, subject: str) -> Job:
    plugin = folder / "plugin.yml"
    plugin.write_text("plugin: Linear\n")
    settings = Settings(out_dir=folder / "out", work_dir=folder / "work", plugin_file=plugin)
    visit: Visit = make_visit(folder / "bids", subject, flair=False)
    return Job(visit, settings, provenance(folder / "bids"), {"t1w": "abc"}, folder / "model", "run1")


def process(way: str, job: Job, tell: Tell = str) -> Outcome:
    if way == "worker":
        return worker.process(job, tell)
    [outcome] = process_with_plugin([job], job.settings, tell)
    return outcome


def mask_of(job: Job) -> Path:
    return job.settings.out_dir / names.lesion_mask(job.visit.t1w.name)


def leave_unfinished(monkeypatch, way: str, job: Job) -> None:
    """As if the run was killed after the record was written and before the work folder was removed."""
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda *_, **__: None)
        assert process(way, job).done
    assert (job.work_folder / "deliver" / "result_deliver.pklz").is_file()


def test_a_finished_visit_leaves_nothing_in_the_work_folder(way: str, job: Job, calls: list[str]):
    outcome = process(way, job)
    assert outcome.done, outcome.error
    assert calls == STEPS
    assert not job.work_folder.exists()


@pytest.mark.parametrize("left", [False, True])
def test_a_visit_can_be_done_again(way: str, job: Job, calls: list[str], monkeypatch, left: bool):
    leave_unfinished(monkeypatch, way, job) if left else process(way, job)
    mask_of(job).unlink()  # damaged; for the visit itself it is the same as --force
    calls.clear()
    again = replace(job, run_id="run2")
    outcome = process(way, again)
    assert outcome.done, outcome.error
    assert calls == STEPS
    assert mask_of(job).is_file()
    assert read_record(job.settings.out_dir, "01", "1").run_id == "run2"


def test_a_failed_record_over_a_finished_work_folder_is_mended(way: str, job: Job, calls: list[str], monkeypatch):
    leave_unfinished(monkeypatch, way, job)
    done = read_record(job.settings.out_dir, "01", "1")
    write_record(job.settings.out_dir, replace(done, status="failed", summary={}))
    mask_of(job).unlink()
    outcome = process(way, replace(job, run_id="run2"))
    assert outcome.done, outcome.error
    assert mask_of(job).is_file()


def test_an_interrupted_visit_goes_on_where_it_was(way: str, job: Job, calls: list[str], monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(stages, "segment", lambda *_: 1 / 0)
        assert "ZeroDivisionError" in process(way, job).error
    outcome = process(way, replace(job, run_id="run2"))
    assert outcome.done, outcome.error
    assert calls == STEPS


def test_an_outdated_visit_goes_on_where_it_was(way: str, job: Job, calls: list[str], monkeypatch):
    older = Record("01", "1", "done", "1", "older", "f", {})
    write_record(job.settings.out_dir, older)
    with monkeypatch.context() as patch:
        patch.setattr(stages, "segment", lambda *_: 1 / 0)
        process(way, job)
    write_record(job.settings.out_dir, older)
    assert process(way, replace(job, run_id="run2")).done
    assert calls.count("prepare 01") == 1


def test_every_visit_of_a_plugin_has_its_own_end_and_crash_folder(tmp_path: Path, calls: list[str], monkeypatch):
    first, second = make_job(tmp_path, "01"), make_job(tmp_path, "a+b")
    step = stages.prepare

    def fails_for_one(job: Job, folder: Path):
        if job.visit.subject == "01":
            raise ValueError("a broken scan")
        return step(job, folder)

    monkeypatch.setattr(stages, "prepare", fails_for_one)
    good, bad = process_with_plugin([first, second], first.settings, str)
    assert good.done, good.error
    assert (bad.error, bad.code) == ("ValueError: a broken scan", ExitCode.VISIT_FAILED)
    assert list(first.log_folder.glob("crash-*prepare*.txt"))
    assert not list(second.log_folder.glob("crash-*"))


def test_a_visit_of_a_plugin_that_cannot_be_begun_takes_no_other_with_it(tmp_path: Path, calls: list[str]):
    good, blocked, lost = make_job(tmp_path, "01"), make_job(tmp_path, "02"), make_job(tmp_path, "03")
    good.settings.out_dir.mkdir()
    (good.settings.out_dir / "sub-02").touch()
    jobs = [good, blocked, replace(lost, inputs={})]
    outcomes = {each.label: each for each in process_with_plugin(jobs, good.settings, str)}
    assert outcomes["sub-01_ses-1"].done
    assert "sub-02 is in the way" in outcomes["sub-02_ses-1"].error
    assert "sub-03_ses-1_T1w.nii.gz cannot be read" in outcomes["sub-03_ses-1"].error
    assert {outcome.code for outcome in outcomes.values()} == {ExitCode.OK, ExitCode.VISIT_FAILED}


def test_the_first_failure_of_a_plugin_ends_the_run_and_blames_no_other_visit(tmp_path: Path, monkeypatch):
    idle, bad = make_job(tmp_path, "01"), make_job(tmp_path, "02")

    class Stopped:
        """A graph whose run ends with a visit, before the other is begun."""

        def run(self, **_):
            leave_error(bad, ValueError("a broken scan"))
            raise RuntimeError("what nipype makes of it")

    monkeypatch.setattr(cluster, "_joined_workflow", lambda *_: Stopped())
    settings = replace(idle.settings, stop_on_first_crash=True)
    outcomes = list(process_with_plugin([idle, bad], settings, str))
    assert [(outcome.label, outcome.error) for outcome in outcomes] == [("sub-02_ses-1", "ValueError: a broken scan")]
    assert read_record(settings.out_dir, "01", "1") is None


@pytest.mark.parametrize("work", ["work", "another"])
def test_a_second_run_waits_for_the_first_and_takes_its_result(
    way: str, job: Job, calls: list[str], tmp_path: Path, work: str
):
    """The same command twice at once, with one work folder or two: outputs are shared either way."""
    later = replace(job, run_id="run2", settings=replace(job.settings, work_dir=tmp_path / work))
    heard: list[News] = []
    outcomes: list[Outcome] = []
    waits = threading.Event()

    def hear(news: News) -> None:
        heard.append(news)
        waits.set()

    def second() -> None:
        outcomes.append(process(way, later, hear))

    with hold_visit(job, str):
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(10)
        assert calls == []
        leave_record(job)
    thread.join(10)
    assert (outcomes[0].by_another, outcomes[0].summary, calls) == (True, {"lesion_count": 3}, [])
    assert [news.label for news in heard] == [job.visit.label]
    assert f"process {os.getpid()} on " in heard[0].sentence and "run run1" in heard[0].sentence
    assert not list(job.settings.out_dir.rglob("*.lock")) and not list(later.settings.work_dir.rglob(".*.lock"))


def leave_record(job: Job) -> None:
    """As if a run has finished the visit."""
    visit, configuration = job.visit, job.provenance.configuration_hash
    summary = {"lesion_count": 3}
    done = Record(visit.subject, visit.session, "done", "1", configuration, job.fingerprint, {}, summary=summary)
    write_record(job.settings.out_dir, replace(done, run_id=job.run_id))


@pytest.mark.parametrize("what", ["force", "configuration", "fingerprint", "damaged", "failed"])
def test_what_another_run_left_is_taken_only_if_it_is_what_this_one_would_make(
    way: str, job: Job, calls: list[str], what: str
):
    leave_record(job)
    record = read_record(job.settings.out_dir, "01", "1")
    changed = {
        "configuration": {"configuration_hash": "another"},
        "fingerprint": {"fingerprint": "another"},
        "damaged": {"outputs": {"sub-01/lost.nii.gz": "abc"}},
        "failed": {"status": "failed"},
    }.get(what, {})
    write_record(job.settings.out_dir, replace(record, **changed))
    again = replace(job, run_id="run2", settings=replace(job.settings, force=what == "force"))
    assert process(way, again).done
    assert calls == STEPS


def test_what_another_run_has_finished_is_exported_too(way: str, job: Job, calls: list[str], monkeypatch):
    exported = []
    monkeypatch.setattr("bids_app.workflow.export.export_lesion_roi", lambda *found: exported.append(found))
    leave_record(job)
    settings = replace(job.settings, export_lesion_roi=job.settings.out_dir / "roi")
    assert process(way, replace(job, run_id="run2", settings=settings)).done
    assert exported == [(job.visit, mask_of(job), settings.export_lesion_roi)]


def test_steps_are_told_as_they_begin(job: Job, calls: list[str]):
    heard: list[News] = []
    assert worker.process(job, heard.append).done
    assert [news.step for news in heard] == [name for name, *_ in graph.STEPS] == list(STEP_SECONDS)
    assert {news.label for news in heard} == {job.visit.label}


def test_the_end_of_a_run_ends_what_a_plugin_has_started(job: Job, calls: list[str], monkeypatch):
    ended = []

    class Interrupted:
        def run(self, **_):
            raise KeyboardInterrupt

    monkeypatch.setattr(cluster, "_joined_workflow", lambda *_: Interrupted())
    monkeypatch.setattr(cluster, "_end_processes", lambda: ended.append(1))
    with pytest.raises(KeyboardInterrupt):
        list(process_with_plugin([job], job.settings, str))
    assert ended == [1]
    assert not list(job.settings.out_dir.rglob("*.lock"))


def test_a_plugin_of_processes_says_where_dev_shm_cannot_be_used(job: Job, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(multiprocessing.synchronize.SemLock, "__init__", refuse)
    job.settings.plugin_file.write_text("plugin: MultiProc\n")
    with pytest.raises(UnavailableError, match="/dev/shm cannot be used: Read-only"):
        list(process_with_plugin([job], job.settings, str))


def test_processes_of_a_plugin_keep_to_their_threads(job: Job, calls: list[str], monkeypatch):
    for name in thread_variables(1):
        monkeypatch.setenv(name, "7")
    settings = replace(job.settings, nprocs=4, omp_nthreads=2)
    cluster._joined_workflow([replace(job, settings=settings)], settings)
    assert {os.environ[name] for name in thread_variables(2)} == {"2"}
