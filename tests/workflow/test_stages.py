"""What the steps decide themselves; what they call is tested in its own room, and all together end to end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from bids_app import images
from bids_app.errors import VisitError
from bids_app.lesion.components import lesions_of_mask
from bids_app.lesion.model import LesionModels
from bids_app.preprocessing.checks import Check
from bids_app.preprocessing.contrast import Doubt
from bids_app.preprocessing.transforms import write_itk_linear
from bids_app.study.models import Problem, Reuse, Severity
from bids_app.workflow import stages
from tests.derivatives.mock import PASSED, make_results, make_visit


@pytest.fixture
def results(tmp_path: Path):
    return make_results(tmp_path / "work", make_visit(tmp_path, flair=False))


def shifted(millimetres: float) -> np.ndarray:
    matrix = np.eye(4)
    matrix[0, 3] = millimetres
    return matrix


def test_lesions_are_placed_by_the_way_images_travel(results, tmp_path: Path):
    _, _, segmented, (space,) = results
    to_mni = shifted(7.0)  # an image moves 7 mm to the right on its way to MNI, and so do its lesions
    forward = write_itk_linear(to_mni, tmp_path / "forward.txt")
    inverse = write_itk_linear(np.linalg.inv(to_mni), tmp_path / "inverse.txt")
    located = stages.locate(segmented, (replace(space, forward=forward, inverse=inverse),))
    known = np.array(segmented.lesions[0].centroid_mm) + [7, 0, 0]
    assert np.allclose(located.lesions[0].mni_mm, known, atol=1e-6)


def test_a_failed_registration_places_nothing(results):
    _, _, segmented, (space,) = results
    failed = replace(space, check=Check("failed", 0.1, 0.1, "No."))
    assert stages.locate(segmented, (failed,)).lesions[0].mni_mm is None


def test_a_space_that_is_not_mni_gives_no_mni_coordinates(results):
    _, _, segmented, (space,) = results
    assert stages.locate(segmented, (replace(space, space="OASIS30ANTs"),)).lesions[0].mni_mm is None


def test_a_model_that_needs_flair_fails_a_visit_without(results, tmp_path: Path):
    prepared, posed, _, _ = results
    model = SimpleNamespace(name="both", channels=("T1w", "FLAIR"))
    with pytest.raises(VisitError, match=r"sub-01_ses-1 has no usable FLAIR, which the lesion model both needs"):
        stages._model_for(LesionModels((model,)), posed, prepared.visit)


@pytest.mark.parametrize(("there", "chosen"), [(("T1w", "FLAIR"), "late"), (("T1w",), "t1w"), (("FLAIR",), "flair")])
def test_a_late_fusion_has_a_model_for_each_contrast_alone(results, there: tuple[str, ...], chosen: str):
    prepared, posed, _, _ = results
    late, *branches = (
        SimpleNamespace(name=name, channels=channels)
        for name, channels in {"late": ("T1w", "FLAIR"), "t1w": ("T1w",), "flair": ("FLAIR",)}.items()
    )
    posed = replace(posed, scans=tuple((contrast, Path(contrast)) for contrast in there))
    assert stages._model_for(LesionModels((late, *branches)), posed, prepared.visit).name == chosen
    assert posed.scan(there[-1]) == Path(there[-1])


@pytest.mark.parametrize(("covered", "warned"), [(28, False), (20, True)])
def test_a_lesion_outside_the_brain_is_told(results, tmp_path: Path, covered: int, warned: bool):
    prepared, _, segmented, _ = results
    mask = images.load(segmented.mask)
    brain = np.zeros(mask.shape, np.uint8)
    brain[:, :covered] = 1
    prepared = replace(prepared, brain_mask=images.save(images.like(mask, brain), tmp_path / "brain.nii.gz"))
    problems = stages._outside_brain(lesions_of_mask(mask), prepared)
    assert [problem.code for problem in problems] == (["lesion-outside-brain"] if warned else [])


def test_no_lesion_lies_outside(results):
    prepared, _, segmented, _ = results
    empty = images.like(images.load(segmented.mask), np.zeros((24, 28, 26), np.uint8))
    assert stages._outside_brain(lesions_of_mask(empty), prepared) == ()


def test_the_pose_is_black_outside_the_brain(results):
    prepared, *_ = results
    image = images.load(prepared.reference)
    mask = np.zeros(image.shape, np.uint8)
    mask[5:9] = 1
    masked = images.data(images.masked(image, images.like(image, mask)))
    assert (masked[5:9] == 1).all()
    assert masked.sum() == mask.sum()
    assert PASSED.usable


@pytest.mark.parametrize(("millimetres", "status"), [(1.0, "reused"), (12.0, "failed")])
def test_reused_transforms_are_believed_only_where_the_brain_arrives(tmp_path: Path, millimetres: float, status: str):
    values = np.zeros((24, 28, 26), np.uint8)
    values[6:18, 6:22, 6:20] = 1
    brain = images.on_affine(values, np.diag([2.0, 2, 2, 1]))
    there = write_itk_linear(shifted(millimetres), tmp_path / "there.txt")
    back = write_itk_linear(shifted(-millimetres), tmp_path / "back.txt")
    found = stages._reused_transforms(
        Reuse(to_standard=there, from_standard=back), brain, SimpleNamespace(t1w=brain, brain_mask=brain)
    )
    assert found.check.status == status and np.isnan(found.check.similarity)
    assert (found.forward, found.inverse) == (there, back)


def test_registering_anew_after_reused_transforms_is_told():
    reused = Check("failed", 0.4, np.nan, "Theirs overlap by 0.40.")
    assert stages._retried(PASSED, reused).status == "retried"
    assert "Theirs overlap by 0.40. Registered anew." in stages._retried(PASSED, reused).sentence
    assert stages._retried(replace(PASSED, status="failed"), reused).status == "failed"


def turned(axis: str, degrees: float) -> np.ndarray:
    matrix = shifted(20.0)
    matrix[:3, :3] = Rotation.from_euler(axis, degrees, degrees=True).as_matrix()
    return matrix


@pytest.mark.parametrize("axis", ["x", "y", "z"])
@pytest.mark.parametrize(("degrees", "told"), [(0, False), (35, False), (-35, False), (70, True), (180, True)])
def test_a_head_that_its_header_turns_is_told(results, axis: str, degrees: float, told: bool):
    problems = stages._turned_heads(results[0], turned(axis, degrees))
    assert [(problem.code, problem.severity) for problem in problems] == [("turned-head", Severity.WARNING)] * told
    if told:
        assert problems[0].files == ("sub-01_ses-1_T1w.nii.gz",)
        assert f"turned by {degrees} degrees" in problems[0].message and "left and right" in problems[0].message


@pytest.mark.parametrize(("of_t1w", "of_flair", "files"), [
    (180, -180, ["sub-01_ses-1_T1w.nii.gz"]),
    (0, 180, ["sub-01_ses-1_FLAIR.nii.gz"]),
    (180, 0, ["sub-01_ses-1_T1w.nii.gz", "sub-01_ses-1_FLAIR.nii.gz"]),
])  # fmt: skip
def test_each_scan_is_judged_by_its_own_header(tmp_path: Path, of_t1w: float, of_flair: float, files: list[str]):
    """A FLAIR is turned by what aligns it with the T1w, and then with the T1w."""
    prepared, *_ = make_results(tmp_path / "work", make_visit(tmp_path))
    prepared = replace(prepared, flair_matrix=stages._frozen(turned("y", of_flair)))
    problems = stages._turned_heads(prepared, turned("y", of_t1w))
    assert [problem.files[0] for problem in problems] == files


@pytest.mark.parametrize("known", [(), (Problem("same-scan", Severity.WARNING, "Told by the plan."),)])
def test_doubts_about_contrast_name_their_files_once(tmp_path: Path, monkeypatch, known):
    visit = replace(make_visit(tmp_path), problems=known)
    found = (Doubt("same-scan", ("T1w", "FLAIR"), "One scan."), Doubt("contrast-mismatch", ("FLAIR",), "A T1w."))
    monkeypatch.setattr(stages.contrast, "doubts", lambda brains, template: found)
    problems = stages._contrast_problems(visit, {}, None)
    assert [problem.code for problem in problems] == ["same-scan", "contrast-mismatch"][len(known) :]
    assert problems[-1].files == ("sub-01_ses-1_FLAIR.nii.gz",)
