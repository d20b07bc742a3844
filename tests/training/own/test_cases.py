"""Which visits and masks are found, and what is said of the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_app import images
from bids_app.errors import DatasetError, NoInputError, UsageError
from bids_app.settings import TrainingSettings
from bids_app.training.own.cases import find_cases, render_cohort
from bids_app.training.own.masks import ATLAS_MASK, ATLAS_T1W
from tests.conftest import stored_as
from tests.training.own.study import MASKS, ball, brain, make_study

VISITS = (
    ("01", "1", 18.0, (-36.0, -22.0, 22.0)),
    ("01", "2", 16.0, (-36.0, -22.0, 22.0)),
    ("02", "1", 0.0, (0.0, 0.0, 0.0)),
)


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    return make_study(tmp_path_factory.mktemp("study") / "bids", visits=VISITS)


@pytest.fixture
def study(original: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    import shutil

    return Path(shutil.copytree(original, tmp_path / "bids"))


def settings_of(root: Path, masks: str = MASKS, fusion: str = "t1w", **more) -> TrainingSettings:
    return TrainingSettings(root, masks, root.parent / "out", fusion, fusion, root.parent / "work", **more)


def found(root: Path, **options) -> tuple[list[str], dict[str, str]]:
    """Labels of the cases, and codes of the visits that are left out."""
    cohort = find_cases(settings_of(root, **options))
    return [case.label for case in cohort.cases], {label: problem.code for label, problem in cohort.left_out}


def mask_of(root: Path, subject: str, session: str) -> Path:
    folder = root / "derivatives" / "manual" / f"sub-{subject}" / f"ses-{session}" / "anat"
    return folder / f"sub-{subject}_ses-{session}_label-L_mask.nii.gz"


def test_every_session_is_a_case_and_an_empty_mask_is_a_healthy_one(original: Path):
    cohort = find_cases(settings_of(original))
    assert [case.label for case in cohort.cases] == ["sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-1"]
    assert [case.volume_ml for case in cohort.cases] == pytest.approx([24.4, 17.2, 0], abs=0.8)
    assert [problem.code for problem in cohort.cases[2].problems] == ["empty-mask"]


@pytest.mark.parametrize(("order", "codes"), [("RAS", []), ("LAS", ["mask-side"]), ("LIA", [])])
def test_a_mask_stored_in_another_order_lies_on_the_grid_of_its_scan(study: Path, order: str, codes: list[str]):
    """LAS has the scan's number of voxels along every axis, so that its header might be wrong; LIA has not."""
    path = mask_of(study, "01", "1")
    mask = images.load(path)
    images.save(images.on_affine(*_array(stored_as(mask, order))), path)
    case = find_cases(settings_of(study)).cases[0]
    assert case.volume_ml == pytest.approx(24.4, abs=0.8)
    assert case.drawn_on == case.visit.t1w.path  # stored RAS
    assert [problem.code for problem in case.problems] == codes


def _array(image: nib.Nifti1Image) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(image.dataobj), image.affine


def test_a_visit_without_mask_is_left_out(study: Path):
    mask_of(study, "01", "2").unlink()
    assert found(study) == (["sub-01_ses-1", "sub-02_ses-1"], {"sub-01_ses-2": "no-mask"})


def test_what_lies_where_a_mask_was_looked_for_is_named(study: Path):
    path = mask_of(study, "01", "2")
    path.rename(path.with_name(path.name.replace("label-L_mask.nii.gz", "lesion.mgz")))
    (label, problem), *_ = find_cases(settings_of(study)).left_out
    assert (label, problem.code) == ("sub-01_ses-2", "no-mask")
    assert problem.message.endswith("finds; where it looks there is sub-01_ses-2_lesion.mgz.")


def test_masks_of_no_visit_are_named(study: Path):
    path = mask_of(study, "01", "2")
    other = Path(str(path).replace("sub-01", "sub-1"))
    other.parent.mkdir(parents=True)
    path.rename(other)
    cohort = find_cases(settings_of(study))
    assert [problem.files for problem in cohort.unmatched] == [(other.name,)]
    assert f"1 mask of no visit: {other.name}." in render_cohort(cohort, "t1w")
    assert find_cases(settings_of(study, participants=("01",))).unmatched == ()


def test_a_visit_with_several_masks_is_left_out(study: Path):
    path = mask_of(study, "01", "2")
    path.with_name(path.name.replace("label-L", "rater-2_label-L")).write_bytes(path.read_bytes())
    assert found(study)[1] == {"sub-01_ses-2": "several-masks"}


def test_a_mask_beside_the_scan_is_left_out(study: Path):
    path = mask_of(study, "01", "2")
    mask = images.load(path)
    affine = mask.affine.copy()
    affine[0, 3] += 400
    images.save(images.on_affine(np.asarray(mask.dataobj), affine), path)
    assert found(study)[1] == {"sub-01_ses-2": "mask-elsewhere"}


def test_a_mask_with_the_voxels_of_the_scan_and_the_place_of_another_is_left_out(study: Path):
    path = mask_of(study, "01", "2")
    mask = images.load(path)
    images.save(images.on_affine(np.asarray(mask.dataobj), np.diag([-1, 1, 1, 1]) @ mask.affine), path)
    cohort = find_cases(settings_of(study))
    (label, problem), *_ = cohort.left_out
    assert (label, problem.code) == ("sub-01_ses-2", "mask-side")
    assert "the grid of the scan, the place of another" in problem.message and "fslcpgeom" in problem.message


def test_a_mask_without_orientation_is_left_out(study: Path):
    path = mask_of(study, "01", "2")
    image = nib.Nifti1Image(np.asarray(nib.load(path).dataobj), None)
    image.header["sform_code"] = image.header["qform_code"] = 0
    nib.save(image, path)
    assert found(study)[1] == {"sub-01_ses-2": "mask-side"}


def test_a_broken_mask_is_left_out(study: Path):
    path = mask_of(study, "01", "2")
    path.write_bytes(path.read_bytes()[:300])
    assert found(study)[1] == {"sub-01_ses-2": "mask-unreadable"}


@pytest.mark.parametrize(
    ("values", "code"),
    [
        (lambda mask: mask * 255, None),
        (lambda mask: mask * 0.9, None),
        (lambda mask: mask * 0.4, "mask-values"),
        (lambda mask: mask + (np.arange(mask.size).reshape(mask.shape) % 7 == 0) * 3, "mask-values"),
        (lambda mask: -mask, "mask-values"),
        (lambda mask: np.ones_like(mask), "mask-too-large"),
    ],
)
def test_what_is_no_lesion_mask_is_left_out(study: Path, monkeypatch, values, code: str | None):
    monkeypatch.setattr("bids_app.preprocessing.masks.MAX_LESION_ML", 30.0)
    path = mask_of(study, "01", "1")
    image = nib.load(path)
    drawn = (image.get_fdata() > 0).astype(np.float32)
    nib.save(nib.Nifti1Image(values(drawn).astype(np.float32), image.affine), path)
    used, left_out = found(study)
    assert (left_out.get("sub-01_ses-1"), "sub-01_ses-1" in used) == (code, code is None)


def test_a_folder_that_looks_like_a_label_is_not_one(study: Path, tmp_path: Path):
    elsewhere = tmp_path / "sub-acute" / "ses-all" / "bids"
    elsewhere.parent.mkdir(parents=True)
    study.rename(elsewhere)
    assert found(elsewhere)[0]


@pytest.mark.parametrize("pattern", ["", "/", "**masks/*.nii.gz", "."])
def test_a_pattern_that_finds_no_file_is_refused(original: Path, pattern: str):
    with pytest.raises(UsageError, match="can find no file"):
        find_cases(settings_of(original, masks=pattern))


def test_a_mask_that_is_not_downloaded_says_how_to_get_it(study: Path):
    path = mask_of(study, "01", "2")
    path.unlink()
    path.symlink_to("../../.git/annex/objects/x")
    cohort = find_cases(settings_of(study))
    assert cohort.left_out[0][1].code == "not-downloaded"
    assert "datalad get" in cohort.left_out[0][1].message


def test_a_pattern_without_session_gives_no_mask_to_two_sessions(study: Path):
    path = study / "masks" / "01.nii.gz"
    path.parent.mkdir()
    path.write_bytes(mask_of(study, "01", "1").read_bytes())
    (study / "masks" / "02.nii.gz").write_bytes(mask_of(study, "02", "1").read_bytes())
    labels, left_out = found(study, masks="masks/{subject}.nii.gz")
    assert labels == ["sub-02_ses-1"]
    assert left_out == {"sub-01_ses-1": "shared-mask", "sub-01_ses-2": "shared-mask"}


def test_a_loose_pattern_finds_each_visit_its_own_mask(original: Path):
    assert len(found(original, masks="derivatives/**/*_mask.nii.gz")[0]) == 3


def test_an_absolute_pattern_will_do(original: Path):
    assert len(found(original, masks=str(original / MASKS))[0]) == 3


def test_a_fusion_wants_its_contrasts(original: Path):
    with pytest.raises(NoInputError, match="3 no-flair"):
        find_cases(settings_of(original, fusion="early"))


def test_participants_can_be_chosen(original: Path):
    assert found(original, participants=("02",))[0] == ["sub-02_ses-1"]


def test_other_placeholders_are_refused(original: Path):
    with pytest.raises(UsageError, match="rater"):
        find_cases(settings_of(original, masks="{rater}/x.nii.gz"))


def test_a_model_of_flair_alone_sees_no_t1w(tmp_path: Path):
    root = make_study(tmp_path / "bids", flair=True, visits=VISITS[:1])
    case = find_cases(settings_of(root, fusion="flair")).cases[0]
    assert (case.visit.t1w, case.visit.reference.suffix) == (None, "FLAIR")
    assert case.drawn_on.name == "sub-01_ses-1_T1w.nii.gz"


@pytest.mark.parametrize("place", ["", "R001", "Training/R001", "derivatives/ATLAS"])
def test_the_naming_of_atlas(tmp_path: Path, place: str):
    whole = brain(6)
    for subject, with_mask in (("r001s001", True), ("r001s002", False)):
        anat = tmp_path / place / f"sub-{subject}" / "ses-1" / "anat"
        images.save(whole, anat / f"sub-{subject}_ses-1{ATLAS_T1W}.nii.gz")
        if with_mask:
            lesion = images.like(whole, ball(whole, (-36, -22, 22), 15))
            images.save(lesion, anat / f"sub-{subject}_ses-1{ATLAS_MASK}.nii.gz")
    assert found(tmp_path, masks="atlas") == (["sub-r001s001_ses-1"], {"sub-r001s002_ses-1": "no-mask"})


def test_what_is_no_atlas_is_told(original: Path):
    with pytest.raises(DatasetError, match=r"ATLAS v2\.0"):
        find_cases(settings_of(original, masks="atlas"))


def test_the_naming_of_arc_and_the_scan_its_masks_are_drawn_on(study: Path):
    anat = study / "sub-01" / "ses-1" / "anat"
    t2w = anat / "sub-01_ses-1_acq-spc3_run-5_T2w.nii.gz"
    whole = brain(4)
    images.save(whole, t2w)
    mask = study / "derivatives" / "lesion_masks" / "sub-01" / "ses-1" / "anat" / t2w.name.replace(
        "_T2w", "_T2w_desc-lesion_mask"
    )  # fmt: skip
    images.save(images.like(whole, ball(whole, (-36, -22, 22), 15)), mask)
    cohort = find_cases(settings_of(study, masks="arc"))
    assert [case.drawn_on for case in cohort.cases] == [t2w]
    assert {label for label, _ in cohort.left_out} == {"sub-01_ses-2", "sub-02_ses-1"}
    t2w.unlink()  # the mask must not be placed on the T1w, which lies elsewhere
    with pytest.raises(NoInputError, match=r"1 no-scan-of-mask\. First.* was drawn on .*, which is not there"):
        found(study, masks="arc")


def test_the_table_shows_every_problem_once(study: Path):
    mask_of(study, "01", "2").unlink()
    text = render_cohort(find_cases(settings_of(study)), "t1w")
    assert "2 visits of 2 subjects, 1 without lesion" in text
    assert text.count("no-mask") == 1
    assert "empty-mask" in text


def test_many_visits_with_one_problem_take_few_lines(study: Path):
    cohort = find_cases(settings_of(study))
    problem = cohort.cases[2].problems[0]
    crowd = replace(cohort, left_out=tuple((f"sub-{n}", replace(problem, code="no-mask")) for n in range(500)))
    text = render_cohort(crowd, "t1w")
    assert "and 492 more" in text
    assert len(text.splitlines()) < 25
