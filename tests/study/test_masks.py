"""Which files are taken for lesion masks drawn by hand, and what is said of all others that look like one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bids_app.derivatives.names import ScanName
from bids_app.study.models import Problem, Reuse, Scan, Severity
from bids_app.study.reuse import find_reuse
from tests.skeletons import make_empty


def scan_of(stem: str, folder: Path = Path("raw/sub-01/anat")) -> Scan:
    return Scan(folder / f"{stem}.nii.gz", ScanName.parse(stem), stem.rpartition("_")[2])


def reuse(root: Path, scan: str = "sub-01_T1w", sessions=()) -> tuple[Reuse, tuple[Problem, ...]]:
    reference = scan_of(scan)
    return find_reuse("01", reference.name.session, reference, {"m": root}, sessions=sessions)


def write_sidecar(root: Path, name: str, **content) -> None:
    (root / "sub-01" / "anat" / f"{name}.json").write_bytes(json.dumps(content).encode("utf-8-sig"))


def one_problem(problems: tuple[Problem, ...], code: str = "mask-not-used") -> Problem:
    assert [problem.code for problem in problems] == [code]
    return problems[0]


@pytest.mark.parametrize("extension", [".nii.gz", ".nii"])
@pytest.mark.parametrize(
    "tail",
    [
        "label-lesion_roi",
        "T1w_label-lesion_roi",
        "label-lesion_mask",
        "label-lesion_desc-T1lesion_mask",
        "label-L_mask",
        "label-L_desc-T1lesion_mask",
        "label-stroke_mask",
        "label-infarct_mask",
        "label-lesion_seg",
        "desc-lesion_mask",
        "desc-lesionAcute_mask",
        "desc-manualLesion_mask",
        "desc-manual_mask",
        "T1w_desc-lesion_mask",
        "space-T1w_desc-lesion_mask",
        "space-t1w_label-L_mask",
        "space-T1_label-L_mask",
        "space-native_label-L_mask",
        "space-orig_label-L_mask",
        "lesion_mask",
        "T1w_lesion_mask",
        "T1_lesion",
        "lesion",
        "lesion_roi",
        "roi",
        "T1w_lesion-manual",
        "lesionmask",
        "Lesion_Mask",
        "LESION",
    ],
)
def test_names_that_lesion_masks_have(tmp_path, tail: str, extension: str):
    make_empty(tmp_path, f"sub-01/anat/sub-01_{tail}{extension}")
    found, problems = reuse(tmp_path)
    assert (found.lesion_mask, problems) == (tmp_path / f"sub-01/anat/sub-01_{tail}{extension}", ())
    assert found.sources == (f"bids:m:sub-01/anat/sub-01_{tail}{extension}",)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("sub-01_space-MNI152NLin6Asym_label-L_mask.nii.gz", "in the space MNI152NLin6Asym, not in that of the T1w"),
        ("sub-01_space-FLAIR_label-L_mask.nii.gz", "in the space FLAIR, not in that of the T1w"),
        ("sub-01_T2w_desc-lesion_mask.nii.gz", "drawn on the T2w"),
        ("sub-01_FLAIR_roi.nii.gz", "drawn on the FLAIR"),
        ("sub-01_run-2_label-L_mask.nii.gz", "of run-2, and the scan is sub-01_T1w"),
        ("sub-02_label-L_mask.nii.gz", "of sub-02, and the scan is sub-01_T1w"),
        ("sub-01_ses-1_label-L_mask.nii.gz", "of ses-1, and the scan is sub-01_T1w"),
        ("sub-01_label-L_mask.mgz", "no NIfTI file but .mgz: convert it"),
        ("sub-01_label-L_mask.nrrd", "no NIfTI file but .nrrd"),
        ("sub-01_label-L_mask.mha", "no NIfTI file but .mha"),
        ("sub-01_lesion.voi", "no NIfTI file but .voi"),
        ("sub-01_label-L_mask.NII.GZ", "small letters"),
        ("sub-01_label-L_mask.v2.nii.gz", "a dot before .nii"),
        ("sub-01_label-L_probseg.nii.gz", "a probability map"),
        ("sub-01_label-lesion_dseg.nii.gz", "a label map"),
        ("sub-01_desc-lesion_T1w.nii.gz", "its name ends in _t1w"),
        ("sub-01_mask.nii.gz", "does not say that it shows a lesion: call it *_label-L_mask.nii.gz"),
        ("sub-01_label-other_roi.nii.gz", "does not say that it shows a lesion"),
        ("sub-01_desc-perilesional_mask.nii.gz", "does not say that it shows a lesion"),
    ],
)
def test_what_looks_like_a_lesion_mask_and_is_not_taken_is_named_with_its_reason(tmp_path, name: str, why: str):
    make_empty(tmp_path, f"sub-01/anat/{name}")
    found, problems = reuse(tmp_path)
    problem = one_problem(problems)
    assert found.lesion_mask is None
    assert (problem.severity, problem.files) == (Severity.WARNING, (name,))
    assert problem.message.startswith(f"Not used as lesion mask: {name} (") and why in problem.message


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("sub-01/sub-01_label-L_mask.nii.gz", "in sub-01/, not in sub-01/anat/"),
        ("sub-01/lesion/sub-01_label-L_mask.nii.gz", "in sub-01/lesion/, not in sub-01/anat/"),
        ("sub-01/ses-1/anat/sub-01_label-L_mask.nii.gz", "in sub-01/ses-1/anat/, not in sub-01/anat/"),
        ("sub-01/ses-1/anat/sub-01_ses-1_label-L_mask.nii.gz", "of ses-1"),
        ("sub-01/dwi/sub-01_space-TRACE_desc-lesion_mask.nii.gz", "in the space TRACE"),
        ("sub-01/ses-1/sub-01_ses-1_msk.nii.gz", "of ses-1"),
    ],
)
def test_masks_in_other_folders_of_the_participant_are_named(tmp_path, path: str, why: str):
    make_empty(tmp_path, path)
    found, problems = reuse(tmp_path)
    assert found.lesion_mask is None and why in one_problem(problems).message


def test_masks_of_other_sessions_that_are_visits_are_not_named(tmp_path):
    make_empty(tmp_path, *(f"sub-01/ses-{n}/anat/sub-01_ses-{n}_label-L_mask.nii.gz" for n in (1, 2, 3)))
    found, problems = reuse(tmp_path, "sub-01_ses-1_T1w", sessions=("1", "2"))
    assert found.lesion_mask.name == "sub-01_ses-1_label-L_mask.nii.gz"
    problem = one_problem(problems)
    assert problem.files == ("sub-01_ses-3_label-L_mask.nii.gz",)
    assert problem.severity is Severity.INFO  # the visit has its mask


def test_one_folder_for_all_sessions_serves_each_with_its_own(tmp_path):
    make_empty(tmp_path, *(f"sub-01/anat/sub-01_ses-{n}_label-L_mask.nii.gz" for n in (1, 2)))
    for session in ("1", "2"):
        found, problems = reuse(tmp_path, f"sub-01_ses-{session}_T1w", sessions=("1", "2"))
        assert (found.lesion_mask.name, problems) == (f"sub-01_ses-{session}_label-L_mask.nii.gz", ())


def test_masks_of_something_else_are_no_concern(tmp_path):
    names = ("desc-brain_mask", "desc-ribbon_mask", "label-GM_probseg", "dseg", "desc-reflect_mask", "desc-preproc_T1w",
             "desc-lesionfilled_T1w")  # fmt: skip
    make_empty(tmp_path, *(f"sub-01/anat/sub-01_{name}.nii.gz" for name in names))
    make_empty(tmp_path, "sub-01/anat/sub-01_label-L_mask.json", "sub-01/func/sub-01_task-rest_desc-lesion_mask.nii.gz")
    make_empty(tmp_path, "sub-01/anat/._sub-01_label-L_mask.nii.gz")
    found, problems = reuse(tmp_path)
    assert (found.lesion_mask, problems) == (None, ())


def test_a_label_of_a_participant_that_speaks_of_strokes_says_nothing(tmp_path):
    make_empty(tmp_path, "sub-stroke01/anat/sub-stroke01_desc-brain_mask.nii.gz")
    reference = scan_of("sub-stroke01_T1w")
    found, problems = find_reuse("stroke01", None, reference, {"m": tmp_path})
    assert (found.lesion_mask, problems) == (None, ()) and found.brain_mask


def test_the_sidecar_may_say_what_a_mask_shows(tmp_path):
    make_empty(tmp_path, "sub-01/anat/sub-01_desc-rater1_mask.nii.gz")
    write_sidecar(tmp_path, "sub-01_desc-rater1_mask", Type="Lesion")
    assert reuse(tmp_path)[0].lesion_mask is not None
    write_sidecar(tmp_path, "sub-01_desc-rater1_mask", Type="Brain")
    assert reuse(tmp_path) == (Reuse(), ())


def test_masks_made_by_a_program_are_named_and_are_no_reason_to_worry(tmp_path):
    names = (
        "space-T1w_label-L_desc-nnunet_mask",
        "space-T1w_label-L_desc-nnunet_probseg",
        "space-T1w_label-L_desc-nnunet_uncertainty",
        "space-MNI152NLin2009aSym_res-1_label-L_desc-nnunet_mask",
    )
    make_empty(tmp_path, *(f"sub-01/anat/sub-01_{name}.nii.gz" for name in names))
    for name in names:
        write_sidecar(tmp_path, f"sub-01_{name}", Manual=False)
    problem = one_problem(reuse(tmp_path)[1])
    assert problem.severity is Severity.INFO and problem.message.count("made by a program") == 1
    assert len(problem.files) == 4


def test_several_masks_of_one_visit_are_an_error_in_the_words_of_training(tmp_path):
    names = tuple(f"sub-01_label-L_desc-{number}_mask.nii.gz" for number in (1, 2, 3))
    make_empty(tmp_path, *(f"sub-01/anat/{name}" for name in names))
    found, problems = reuse(tmp_path)
    problem = one_problem(problems, "several-masks")
    assert found.lesion_mask is None
    assert (problem.severity, problem.files) == (Severity.ERROR, names)
    assert problem.message.startswith(f"sub-01 has 3 masks: {', '.join(names)}; leave one of them in m")


def test_of_several_masks_the_one_that_names_the_scan_is_taken(tmp_path):
    make_empty(tmp_path, *(f"sub-01/anat/sub-01{run}_label-L_mask.nii.gz" for run in ("", "_run-1")))
    found, problems = reuse(tmp_path, "sub-01_run-1_T1w")
    assert found.lesion_mask.name == "sub-01_run-1_label-L_mask.nii.gz"
    assert "fits less well" in one_problem(problems).message and problems[0].severity is Severity.INFO


def test_the_first_folder_with_a_mask_wins_and_the_other_is_named(tmp_path):
    roots = {name: make_empty(tmp_path / name, "sub-01/anat/sub-01_label-L_mask.nii.gz") for name in "ab"}
    found, problems = find_reuse("01", None, scan_of("sub-01_T1w"), roots)
    assert found.lesion_mask.is_relative_to(roots["a"])
    assert "another folder comes first" in one_problem(problems).message


def test_the_space_of_a_scan_that_lies_in_a_standard_space_is_its_own(tmp_path):
    """As in ATLAS v2.0."""
    space = "space-MNI152NLin2009aSym"
    make_empty(tmp_path, f"sub-01/ses-1/anat/sub-01_ses-1_{space}_label-L_desc-T1lesion_mask.nii.gz")
    found, problems = reuse(tmp_path, f"sub-01_ses-1_{space}_T1w", sessions=("1",))
    assert found.lesion_mask is not None and problems == ()
    assert reuse(tmp_path, "sub-01_ses-1_T1w", sessions=("1",))[0].lesion_mask is None
