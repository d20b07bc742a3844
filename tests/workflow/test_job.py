from __future__ import annotations

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from bids_app.derivatives.names import ScanName
from bids_app.derivatives.record import Record, Stamp, Status, fingerprint, write_record
from bids_app.derivatives.results import Provenance
from bids_app.errors import BlockedError, CannotWriteError, ExitCode, VisitError
from bids_app.settings import Settings
from bids_app.study.models import Scan, Visit
from bids_app.workflow.job import Job, begun, input_checksums, leave_error, status_of_visit
from bids_app.workflow.worker import failed, process, sentence_of


@pytest.fixture
def job(tmp_path: Path) -> Job:
    path = tmp_path / "bids" / "sub-01_T1w.nii.gz"
    path.parent.mkdir()
    path.write_bytes(b"a scan")
    visit = Visit("01", None, Scan(path, ScanName.parse(path.name), "T1w"), None)
    settings = Settings(out_dir=tmp_path / "out", work_dir=tmp_path / "work")
    return Job(visit, settings, Provenance("conf", "1", path.parent), input_checksums(visit), tmp_path, "run1")


def test_what_nipype_hashes_does_not_depend_on_run_paths_or_resources(job: Job):
    again = replace(job, run_id="run2", settings=replace(job.settings, nprocs=8, out_dir=Path("/elsewhere")))
    assert repr(again) == repr(job)
    assert repr(replace(job, inputs={"t1w": "other"})) != repr(job)
    assert repr(replace(job, provenance=replace(job.provenance, configuration_hash="other"))) != repr(job)


def test_the_work_folder_follows_configuration_and_contents(job: Job):
    assert job.work_folder == job.settings.work_dir / "conf" / f"sub-01_{job.fingerprint}"


def test_an_unreadable_input_is_named(job: Job):
    job.visit.t1w.path.unlink()
    with pytest.raises(VisitError, match=r"sub-01_T1w\.nii\.gz"):
        input_checksums(job.visit)


def test_status_follows_the_contents_of_the_inputs(job: Job):
    settings, visit = job.settings, job.visit
    assert status_of_visit(settings, visit, "conf") is Status.TO_DO
    write_record(settings.out_dir, Record("01", None, "done", "1", "conf", fingerprint(job.inputs), {}))
    assert status_of_visit(settings, visit, "conf") is Status.DONE
    visit.t1w.path.write_bytes(b"another scan")
    assert status_of_visit(settings, visit, "conf") is Status.OUTDATED


def test_the_sentence_of_a_step_reaches_the_run(job: Job):
    leave_error(job, CannotWriteError("No space left.", "Free some."))
    told = sentence_of(job, RuntimeError("what nipype made of it"))
    assert told == ("No space left. Free some.", ExitCode.CANNOT_WRITE)


def test_a_step_that_fills_the_work_folder_ends_the_run(job: Job):
    leave_error(job, OSError(errno.ENOSPC, "No space left on device"))
    message, code = sentence_of(job, RuntimeError("what nipype made of it"))
    assert str(job.settings.work_dir) in message and code is ExitCode.CANNOT_WRITE


def test_a_work_folder_too_full_for_a_sentence_is_told_all_the_same(job: Job, monkeypatch):
    job.settings.work_dir.mkdir(parents=True, exist_ok=True)
    usage = shutil.disk_usage(job.settings.work_dir)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0))
    monkeypatch.setattr(Path, "write_text", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    leave_error(job, ValueError("half a file"))
    monkeypatch.undo()
    assert not job.error_file.exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0))
    assert sentence_of(job, RuntimeError("of nipype"))[1] is ExitCode.CANNOT_WRITE


def test_an_unforeseen_error_becomes_a_sentence_and_a_crash_file(job: Job):
    message, code = sentence_of(job, ValueError("bad value"))
    assert (message, code) == ("ValueError: bad value", ExitCode.VISIT_FAILED)
    assert "bad value" in (job.log_folder / "crash-sub-01.txt").read_text()


def test_inputs_are_read_when_a_visit_begins_and_no_second_time(job: Job):
    fresh = replace(job, inputs={})
    known = begun(fresh)
    assert (known.inputs, known.input_stamps) == (job.inputs, {"t1w": Stamp.of(job.visit.t1w.path)})
    job.visit.t1w.path.unlink()
    assert begun(known) is known
    with pytest.raises(VisitError, match=r"sub-01_T1w\.nii\.gz cannot be read"):
        begun(fresh)


def test_leave_error_keeps_other_errors_as_failures_of_the_visit(job: Job):
    leave_error(job, MemoryError("too big"))
    assert json.loads(job.error_file.read_text())["code"] == ExitCode.VISIT_FAILED


def test_a_step_that_cannot_write_beside_a_file_in_its_way_fails_its_visit_only(job: Job):
    leave_error(job, BlockedError("a is in the way.", "Rename it."))
    assert sentence_of(job, RuntimeError("of nipype")) == ("a is in the way. Rename it.", ExitCode.VISIT_FAILED)


def test_a_failure_that_cannot_be_recorded_is_a_failure_all_the_same(job: Job):
    job.settings.out_dir.mkdir(parents=True, exist_ok=True)
    (job.settings.out_dir / "sub-01").write_text("a file")
    outcome = process(job, lambda news: None)
    assert outcome.code is ExitCode.VISIT_FAILED
    assert "sub-01 is in the way" in outcome.error
    outcome = failed(job, VisitError("The T1w is empty.", "Look at it."), 1.0)
    assert (outcome.error, outcome.code) == ("The T1w is empty. Look at it.", ExitCode.VISIT_FAILED)


def test_a_visit_whose_inputs_cannot_be_read_fails_alone(job: Job):
    job.visit.t1w.path.unlink()
    outcome = process(replace(job, inputs={}), lambda news: None)
    assert outcome.code is ExitCode.VISIT_FAILED and "sub-01_T1w.nii.gz cannot be read" in outcome.error
