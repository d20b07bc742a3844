"""What the last step leaves in the output folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bids_app.derivatives import names
from bids_app.derivatives.record import Stamp, read_record
from bids_app.derivatives.results import Aligned, Anomalies
from bids_app.group.collect import collect
from bids_app.settings import Settings
from bids_app.study.models import Problem, Severity
from bids_app.workflow.deliver import INTERRUPTED, deliver, deliver_failure
from bids_app.workflow.job import Job
from tests.derivatives.mock import IDENTITY, PASSED, make_explained, make_results, make_visit, provenance


@pytest.fixture
def job(tmp_path: Path) -> Job:
    settings = Settings(out_dir=tmp_path / "out", work_dir=tmp_path / "work")
    visit = make_visit(tmp_path / "bids")
    return Job(visit, settings, provenance(tmp_path / "bids"), {"t1w": "abc"}, tmp_path / "model", "run1")


def test_what_an_older_run_wrote_is_removed_after_a_failure_in_between(job: Job, tmp_path: Path):
    out = job.settings.out_dir
    prepared, posed, segmented, normalized = make_results(tmp_path / "made", job.visit)
    standard = out / names.lesion_mask(job.visit.t1w.name, normalized[0].space)
    deliver(job, prepared, posed, segmented, normalized)
    assert standard.is_file()
    failed = deliver_failure(job, "The network is down.")
    deliver_failure(job, "It is still down.")
    assert read_record(out, "01", "1").outputs == failed.outputs
    assert standard.is_file()
    assert collect(out).done == (), "outputs of a failed visit are not for the group level"
    deliver(job, prepared, posed, segmented, ())
    assert not standard.exists()
    assert (out / names.lesion_mask(job.visit.t1w.name)).is_file()


def test_what_an_interrupted_run_wrote_is_known_and_goes_when_it_is_out_of_date(job: Job, tmp_path: Path, monkeypatch):
    out = job.settings.out_dir
    prepared, posed, segmented, normalized = make_results(tmp_path / "made", job.visit)
    standard = out / names.lesion_mask(job.visit.t1w.name, normalized[0].space)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("bids_app.workflow.deliver.remove_stale", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        deliver(job, prepared, posed, segmented, normalized)
    record = read_record(out, "01", "1")
    assert standard.is_file() and (record.status, record.error) == ("failed", INTERRUPTED)
    deliver(job, prepared, posed, segmented, ())
    assert not standard.exists() and read_record(out, "01", "1").status == "done"


def test_the_record_names_both_models_and_what_the_visit_is_recognised_by(job: Job, tmp_path: Path):
    prepared, posed, segmented, normalized = make_results(tmp_path / "made", job.visit)
    anomalies = Anomalies(make_explained(tmp_path / "made", prepared, normalized))
    out = job.settings.out_dir
    deliver(job, prepared, posed, segmented, normalized, Aligned(IDENTITY, PASSED), anomalies)
    record = read_record(out, "01", "1")
    assert record.anomaly_model == {"name": "tiny", "version": "1.0", "sha256": "1" * 64}
    assert record.model == {"name": "tiny", "version": "1.0", "sha256": "0" * 64}
    assert record.output_stamps == {path: Stamp.of(out / path) for path in record.outputs}
    assert record.input_names["t1w"] == job.visit.t1w.path.name
    assert deliver(job, prepared, posed, segmented, normalized).anomaly_model == {}


def test_the_scanner_is_that_of_the_reference_scan(job: Job, tmp_path: Path):
    bids = job.provenance.bids_dir
    bids.mkdir(exist_ok=True)
    (bids / "T1w.json").write_text('{"Manufacturer": "GE", "InstitutionName": "Hospital"}')
    (bids / "FLAIR.json").write_text('{"Manufacturer": "Philips"}')
    record = deliver(job, *make_results(tmp_path / "made", job.visit))
    assert (record.summary["manufacturer"], record.summary["scanner_model"]) == ("GE", None)
    assert "Hospital" not in str(record)


def test_a_doubtful_alignment_of_the_anomaly_map_is_told(job: Job, tmp_path: Path):
    prepared, posed, segmented, normalized = make_results(tmp_path / "made", job.visit)
    aligned = Aligned(IDENTITY, replace(PASSED, status="doubtful"))
    anomalies = Anomalies(make_explained(tmp_path / "made", prepared, normalized))
    record = deliver(job, prepared, posed, segmented, normalized, aligned, anomalies)
    assert [problem["code"] for problem in record.problems] == ["affine-registration-doubtful"]
    sidecar = names.sidecar(names.anomaly_map(job.visit.t1w.name))
    content = json.loads((job.settings.out_dir / sidecar).read_text())
    assert content["Registration"]["Status"] == "doubtful"
    without = deliver(job, prepared, posed, segmented, normalized, aligned)
    assert without.problems == []


def test_what_the_pose_showed_is_in_row_and_record(job: Job, tmp_path: Path):
    prepared, posed, segmented, normalized = make_results(tmp_path / "made", job.visit)
    seen = Problem("turned-head", Severity.WARNING, "It lies on its head.", ("sub-01_T1w.nii.gz",))
    record = deliver(job, prepared, replace(posed, problems=(seen,)), segmented, normalized)
    assert [problem["message"] for problem in record.problems] == ["It lies on its head."]
    assert record.summary["problems"] == "turned-head"


@pytest.mark.parametrize(
    ("which", "code"),
    [
        ("flair", "flair-registration-doubtful"),
        ("pose", "pose-registration-doubtful"),
        ("mni", "mni152nlin2009asym-registration-doubtful"),
    ],
)
def test_a_doubtful_registration_is_told(job: Job, tmp_path: Path, which: str, code: str):
    prepared, posed, segmented, (space,) = make_results(tmp_path / "made", job.visit)
    doubtful = replace(PASSED, status="doubtful")
    record = deliver(
        job,
        replace(prepared, flair_check=doubtful if which == "flair" else PASSED),
        replace(posed, check=doubtful if which == "pose" else PASSED),
        segmented,
        (replace(space, check=doubtful if which == "mni" else PASSED),),
    )
    assert [problem["code"] for problem in record.problems] == [code]
    assert record.summary["problems"] == code
