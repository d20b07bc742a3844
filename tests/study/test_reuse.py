"""What is found in the folders of other pipelines, by their own names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bids_app.derivatives.names import ScanName
from bids_app.errors import NoInputError, UsageError
from bids_app.study.models import Reuse, Scan, Severity
from bids_app.study.reuse import check_derivatives, find_reuse, parse_derivative
from tests.skeletons import make_empty

SPACE = "MNI152NLin2009cAsym"


def raw(stem: str) -> Scan:
    """The raw scan of that name."""
    return Scan(Path(f"{stem}.nii.gz"), ScanName.parse(stem), stem.rpartition("_")[2])


def reuse(root: Path, scan: str = "sub-01_T1w", spaces=(SPACE,)) -> Reuse:
    reference = raw(scan)
    return find_reuse(reference.name.subject, reference.name.session, reference, {"prep": root}, spaces)[0]


def test_anatomy_of_fmriprep(tmp_path):
    folder = "sub-01/anat/sub-01"
    make_empty(
        tmp_path,
        f"{folder}_desc-preproc_T1w.nii.gz",
        f"{folder}_desc-preproc_T1w.json",
        f"{folder}_desc-brain_mask.nii.gz",
        f"{folder}_space-{SPACE}_desc-preproc_T1w.nii.gz",
        f"{folder}_space-{SPACE}_res-2_desc-brain_mask.nii.gz",
        f"{folder}_from-T1w_to-{SPACE}_mode-image_xfm.h5",
        f"{folder}_from-{SPACE}_to-T1w_mode-image_xfm.h5",
        f"{folder}_from-T1w_to-MNI152NLin6Asym_mode-image_xfm.h5",
        f"{folder}_from-T1w_to-fsnative_mode-image_xfm.txt",
        f"{folder}_dseg.nii.gz",
    )
    found = reuse(tmp_path)
    assert found.preprocessed == tmp_path / f"{folder}_desc-preproc_T1w.nii.gz"
    assert found.brain_mask == tmp_path / f"{folder}_desc-brain_mask.nii.gz"
    assert found.to_standard == tmp_path / f"{folder}_from-T1w_to-{SPACE}_mode-image_xfm.h5"
    assert found.from_standard == tmp_path / f"{folder}_from-{SPACE}_to-T1w_mode-image_xfm.h5"
    assert found.standard_space == SPACE
    assert found.lesion_mask is None
    assert found.sources[0] == f"bids:prep:{folder}_desc-preproc_T1w.nii.gz"
    assert len(found.sources) == 4


def transforms(*pairs: tuple[str, str]) -> list[str]:
    return [f"sub-01/anat/sub-01_from-{source}_to-{target}_mode-image_xfm.h5" for source, target in pairs]


def test_transform_of_another_space_is_no_use(tmp_path):
    make_empty(tmp_path, *transforms(("T1w", "MNI152NLin6Asym"), ("MNI152NLin6Asym", "T1w")))
    assert reuse(tmp_path) == Reuse()
    found = reuse(tmp_path, spaces=(SPACE, "MNI152NLin6Asym"))
    assert (found.standard_space, found.from_standard.name[:28]) == ("MNI152NLin6Asym", "sub-01_from-MNI152NLin6Asym_")


@pytest.mark.parametrize("pair", [("T1w", SPACE), (SPACE, "T1w")])
def test_transforms_are_reused_in_both_directions_or_not_at_all(tmp_path, pair):
    lonely = transforms(pair)
    make_empty(tmp_path, *lonely, "sub-01/anat/sub-01_desc-brain_mask.nii.gz")
    name = raw("sub-01_T1w")
    found, problems = find_reuse("01", None, name, {"prep": tmp_path}, (SPACE, "MNI152NLin6Asym"))
    assert (found.to_standard, found.from_standard, found.standard_space) == (None, None, None)
    assert found.brain_mask is not None
    assert [(problem.code, problem.severity) for problem in problems] == [("no-inverse", Severity.INFO)]
    assert problems[0].files == (Path(lonely[0]).name,)
    make_empty(tmp_path, *transforms(("T1w", "MNI152NLin6Asym"), ("MNI152NLin6Asym", "T1w")))
    found, problems = find_reuse("01", None, name, {"prep": tmp_path}, (SPACE, "MNI152NLin6Asym"))
    assert (found.standard_space, problems) == ("MNI152NLin6Asym", ())


def test_images_in_a_standard_space_are_no_native_ones(tmp_path):
    make_empty(
        tmp_path, *(f"sub-01/anat/sub-01_space-{SPACE}_desc-{tail}.nii.gz" for tail in ("preproc_T1w", "brain_mask"))
    )
    assert reuse(tmp_path) == Reuse()


def test_nothing_there(tmp_path):
    assert reuse(tmp_path) == Reuse()


@pytest.mark.parametrize(
    ("tail", "found"),
    [
        ("label-lesion_roi", True),
        ("label-L_mask", True),
        ("label-L_desc-T1lesion_mask", True),
        ("space-T1w_label-L_desc-manual_mask", True),
        ("space-orig_label-L_mask", True),
        ("desc-lesion_mask", True),
        ("desc-lesionTraced_mask", True),
        ("lesion_mask", True),
        (f"space-{SPACE}_label-L_mask", False),
        ("label-L_probseg", False),
        ("label-R_mask", False),
        ("label-other_roi", False),
        ("desc-brain_mask", False),
    ],
)
def test_lesion_masks_drawn_by_hand(tmp_path, tail, found):
    make_empty(tmp_path, f"sub-01/anat/sub-01_{tail}.nii.gz")
    mask = reuse(tmp_path).lesion_mask
    assert mask == (tmp_path / f"sub-01/anat/sub-01_{tail}.nii.gz" if found else None)


def test_mask_that_a_machine_made_is_not_drawn_by_hand(tmp_path):
    make_empty(tmp_path, "sub-01/anat/sub-01_space-T1w_label-L_desc-nnunet_mask.nii.gz")
    sidecar = tmp_path / "sub-01/anat/sub-01_space-T1w_label-L_desc-nnunet_mask.json"
    sidecar.write_text(json.dumps({"Manual": False}))
    assert reuse(tmp_path).lesion_mask is None
    sidecar.write_text(json.dumps({"Manual": True}))
    assert reuse(tmp_path).lesion_mask is not None


OF_SUBJECT = ("sub-01_desc-preproc_T1w.nii.gz", "sub-01_desc-brain_mask.nii.gz", "sub-01_label-lesion_roi.nii.gz")


def test_a_visit_of_flair_alone_uses_what_was_made_in_its_space(tmp_path):
    folder = "sub-01/anat/sub-01"
    own = (
        f"{folder}_space-FLAIR_desc-preproc_FLAIR.nii.gz",
        f"{folder}_space-FLAIR_desc-brain_mask.nii.gz",
        f"{folder}_from-FLAIR_to-{SPACE}_mode-image_xfm.h5",
        f"{folder}_from-{SPACE}_to-FLAIR_mode-image_xfm.h5",
        f"{folder}_space-FLAIR_label-L_mask.nii.gz",
    )
    of_t1w = ("desc-preproc_T1w", "desc-brain_mask", "space-T1w_desc-preproc_FLAIR", "space-T1w_label-L_mask")
    make_empty(tmp_path, *(f"{folder}_{name}.nii.gz" for name in of_t1w))
    make_empty(tmp_path, *(f"{folder}_{pair}_mode-image_xfm.h5" for pair in (f"from-T1w_to-{SPACE}",)))
    assert reuse(tmp_path, "sub-01_FLAIR") == Reuse()
    make_empty(tmp_path, *own)
    found = reuse(tmp_path, "sub-01_FLAIR")
    files = (found.preprocessed, found.brain_mask, found.to_standard, found.from_standard, found.lesion_mask)
    assert tuple(str(path.relative_to(tmp_path)) for path in files) == own
    assert reuse(tmp_path, "sub-01_T1w").lesion_mask.name == "sub-01_space-T1w_label-L_mask.nii.gz"


def test_a_lesion_mask_of_no_named_space_was_drawn_on_the_scan_there_is(tmp_path):
    make_empty(tmp_path, "sub-01/anat/sub-01_label-L_mask.nii.gz")
    assert reuse(tmp_path, "sub-01_FLAIR").lesion_mask == reuse(tmp_path, "sub-01_T1w").lesion_mask


def test_files_of_the_subject_serve_its_only_session(tmp_path):
    make_empty(tmp_path, *(f"sub-01/anat/{name}" for name in OF_SUBJECT), "sub-01/ses-1/func/sub-01_ses-1_bold.nii.gz")
    name = raw("sub-01_ses-1_T1w")
    found, problems = find_reuse("01", "1", name, {"prep": tmp_path}, sessions=("1",))
    assert (found.preprocessed.name, found.brain_mask.name, found.lesion_mask.name) == OF_SUBJECT
    assert problems == ()


def test_files_of_the_subject_serve_no_session_of_several(tmp_path):
    make_empty(tmp_path, *(f"sub-01/anat/{name}" for name in OF_SUBJECT))
    found, problems = find_reuse("01", "1", raw("sub-01_ses-1_T1w"), {"prep": tmp_path}, sessions=("1", "2"))
    assert found == Reuse()
    assert [(problem.code, problem.severity) for problem in problems] == [("not-reused", Severity.WARNING)]
    assert problems[0].files == OF_SUBJECT
    assert "2 sessions" in problems[0].message
    assert "never averaged across sessions" in problems[0].message


@pytest.mark.parametrize("path", ["sub-01/anat/sub-01_ses-1_lesion_mask.nii.gz", "sub-01/ses-1/anat/lesion_mask.nii"])
def test_files_that_name_their_session_serve_it(tmp_path, path):
    make_empty(tmp_path, path)
    found, problems = find_reuse("01", "1", raw("sub-01_ses-1_T1w"), {"prep": tmp_path}, sessions=("1", "2"))
    assert (found.lesion_mask, problems) == (tmp_path / path, ())


def test_scans_beside_sessions_use_the_files_of_the_subject(tmp_path):
    make_empty(tmp_path, *(f"sub-01/anat/{name}" for name in OF_SUBJECT))
    found, problems = find_reuse("01", None, raw("sub-01_T1w"), {"prep": tmp_path}, sessions=(None, "1"))
    assert (found.preprocessed is not None, problems) == (True, ())


def test_files_of_the_subject_do_not_serve_where_sessions_have_their_own(tmp_path):
    make_empty(
        tmp_path, "sub-01/anat/sub-01_desc-brain_mask.nii.gz", "sub-01/ses-1/anat/sub-01_ses-1_desc-brain_mask.nii.gz"
    )
    assert reuse(tmp_path, "sub-01_ses-1_T1w").brain_mask.name == "sub-01_ses-1_desc-brain_mask.nii.gz"
    assert reuse(tmp_path, "sub-01_ses-2_T1w").brain_mask is None


@pytest.mark.parametrize(
    ("derived", "t1w", "found"),
    [
        ("sub-01_run-1", "sub-01_run-01_T1w", True),
        ("sub-01", "sub-01_acq-a_run-1_T1w", True),
        ("sub-01_run-1", "sub-01_run-2_T1w", False),
        ("sub-01_acq-a", "sub-01_T1w", False),
    ],
)
def test_only_files_of_the_chosen_t1w(tmp_path, derived, t1w, found):
    make_empty(tmp_path, f"sub-01/anat/{derived}_desc-brain_mask.nii.gz")
    assert (reuse(tmp_path, t1w).brain_mask is not None) is found


def test_the_file_that_shares_most_entities_wins(tmp_path):
    make_empty(tmp_path, *(f"sub-01/anat/sub-01{run}_desc-brain_mask.nii.gz" for run in ("", "_run-1")))
    assert reuse(tmp_path, "sub-01_run-1_T1w").brain_mask.name == "sub-01_run-1_desc-brain_mask.nii.gz"


def test_anatomy_comes_from_one_folder_and_lesions_from_any(tmp_path):
    first = make_empty(tmp_path / "a", "sub-01/anat/sub-01_desc-brain_mask.nii.gz")
    second = make_empty(
        tmp_path / "b",
        "sub-01/anat/sub-01_desc-brain_mask.nii.gz",
        "sub-01/anat/sub-01_desc-preproc_T1w.nii.gz",
        "sub-01/anat/sub-01_label-lesion_roi.nii.gz",
    )
    name = raw("sub-01_T1w")
    found, _ = find_reuse("01", None, name, {"a": first, "b": second})
    assert (found.brain_mask.parents[2], found.preprocessed) == (first, None)
    assert found.lesion_mask.parents[2] == second
    assert found.sources == (
        "bids:a:sub-01/anat/sub-01_desc-brain_mask.nii.gz",
        "bids:b:sub-01/anat/sub-01_label-lesion_roi.nii.gz",
    )
    assert find_reuse("01", None, name, {"b": second, "a": first})[0].preprocessed is not None


def test_name_and_path(tmp_path):
    assert parse_derivative("fmriprep=/data/a=b") == ("fmriprep", Path("/data/a=b"))
    for text in ("/data/fmriprep", "=path", "name=", "a b=path"):
        with pytest.raises(UsageError, match="NAME=PATH"):
            parse_derivative(text)
    with pytest.raises(UsageError, match="call a folder raw"):
        parse_derivative("raw=/data")
    check_derivatives({"here": tmp_path})
    with pytest.raises(NoInputError, match="absent"):
        check_derivatives({"here": tmp_path, "x": tmp_path / "absent"})
