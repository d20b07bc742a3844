"""The participant level around the steps: what is done again, how failures end, what is said. No images here."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from bids_app.derivatives import names
from bids_app.derivatives import record as record_module
from bids_app.derivatives.names import ScanName
from bids_app.derivatives.record import Record, file_names, read_record, sha256, write_record
from bids_app.errors import AppError, CannotWriteError, ExitCode, UnavailableError, VisitError
from bids_app.settings import Settings
from bids_app.study.models import Problem, Reuse, Scan, Severity, Study, Visit
from bids_app.study.participants import read_participants
from bids_app.workflow import run
from bids_app.workflow.job import Job, begun, input_files
from bids_app.workflow.worker import News, Outcome, Tools
from tests.anomaly.models import write_anomaly_model

ROW = {"lesion_count": 2, "lesion_volume_ml": 12.5, "problems": None}


class FakePool:
    """Finishes every visit at once, but fails those whose label is in `fails`."""

    fails: ClassVar[dict[str, tuple[str, ExitCode]]] = {}
    seen: ClassVar[list[str]] = []

    def __init__(self, settings: Settings, size: int, model_folder: Path):
        self.size, self.tools = size, Tools("cpu", "CPU")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def process(self, jobs, heard):
        for job in jobs:
            self.seen.append(job.visit.label)
            if job.visit.label in self.fails:
                yield Outcome(job.visit.label, 1.0, {}, *self.fails[job.visit.label])
                continue
            finish(job)
            yield Outcome(job.visit.label, 60.0, ROW)


def finish(job: Job) -> None:
    job = begun(job)
    record = Record(
        job.visit.subject, job.visit.session, "done", "1", job.provenance.configuration_hash, job.fingerprint,
        dict(job.inputs), input_names=file_names(input_files(job.visit)), input_stamps=dict(job.input_stamps),
    )  # fmt: skip
    write_record(job.settings.out_dir, record)


def make_model(folder: Path) -> Path:
    """The files of a model with two folds, without any network in them."""
    for name in ("plans.json", "dataset.json", "fold_0/checkpoint_final.pth", "fold_1/checkpoint_final.pth"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


@pytest.fixture
def study(tmp_path: Path) -> Study:
    root = tmp_path / "bids"
    visits = []
    for label in ("01", "02", "03"):
        path = root / f"sub-{label}" / "anat" / f"sub-{label}_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        path.write_bytes(label.encode())
        visits.append(Visit(label, None, Scan(path, ScanName.parse(path.name), "T1w"), None))
    (root / "dataset_description.json").write_text('{"Name": "Cohort"}')
    (root / "participants.tsv").write_text("participant_id\tage\nsub-01\t60\n")
    return Study(root, "Cohort", ("01", "02", "03"), tuple(visits), table=read_participants(root))


@pytest.fixture
def settings(tmp_path: Path, monkeypatch) -> Settings:
    model = make_model(tmp_path / "model")
    monkeypatch.setattr(run, "WorkerPool", FakePool)
    monkeypatch.setattr(FakePool, "fails", {})
    monkeypatch.setattr(FakePool, "seen", [])
    return Settings(
        bids_dir=tmp_path / "bids", out_dir=tmp_path / "out", work_dir=tmp_path / "work", lesion_model=str(model)
    )


def test_all_visits_are_processed_once(settings: Settings, study: Study):
    said: list[str] = []
    assert run.run_participants(settings, study, say=said.append) is ExitCode.OK
    assert FakePool.seen == ["sub-01", "sub-02", "sub-03"]
    assert "[3/3] sub-03: done in 60 s, 2 lesions, 12.50 mL" in said
    FakePool.seen.clear()
    assert run.run_participants(settings, study, say=said.append) is ExitCode.OK
    assert FakePool.seen == []
    assert "Done already, and unchanged: all 3 visits." in said


def test_models_by_relative_paths_are_found_from_wherever_a_step_runs(settings: Settings, study: Study, monkeypatch):
    """nipype changes into the folder of each step."""
    jobs = []
    monkeypatch.setattr(FakePool, "process", lambda _, asked, heard: jobs.extend(asked) or ())
    folder = write_anomaly_model(settings.work_dir / "model")
    monkeypatch.chdir(settings.work_dir)
    run.run_participants(replace(settings, anomaly_model="model"), study, say=str)
    assert {job.anomaly_folder for job in jobs} == {folder}
    jobs.clear()
    run.run_participants(replace(settings, anomaly=False), study, say=str)
    assert {job.anomaly_folder for job in jobs} == {None}


def test_the_anomaly_model_is_told_in_words(settings: Settings, tmp_path: Path):
    folder = write_anomaly_model(tmp_path / "anomalies", contrast="FLAIR")
    said = run.anomaly_model_in_words(replace(settings, anomaly_model=str(folder)))
    assert said == "tiny, of FLAIR: visits without one have no anomaly map"
    assert run.anomaly_model_in_words(replace(settings, anomaly=False)) == "none"


def test_the_lesion_model_and_its_input_are_told_in_words(settings: Settings):
    model, given = run.lesion_model_in_words(settings)
    assert model == f"{settings.lesion_model}, all folds, threshold 0.5 (no card), lesions of any size (no card)"
    assert given.startswith("native (no card): the scan on its own grid, skull on")
    (Path(settings.lesion_model) / "card.json").write_text('{"input": "rigid", "threshold": 0.3, "min_volume_mm3": 30}')
    chosen = replace(settings, folds=("1",), lesion_input="affine:raw", threshold=0.4)
    model, given = run.lesion_model_in_words(chosen)
    assert model.endswith(", folds 1, threshold 0.4 (--threshold), lesions from 30 mm3 (its card)")
    assert given == (
        "affine:raw (--lesion-input; its card says rigid): the brain, brought affinely to MNI at 1 mm, "
        "grey values as in the file"
    )


def test_the_configuration_follows_what_the_model_is_given_however_that_is_said(settings: Settings, study: Study):
    def configuration(**changes) -> str:
        return run.provenance_of(replace(settings, **changes), study).configuration_hash

    known = configuration()
    assert configuration(lesion_input="native") == configuration(lesion_input="native:raw") == known
    others = {configuration(lesion_input=wanted) for wanted in ("native:n4", "native-brain", "rigid", "affine")}
    assert len(others | {known}) == 5
    assert configuration(keep_model_input=True) == known


def test_a_model_input_that_cannot_be_kept_any_more_is_told(settings: Settings, study: Study):
    run.run_participants(settings, study, say=str)
    said: list[str] = []
    run.run_participants(replace(settings, keep_model_input=True), study, say=said.append)
    assert "What the lesion model was given in them is not kept: do them again with --force." in said


def test_force_does_them_again(settings: Settings, study: Study):
    run.run_participants(settings, study, say=str)
    FakePool.seen.clear()
    run.run_participants(replace(settings, force=True), study, say=str)
    assert len(FakePool.seen) == 3


def test_other_settings_do_them_again(settings: Settings, study: Study):
    run.run_participants(settings, study, say=str)
    assert set(run.visit_status(settings, study).values()) == {"done"}
    assert set(run.visit_status(replace(settings, threshold=0.3), study).values()) == {"outdated"}


def test_a_failed_visit_takes_no_other_with_it(settings: Settings, study: Study):
    FakePool.fails = {"sub-01": ("The file is broken.", ExitCode.VISIT_FAILED)}
    said: list[str] = []
    assert run.run_participants(settings, study, say=said.append) is ExitCode.VISIT_FAILED
    assert FakePool.seen == ["sub-01", "sub-02", "sub-03"]
    assert any("sub-01: FAILED after 1 s. The file is broken." in line for line in said)
    assert any(line.startswith("Done: 2 of 3 visits, in ") for line in said)
    assert any(line.startswith("Failed: 1 of 3 visits (sub-01).") for line in said)


def test_the_end_of_a_run_says_where_things_are_and_what_to_look_at(settings: Settings, study: Study, monkeypatch):
    rows = {"02": ROW | {"problems": "flair-misaligned;several-t1w"}, "03": ROW | {"lesion_volume_ml": 99.0}}
    process = FakePool.process

    def with_rows(self, jobs, heard):
        for outcome in process(self, jobs, heard):
            yield replace(outcome, summary=rows.get(outcome.label.removeprefix("sub-"), ROW))

    monkeypatch.setattr(FakePool, "process", with_rows)
    said: list[str] = []
    run.run_participants(settings, study, say=said.append)
    end = said[-3:]
    assert end[0].startswith("Done: all 3 visits, in ")
    assert end[1] == f"Results are in {settings.out_dir}, each visit in its anat folder."
    assert end[2] == (
        "Look first at sub-02 (flair-misaligned, several-t1w): "
        "sub-02/anat/sub-02_space-T1w_label-L_desc-nnunet_mask.nii.gz "
        "over sub-02_desc-preproc_T1w.nii.gz."
    )
    rows.clear()
    rows["03"] = ROW | {"lesion_volume_ml": 99.0}
    said.clear()
    run.run_participants(replace(settings, force=True), study, say=said.append)
    assert said[-1].startswith("Look first at sub-03: sub-03/anat/")


def test_what_another_run_has_done_is_said_to_be():
    assert run.describe(Outcome("sub-01", 7.0, ROW, by_another=True)) == "done by another run, 2 lesions, 12.50 mL"


def test_of_one_visit_nobody_says_1_of_1(settings: Settings, study: Study):
    one, said = replace(study, visits=study.visits[:1]), []
    run.run_participants(settings, one, say=said.append)
    run.run_participants(settings, one, say=said.append)
    FakePool.fails = {"sub-01": ("The file is broken.", ExitCode.VISIT_FAILED)}
    run.run_participants(replace(settings, force=True), one, say=said.append)
    assert "Done already, and unchanged: 1 visit." in said
    assert any(line.startswith("Done: 1 visit, in ") for line in said)
    assert any(line.startswith("Failed: 1 visit (sub-01). ") for line in said)
    assert not [line for line in said if "1 of 1" in line]


def test_the_time_that_is_left_is_said_with_each_visit_but_the_last(settings: Settings, study: Study):
    said: list[str] = []
    run.run_participants(settings, study, say=said.append)
    lines = [line for line in said if line.startswith("[")]
    assert ["left" in line for line in lines] == [True, True, False]
    assert lines[0].startswith("[1/3] sub-01: done in 60 s, 2 lesions, 12.50 mL; about ")


def test_what_workers_tell_is_said_or_noted(settings: Settings, study: Study, monkeypatch, caplog):
    def tell(self, jobs, heard):
        heard(News("sub-01", "pose"))
        heard(News("sub-01", sentence="Another run is processing it."))
        return ()

    monkeypatch.setattr(FakePool, "process", tell)
    caplog.set_level("INFO", "bids_app")
    said: list[str] = []
    run.run_participants(settings, study, say=said.append)
    assert "sub-01: Another run is processing it." in said
    assert "sub-01: pose" in caplog.messages
    assert not [line for line in said if "pose" in line]


def test_the_name_of_the_run_is_that_of_its_log(settings: Settings, study: Study, monkeypatch):
    jobs: list[Job] = []
    monkeypatch.setattr(FakePool, "process", lambda _, asked, heard: jobs.extend(asked) or ())
    run.run_participants(settings, study, None, str, "20250101-120000_abc")
    assert {job.run_id for job in jobs} == {"20250101-120000_abc"}


def test_stop_on_first_crash(settings: Settings, study: Study):
    FakePool.fails = {"sub-01": ("The file is broken.", ExitCode.VISIT_FAILED)}
    assert run.run_participants(replace(settings, stop_on_first_crash=True), study, say=str) is ExitCode.VISIT_FAILED
    assert FakePool.seen == ["sub-01"]


def test_a_full_disk_ends_the_run_with_its_own_code(settings: Settings, study: Study):
    FakePool.fails = {"sub-02": ("No space left.", ExitCode.CANNOT_WRITE)}
    with pytest.raises(AppError, match="No space left") as caught:
        run.run_participants(settings, study, say=str)
    assert caught.value.exit_code is ExitCode.CANNOT_WRITE


def test_an_unusable_visit_is_recorded_and_not_tried(settings: Settings, study: Study):
    problem = Problem("no-t1w", Severity.ERROR, "sub-02 has no T1w.")
    bad = replace(study.visits[1], t1w=None, problems=(problem,))
    study = replace(study, visits=(study.visits[0], bad))
    assert run.run_participants(settings, study, say=str) is ExitCode.VISIT_FAILED
    assert FakePool.seen == ["sub-01"]
    record = read_record(settings.out_dir, "02", None)
    assert (record.status, record.error) == ("failed", "sub-02 has no T1w.")
    assert record.problems[0]["code"] == "no-t1w"


def flair_alone(study: Study) -> Study:
    """The study, whose second visit has a FLAIR in place of its T1w."""
    visit = study.visits[1]
    scan = Scan(visit.t1w.path, ScanName.parse("sub-02_FLAIR.nii.gz"), "FLAIR")
    return replace(study, visits=(study.visits[0], replace(visit, t1w=None, flair=scan)))


def name_channels(model: Path, *channels: str) -> None:
    (model / "dataset.json").write_text(json.dumps({"channel_names": dict(enumerate(channels))}))


def test_flair_alone_is_nothing_for_a_model_of_t1w(settings: Settings, study: Study):
    name_channels(Path(settings.lesion_model), "T1w")
    study = flair_alone(study)
    told = f"sub-02 has no T1w, which the lesion model {settings.lesion_model} needs"
    assert run.visit_status(settings, study)["sub-02"].startswith(f"cannot be processed: {told}")
    assert run.run_participants(settings, study, say=str) is ExitCode.VISIT_FAILED
    assert FakePool.seen == ["sub-01"]
    record = read_record(settings.out_dir, "02", None)
    assert record.error.startswith(told)
    assert [problem["code"] for problem in record.problems] == ["no-t1w"]


def test_a_late_fusion_takes_either_contrast_alone_and_a_fusion_without_branches_none(settings: Settings, study: Study):
    model = Path(settings.lesion_model)
    name_channels(model, "T1w", "FLAIR")
    study = flair_alone(study)
    status = run.visit_status(settings, study)
    assert "has no FLAIR, which" in status["sub-01"] and "has no T1w, which" in status["sub-02"]
    for contrast in ("T1w", "FLAIR"):
        name_channels(make_model(model.parent / contrast), contrast)
    (model / "card.json").write_text(json.dumps({"branches": {"T1w": "../T1w", "FLAIR": "../FLAIR"}}))
    assert set(run.visit_status(settings, study).values()) == {"to do"}
    assert run.run_participants(settings, study, say=str) is ExitCode.OK


def test_lesions_drawn_by_hand_need_no_model(settings: Settings, study: Study):
    name_channels(Path(settings.lesion_model), "T1w")
    drawn = replace(flair_alone(study).visits[1], reuse=Reuse(lesion_mask=study.visits[0].t1w.path))
    assert run.visit_status(settings, replace(study, visits=(drawn,))) == {"sub-02": "to do"}


def test_what_the_group_level_needs_is_left_behind(settings: Settings, study: Study):
    (study.root / "sub-04" / "ses-a" / "func").mkdir(parents=True)
    (study.root / "sub-04" / "ses-b" / "anat").mkdir(parents=True)
    run.run_participants(settings, replace(study, participants=("01", "02", "03", "04")), say=str)
    left = {label: json.loads((settings.out_dir / names.raw_participants(label)).read_text()) for label in ("01", "02")}
    everyone = json.loads((settings.out_dir / names.raw_dataset(left["02"]["state"])).read_text())
    assert everyone["visits"] == {"01": [None], "02": [None], "03": [None], "04": ["b"]}
    assert (everyone["columns"], everyone["listed"]) == (["participant_id", "age"], ["01"])
    assert (left["01"]["row"], left["02"]["row"]) == (["sub-01", "60"], None)
    assert left["01"]["dataset"] == "Cohort"
    assert not any({"visits", "listed"} & set(note) for note in left.values()), "the list of all is in one file"


def test_no_input_is_read_before_its_visit_begins(settings: Settings, study: Study, monkeypatch):
    read: list[str] = []
    monkeypatch.setattr(record_module, "sha256", lambda path: read.append(path.name) or sha256(path))

    def process(_, jobs, heard):
        for job in jobs:
            assert job.visit.t1w.path.name not in read
            finish(job)
            assert read == [f"{each.visit.label}_T1w.nii.gz" for each in jobs[: jobs.index(job) + 1]]
            yield Outcome(job.visit.label, 60.0, ROW)

    monkeypatch.setattr(FakePool, "process", process)
    assert run.run_participants(settings, study, say=str) is ExitCode.OK
    read.clear()
    assert set(run.visit_status(settings, study).values()) == {"done"} and not read, "nor when it is done"
    assert set(run.visit_status(replace(settings, check_content=True), study).values()) == {"done"}
    assert len(read) == 3


def test_a_copied_dataset_is_read_once(settings: Settings, study: Study, monkeypatch):
    run.run_participants(settings, study, say=str)
    for visit in study.visits:
        os.utime(visit.t1w.path, ns=(1, 1))
    read: list[str] = []
    monkeypatch.setattr(record_module, "sha256", lambda path: read.append(path.name) or sha256(path))
    FakePool.seen.clear()
    assert run.run_participants(settings, study, say=str) is ExitCode.OK
    assert not FakePool.seen and read == [f"{visit.label}_T1w.nii.gz" for visit in study.visits], "no file twice"
    read.clear()
    run.run_participants(settings, study, say=str)
    assert not FakePool.seen and not read
    study.visits[0].t1w.path.write_bytes(b"another")
    run.run_participants(settings, study, say=str)
    assert FakePool.seen == ["sub-01"]


def test_the_raw_dataset_is_looked_at_once_a_run(settings: Settings, study: Study, monkeypatch):
    looked = []
    monkeypatch.setattr(run, "_sessions_on_disk", lambda folder: looked.append(folder.name) or [None])
    run.run_participants(settings, study, say=str)
    assert looked == ["sub-01", "sub-02", "sub-03"]


def test_usable_visits_come_before_those_that_cannot_be_processed(settings: Settings, study: Study):
    bad = replace(study.visits[0], t1w=None, problems=(Problem("no-t1w", Severity.ERROR, "sub-01 has no T1w."),))
    study = replace(study, visits=(bad, *study.visits[1:]))
    assert run.run_participants(replace(settings, stop_on_first_crash=True), study, say=str) is ExitCode.VISIT_FAILED
    assert FakePool.seen == ["sub-02", "sub-03"]


def test_the_configuration_is_that_of_the_model_however_its_path_is_written(
    settings: Settings, study: Study, tmp_path: Path, monkeypatch
):
    def configuration(**changes) -> str:
        return run.provenance_of(replace(settings, **changes), study).configuration_hash

    known = configuration()
    monkeypatch.chdir(tmp_path)
    assert configuration(lesion_model="./model") == known
    assert configuration(lesion_model=str(make_model(tmp_path / "elsewhere" / "other"))) == known
    assert configuration(folds=("1", "0")) == known
    assert configuration(folds=("0",)) not in (known, configuration(folds=("1",)))
    (tmp_path / "model" / "fold_0" / "progress.json").write_text("{}")
    assert configuration() == known
    (tmp_path / "model" / "fold_1" / "checkpoint_final.pth").write_text("another network")
    assert configuration() != known


def test_the_model_is_read_once_a_run(settings: Settings, study: Study, monkeypatch):
    read = []
    checksum = run.folder_sha256
    monkeypatch.setattr(run, "folder_sha256", lambda paths: read.append(1) or checksum(paths))
    run.run_participants(settings, study, run.visit_status(settings, study), say=str)
    assert read == [1]


@pytest.mark.parametrize(
    "what",
    [
        "empty", "no-fold", "fold", "input", "space", "uncalibrated", "small-frame", "plugin", "graph-plugin",
        "no-plugin",
    ],
)
def test_what_cannot_start_is_refused_before_anything_is_written(
    settings: Settings, study: Study, tmp_path: Path, monkeypatch, what: str
):
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path / "templates"))
    (tmp_path / "empty").mkdir()
    incomplete = make_model(tmp_path / "incomplete")
    (incomplete / "fold_1" / "checkpoint_final.pth").unlink()
    unknown = make_model(tmp_path / "unknown")
    (unknown / "card.json").write_text('{"input": "talairach"}')
    plugin = tmp_path / "plugin.yml"
    plugin.write_text({"plugin": "plugin: Nonsense", "graph-plugin": "plugin: SLURMGraph"}.get(what, "plugins: 1"))
    uncalibrated = write_anomaly_model(tmp_path / "uncalibrated", threshold=None)
    small = write_anomaly_model(tmp_path / "small", slice_shape=[64, 64])
    changes, said, code = {
        "empty": ({"lesion_model": str(tmp_path / "empty")}, "no trained-model folder", ExitCode.BAD_CONFIG),
        "no-fold": ({"lesion_model": str(incomplete)}, "fold_1 holds neither", ExitCode.BAD_CONFIG),
        "fold": ({"folds": ("7",)}, "has no fold 7", ExitCode.BAD_CONFIG),
        "input": ({"lesion_model": str(unknown)}, "wants the input 'talairach'", ExitCode.BAD_CONFIG),
        "space": ({"output_spaces": ("T1w", "MNI152Lin")}, "MNI152Lin is not on this", ExitCode.UNAVAILABLE),
        "uncalibrated": ({"anomaly_model": str(uncalibrated)}, "has no threshold in its card", ExitCode.BAD_CONFIG),
        "small-frame": ({"anomaly_model": str(small)}, "do not fit into them", ExitCode.BAD_CONFIG),
        "plugin": ({"plugin_file": plugin}, "names Nonsense, which is no plugin", ExitCode.BAD_CONFIG),
        "graph-plugin": ({"plugin_file": plugin}, "does not wait for its jobs", ExitCode.BAD_CONFIG),
        "no-plugin": ({"plugin_file": plugin}, "names no plugin", ExitCode.BAD_CONFIG),
    }[what]
    with pytest.raises(AppError, match=said) as caught:
        run.run_participants(replace(settings, **changes), study, say=str)
    assert caught.value.exit_code is code
    assert not settings.out_dir.exists()


def test_a_gpu_that_is_not_there_is_refused(settings: Settings):
    with pytest.raises(UnavailableError, match="cuda:99"):
        run.check_run(replace(settings, device="cuda:99"))


def test_lesions_of_visits_that_are_done_are_exported_too(settings: Settings, study: Study, tmp_path, monkeypatch):
    exported, said = [], []

    def export(visit: Visit, mask: Path, folder: Path) -> None:
        if visit.subject == "03":
            raise VisitError("sub-03 cannot be read.")
        exported.append((mask, folder))

    monkeypatch.setattr("bids_app.workflow.export.export_lesion_roi", export)
    run.run_participants(settings, replace(study, visits=study.visits[:2]), say=str)
    with_export = replace(settings, export_lesion_roi=tmp_path / "roi")
    assert run.run_participants(with_export, replace(study, visits=study.visits[:2]), say=str) is ExitCode.OK
    masks = [settings.out_dir / names.lesion_mask(visit.t1w.name) for visit in study.visits[:2]]
    assert exported == [(mask, tmp_path / "roi") for mask in masks]
    run.run_participants(settings, study, say=str)
    assert run.run_participants(with_export, study, say=said.append) is ExitCode.VISIT_FAILED
    assert "sub-03: the lesion was not exported. sub-03 cannot be read." in said


def test_out_of_another_pipeline_is_refused(settings: Settings, study: Study):
    settings.out_dir.mkdir()
    (settings.out_dir / "dataset_description.json").write_text('{"GeneratedBy": [{"Name": "fMRIPrep"}]}')
    with pytest.raises(AppError, match="derivatives of fMRIPrep") as caught:
        run.run_participants(settings, study, say=str)
    assert caught.value.exit_code is ExitCode.CANNOT_WRITE


@pytest.mark.parametrize("place", ["sub-01", "sub-01/anat", "sub-01/log", "link"])
def test_a_file_in_the_way_of_a_visit_fails_that_visit_and_the_plan_says_so(settings: Settings, study: Study, place):
    path = settings.out_dir / ("sub-01" if place == "link" else place)
    path.parent.mkdir(parents=True)
    path.symlink_to(settings.out_dir / "nowhere") if place == "link" else path.touch()
    status = run.visit_status(settings, study)
    assert status["sub-01"].startswith(f"cannot be processed: {path} is in the way")
    assert status["sub-02"] == "to do"
    said: list[str] = []
    assert run.run_participants(settings, study, say=said.append) is ExitCode.VISIT_FAILED
    assert FakePool.seen == ["sub-02", "sub-03"]
    assert any(line.startswith("[3/3] sub-01: FAILED") and f"{path} is in the way" in line for line in said)
    if place == "sub-01/anat":
        assert "is in the way" in read_record(settings.out_dir, "01", None).error
    path.unlink()  # nothing has removed it
    assert run.run_participants(settings, study, say=said.append) is ExitCode.OK


def test_the_only_visit_is_not_one_of_one(settings: Settings, study: Study):
    one, said = replace(study, visits=study.visits[:1]), []
    run.run_participants(settings, one, say=said.append)
    run.run_participants(settings, one, say=said.append)
    assert "Done already, and unchanged: 1 visit." in said


def test_the_dry_run_knows_an_output_folder_of_another_pipeline(settings: Settings):
    settings.out_dir.mkdir()
    (settings.out_dir / "dataset_description.json").write_text('{"GeneratedBy": [{"Name": "fMRIPrep"}]}')
    with pytest.raises(CannotWriteError, match="derivatives of fMRIPrep"):
        run.check_run(settings)
