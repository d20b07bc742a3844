"""The real BIDS validator on skeletons: which errors stop a run, and which do not."""

from __future__ import annotations

import errno
import json
import logging
from pathlib import Path

import pytest

from bids_app.errors import DatasetError
from bids_app.settings import Settings
from bids_app.study import validation
from bids_app.study.index import index
from bids_app.study.models import Study
from bids_app.study.validation import Issue, validate, validator_command
from tests.skeletons import DESCRIPTION, TWO_SESSIONS, anat, listing, make_dangling, make_empty, make_skeleton

needs_validator = pytest.mark.skipif(validator_command() is None, reason="bids-validator-deno is not installed")


def settings_for(root: Path, **more) -> Settings:
    work = root.parent / "work"
    work.mkdir(exist_ok=True)
    return Settings(bids_dir=root, out_dir=root.parent / "out", work_dir=work, **more)


def validated(root: Path, **more) -> Study:
    settings = settings_for(root, **more)
    return validate(index(settings), settings, settings.work_dir)


def told(study: Study) -> dict[str, list[str]]:
    """Codes of the problems of each visit, by its label."""
    return {visit.label: [problem.code for problem in visit.problems] for visit in study.visits}


@needs_validator
def test_valid_dataset_passes_and_leaves_nothing_behind(tmp_path, caplog):
    root = make_skeleton(tmp_path / "raw", TWO_SESSIONS)
    (tmp_path / "work").mkdir()
    before = listing(root), listing(tmp_path / "work")
    validated(root)
    assert (listing(root), listing(tmp_path / "work")) == before
    assert not caplog.records


@needs_validator
def test_a_work_folder_without_links_is_no_reason_to_stop(tmp_path, caplog, monkeypatch):
    def refused(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    root = make_skeleton(tmp_path / "raw", TWO_SESSIONS)
    monkeypatch.setattr(Path, "symlink_to", refused)
    validated(root)
    assert "takes no links (Operation not permitted): the dataset is not validated" in caplog.text


@needs_validator
@pytest.mark.parametrize(
    ("content", "code"), [('{"Manufacturer": "Somebody",}', "JSON_INVALID"), ('{"Manufacturer": 3}', "must be string")]
)
def test_invalid_sidecar_is_a_warning_of_its_visit(tmp_path, content, code, caplog):
    root = make_skeleton(tmp_path / "raw", TWO_SESSIONS)
    (anat(root, "sub-01_ses-2") / "sub-01_ses-2_T1w.json").write_text(content)
    study = validated(root)
    assert told(study) == {"sub-01_ses-1": [], "sub-01_ses-2": ["invalid-sidecar"], "sub-02_ses-1": []}
    assert all(visit.usable for visit in study.visits)
    [problem] = study.visits[1].problems
    assert problem.files == ("sub-01_ses-2_T1w.json",)
    assert code in problem.message
    assert not caplog.records  # it is told once
    assert told(validated(root, skip_bids_validation=True))["sub-01_ses-2"] == []


@needs_validator
def test_invalid_name_is_the_error_of_its_visit(tmp_path):
    root = make_skeleton(tmp_path / "raw", ["sub-01_run-1_acq-a_T1w", "sub-02_T1w"])
    study = validated(root)
    assert told(study) == {"sub-01": ["invalid-name"], "sub-02": []}
    assert [visit.usable for visit in study.visits] == [False, True]
    assert "sub-01_acq-a_run-1_T1w.nii.gz" in study.visits[0].problems[0].message
    with pytest.raises(DatasetError, match=r"run-1_acq-a.*FILENAME_MISMATCH"):
        validated(root, participants=("01",))  # nothing is left of the dataset
    assert validated(root, participants=("01",), skip_bids_validation=True).visits[0].usable


@needs_validator
@pytest.mark.parametrize("kind", ["raw", "derivative"])
def test_copies_of_other_pipelines_in_the_place_of_scans_are_valid_enough(tmp_path, kind):
    root = make_skeleton(tmp_path / "raw", ["sub-01_space-MNI152NLin2009aSym_T1w", "sub-02_desc-preproc_T1w"])
    description = DESCRIPTION | {"DatasetType": kind, "GeneratedBy": [{"Name": "Other"}]}
    (root / "dataset_description.json").write_text(json.dumps(description))
    assert told(validated(root)) == {"sub-01": ["standard-space"], "sub-02": ["processed-scan"]}


@needs_validator
def test_all_rows_of_a_long_table_are_read(tmp_path, caplog):
    root = make_skeleton(tmp_path / "raw", ["sub-1100_T1w"])
    rows = "\n".join(f"sub-{number:04d}" for number in range(1, 1101))
    (root / "participants.tsv").write_text(f"participant_id\n{rows}\n")
    validated(root)
    assert "PARTICIPANT_ID_MISMATCH" not in caplog.text


@needs_validator
def test_without_a_folder_for_the_links_they_are_made_elsewhere(tmp_path):
    root = make_skeleton(tmp_path / "raw", ["sub-01_run-1_acq-a_T1w", "sub-02_T1w"])
    settings = Settings(bids_dir=root, out_dir=tmp_path / "out", work_dir=tmp_path / "work")
    before = listing(tmp_path)
    assert told(validate(index(settings), settings, None))["sub-01"] == ["invalid-name"]
    assert listing(tmp_path) == before


@needs_validator
def test_errors_elsewhere_are_a_warning(tmp_path, caplog):
    root = make_skeleton(tmp_path / "raw", TWO_SESSIONS)
    make_empty(anat(root, "sub-01_ses-1"), "notes.doc", "sub-01_ses-1_label-lesion_roi.nii.gz")
    validated(root)
    assert "NOT_INCLUDED" in caplog.text


@needs_validator
def test_sidecar_inherited_by_visits_that_were_not_asked_for_is_no_error(tmp_path, caplog):
    root = make_skeleton(tmp_path / "raw", ["sub-01_T1w", "sub-02_T1w", "sub-02_FLAIR"])
    (root / "FLAIR.json").write_text("{}")
    validated(root, participants=("01",))
    assert not caplog.records


@needs_validator
def test_broken_image_fails_its_visit_only(tmp_path, caplog):
    root = make_skeleton(tmp_path / "raw", TWO_SESSIONS)
    (anat(root, "sub-01_ses-1") / "sub-01_ses-1_T1w.nii.gz").write_bytes(b"")
    make_dangling(anat(root, "sub-01_ses-2") / "sub-01_ses-2_T1w.nii.gz")
    validated(root)
    assert "EMPTY_FILE" in caplog.text


def test_absent_validator_is_a_warning(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(validation, "validator_command", lambda: None)
    validated(make_skeleton(tmp_path / "raw", TWO_SESSIONS))
    assert "not installed" in caplog.text


@pytest.mark.parametrize("command", [["/absent/program"], ["true"], ["echo", "[1]"]])
def test_validator_that_does_not_run_is_a_warning(tmp_path, caplog, monkeypatch, command):
    monkeypatch.setattr(validation, "validator_command", lambda: command)
    validated(make_skeleton(tmp_path / "raw", TWO_SESSIONS))
    assert "does not run" in caplog.text


def test_only_some_errors_are_shown(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.WARNING)
    root = make_skeleton(tmp_path / "raw", TWO_SESSIONS)
    scans = [f"/{path.relative_to(root)}" for path in sorted(root.rglob("*.nii.gz"))]
    monkeypatch.setattr(validation, "_run", lambda *_: [Issue("NOT_INCLUDED", scan, "is wrong") for scan in scans])
    with pytest.raises(DatasetError, match=r"\(5 errors\).* \.\.\. ") as caught:
        validated(root)
    assert caught.value.message.count("is wrong") == 3
    assert "--skip-bids-validation" in caught.value.hint
