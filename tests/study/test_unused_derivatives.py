"""Folders given with ``--derivatives`` that are of no use, and folders with masks that were not given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bids_app.errors import NoInputError
from bids_app.settings import Settings
from bids_app.study.index import index
from bids_app.study.models import Problem, Severity
from bids_app.study.plan import render
from tests.skeletons import ONE_SESSION, TWO_SESSIONS, make_empty, make_skeleton

MASK = "sub-01/anat/sub-01_label-L_mask.nii.gz"


def notes(tmp_path: Path, scans=ONE_SESSION, **derivatives: Path) -> tuple[Problem, ...]:
    root = tmp_path / "raw"
    if not root.exists():
        make_skeleton(root, scans)
    return index(Settings(tmp_path / "out", root, derivatives=derivatives)).problems


def unused(tmp_path: Path, folder: Path, scans=ONE_SESSION) -> str:
    """The sentence of a folder that serves no visit."""
    (problem,) = notes(tmp_path, scans, m=folder)
    assert (problem.code, problem.severity) == ("derivatives-unused", Severity.WARNING)
    assert problem.message.startswith(f"m={folder} serves no visit of this run: ")
    return problem.message


def test_a_folder_that_serves_one_visit_is_fine(tmp_path):
    assert notes(tmp_path, m=make_empty(tmp_path / "m", MASK)) == ()


def test_a_folder_whose_masks_are_too_many_is_no_idle_one(tmp_path):
    assert notes(tmp_path, m=make_empty(tmp_path / "m", MASK, "sub-01/anat/sub-01_lesion.nii.gz")) == ()


@pytest.mark.parametrize("part", ["sub-01", "sub-01/anat", "sub-01/ses-1", "sub-01/ses-1/anat"])
def test_a_folder_inside_a_participant(tmp_path, part: str):
    root = make_empty(tmp_path / "m", MASK, "sub-01/ses-1/anat/sub-01_ses-1_label-L_mask.nii.gz")
    assert f"lies inside a participant. Give m={root}" in unused(tmp_path, root / part)


def test_the_parent_of_datasets(tmp_path):
    make_skeleton(tmp_path / "raw", ONE_SESSION)  # is below it too, and not what to give
    for name in ("fmriprep", "manual"):
        make_empty(tmp_path / name, MASK)
    sentence = unused(tmp_path, tmp_path)
    assert "fmriprep, manual below it have" in sentence
    assert f"Give fmriprep={tmp_path / 'fmriprep'} manual={tmp_path / 'manual'}" in sentence


def test_other_participants(tmp_path):
    root = make_empty(tmp_path / "m", "sub-1/anat/sub-1_label-L_mask.nii.gz", "sub-2/anat/sub-2_label-L_mask.nii.gz")
    assert "it has sub-1, sub-2, and no sub-01, sub-02. The labels have to be equal." in unused(tmp_path, root)


def test_files_at_the_top(tmp_path):
    root = make_empty(tmp_path / "m", "sub-01_lesion.nii.gz", "sub-02_lesion.nii.gz")
    sentence = unused(tmp_path, root)
    assert "(sub-01_lesion.nii.gz, sub-02_lesion.nii.gz) lie at its top" in sentence and "m/sub-01/anat" in sentence


def test_nothing_in_it(tmp_path):
    (tmp_path / "m").mkdir()
    assert "is empty" in unused(tmp_path, tmp_path / "m")


def test_folders_of_another_kind(tmp_path):
    assert "but labelsTr" in unused(tmp_path, make_empty(tmp_path / "m", "labelsTr/case_001.nii.gz"))


def test_sessions_that_are_called_otherwise(tmp_path):
    root = make_empty(tmp_path / "m", "sub-01/ses-01/anat/sub-01_ses-01_label-L_mask.nii.gz")
    sentence = unused(tmp_path, root, TWO_SESSIONS)
    assert "there is no sub-01/ses-1/anat with files in it; in sub-01 there is ses-01." in sentence


def test_no_anat(tmp_path):
    assert "in sub-01 there is mri" in unused(tmp_path, make_empty(tmp_path / "m", "sub-01/mri/lesion.mgz"))


def test_files_of_no_use(tmp_path):
    root = make_empty(tmp_path / "m", "sub-01/anat/sub-01_desc-preproc_T1w.json", "sub-01/anat/sub-01_dseg.nii.gz")
    sentence = unused(tmp_path, root)
    assert "in sub-01/anat there is sub-01_dseg.nii.gz, and none of *_desc-preproc_T1w, *_desc-brain_mask" in sentence


def test_participants_whom_the_dataset_does_not_have(tmp_path):
    root = make_empty(tmp_path / "m", MASK, "sub-1/anat/sub-1_label-L_mask.nii.gz")
    (problem,) = notes(tmp_path, m=root)
    assert (problem.code, problem.severity) == ("derivatives-of-nobody", Severity.INFO)
    assert problem.message == "m holds sub-1, which the dataset does not have."


def test_a_file_is_no_folder(tmp_path):
    root = make_empty(tmp_path / "m", MASK)
    with pytest.raises(NoInputError, match="is a file") as caught:
        notes(tmp_path, m=root / MASK)
    assert "sub-01/anat/sub-01_label-L_mask.nii.gz" in caught.value.hint


def test_masks_among_the_derivatives_of_the_dataset_that_were_not_given(tmp_path):
    raw = make_skeleton(tmp_path / "raw", ONE_SESSION)
    root = make_empty(raw / "derivatives" / "lesion masks", "sub-02/anat/sub-02_desc-lesion_mask.nii.gz")
    ours = "sub-02/anat/sub-02_space-T1w_label-L_desc-nnunet_mask"
    made = make_empty(raw / "derivatives" / "afterstroke", f"{ours}.nii.gz")
    (made / f"{ours}.json").write_text(json.dumps({"Manual": False}))
    (problem,) = notes(tmp_path)
    assert (problem.code, problem.severity) == ("mask-not-used", Severity.WARNING)
    assert "sub-02_desc-lesion_mask.nii.gz" in problem.message
    assert problem.message.endswith(f"--derivatives 'lesionmasks={root}'")
    assert notes(tmp_path, m=root) == ()


def test_the_plan_says_it(tmp_path):
    raw = make_skeleton(tmp_path / "raw", ONE_SESSION)
    settings = Settings(tmp_path / "out", raw, derivatives={"m": tmp_path / "m"})
    (tmp_path / "m").mkdir()
    header = render(index(settings), settings, {}).partition("\n\n")[0]
    assert "warning  m=" in header and "[derivatives-unused]" in header


def test_several_masks_do_not_print_the_rule_for_scans(tmp_path):
    root = make_empty(tmp_path / "m", MASK, "sub-01/anat/sub-01_lesion.nii.gz")
    settings = Settings(tmp_path / "out", make_skeleton(tmp_path / "raw", ONE_SESSION), derivatives={"m": root})
    plan = render(index(settings), settings, {})
    assert "[several-masks]" in plan and "scan choice" not in plan
    assert "1 cannot be processed (several-masks)" in plan
