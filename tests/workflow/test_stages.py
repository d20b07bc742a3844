"""What the steps decide themselves; what they call is tested in its own room, and all together end to end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from bids_app import images
from bids_app.derivatives.results import Aligned
from bids_app.errors import VisitError
from bids_app.lesion.components import lesions_of_mask
from bids_app.lesion.model import LesionModels
from bids_app.preprocessing.checks import Check
from bids_app.preprocessing.contrast import Doubt
from bids_app.preprocessing.normalization import Normalization
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


def atlas_of(labels: images.Image) -> images.Image:
    """An atlas 7 mm left of the scan: the left half of the lesion is thalamus (10), the rest putamen (12)."""
    values = np.full(labels.shape, 12, np.uint8)
    values[:10] = 10
    return images.on_affine(values, shifted(-7.0) @ labels.affine)


def test_lesions_have_the_region_that_holds_most_of_them(results, monkeypatch, tmp_path: Path):
    _, _, segmented, (space,) = results
    place = atlas_of(images.load(segmented.labels))
    monkeypatch.setattr(stages.atlas, "labels", lambda: place)
    aligned = Aligned(stages._frozen(shifted(-7.0)), PASSED)
    assert [each.region for each in stages.locate(segmented, (), aligned).lesions] == ["left putamen"]
    moved = Aligned(stages._frozen(shifted(-15.0)), PASSED)  # by four voxels too far
    assert [each.region for each in stages.locate(segmented, (), moved).lesions] == ["left thalamus"]
    # without an affine registration of its own, by the transforms to MNI
    files = {
        name: write_itk_linear(matrix, tmp_path / f"{name}.txt")
        for name, matrix in (("forward", shifted(-7.0)), ("inverse", shifted(7.0)))
    }
    located = stages.locate(segmented, (replace(space, **files),), replace(aligned, check=Check("failed", 0, 0, "No.")))
    assert [each.region for each in located.lesions] == ["left putamen"]
    assert [each.region for each in stages.locate(segmented, (), None).lesions] == [None]
    assert stages.locate(replace(segmented, lesions=()), (), aligned).lesions == ()


def test_a_flair_goes_to_standard_space_in_one_interpolation_from_its_own_grid(tmp_path: Path):
    """FLAIR of 1.5 mm, 5 mm off; both moves together bring its bright voxel to where it belongs."""
    values = np.zeros((20, 20, 20), np.float32)
    values[10, 9, 8] = 100
    flair = images.save(images.on_affine(values, np.diag([1.5, 1.5, 1.5, 1])), tmp_path / "flair.nii.gz")
    forward = write_itk_linear(shifted(-3.0), tmp_path / "forward.txt")
    grid = images.on_affine(np.zeros((30, 30, 30), np.float32), np.eye(4))
    prepared = SimpleNamespace(flair_native=flair, flair_matrix=stages._frozen(shifted(5.0)))
    found = images.load(stages._flair_in(SimpleNamespace(t1w=grid), forward, prepared, tmp_path / "out"))
    weight = np.clip(images.data(found), 0, None)
    places = np.moveaxis(np.indices(weight.shape), 0, -1)
    centre = np.average(places.reshape(-1, 3), axis=0, weights=weight.ravel())
    assert np.allclose(centre, [15 + 5 - 3, 13.5, 12], atol=0.2)
    assert stages._flair_in(SimpleNamespace(t1w=grid), forward, SimpleNamespace(flair_native=None), tmp_path) is None


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


@pytest.mark.parametrize(("status", "becomes"), [("accepted", "reused"), ("doubtful",) * 2, ("failed",) * 2])
def test_reused_transforms_are_taken_only_where_they_are_beyond_doubt(status: str, becomes: str):
    reuse = Reuse(to_standard=Path("there.h5"), from_standard=Path("back.h5"))
    found = stages._reused_transforms(reuse, replace(PASSED, status=status))
    assert found.check.status == becomes
    assert found.check.sentence.startswith("The transforms of another pipeline were checked. Within limits.")
    assert (found.forward, found.inverse) == (reuse.to_standard, reuse.from_standard)


def test_registering_anew_after_reused_transforms_is_told():
    reused = Check("failed", 0.4, np.nan, "Theirs overlap by 0.40.")
    for status in ("accepted", "failed"):
        anew = stages._retried(replace(PASSED, status=status), reused)
        assert anew.status == status
        assert anew.sentence.startswith("Theirs overlap by 0.40. Registered anew.")


@pytest.mark.parametrize("space", ["MNI152NLin2009aSym", "MNI152NLin2009cAsym"])
def test_transforms_of_another_pipeline_serve_directly_or_through_their_template(monkeypatch, space: str):
    asked: list[tuple] = []
    monkeypatch.setattr(stages, "bridged", lambda *way: asked.append(way) or (Path("there.h5"), Path("back.h5")))
    reuse = Reuse(to_standard=Path("away.h5"), from_standard=Path("home.h5"), standard_space=space)
    found = stages._reuse_for("MNI152NLin2009aSym", reuse, Path("folder"))
    if space == "MNI152NLin2009aSym":
        assert (found, asked) == (reuse, [])
    else:
        assert (found.to_standard, found.from_standard) == (Path("there.h5"), Path("back.h5"))
        assert asked == [(Path("away.h5"), space, "MNI152NLin2009aSym", Path("folder"))]
    monkeypatch.setattr(stages, "bridged", lambda *_: None)
    assert stages._reuse_for("OASIS30ANTs", reuse, Path("folder")) is None
    assert stages._reuse_for(space, Reuse(), Path("folder")) is None


@pytest.mark.parametrize(("status", "made_anew"), [("accepted", False), ("doubtful", True), ("failed", True)])
def test_bridged_transforms_are_judged_like_any_other(
    results, monkeypatch, tmp_path: Path, status: str, made_anew: bool
):
    prepared, posed, segmented, _ = results
    mask = images.load(prepared.brain_mask)
    ours, bridge = (write_itk_linear(np.eye(4), tmp_path / name) for name in ("ours.txt", "bridge.txt"))
    template = SimpleNamespace(space="MNI152NLin2009aSym", t1w=mask, brain_mask=mask)
    judged = []

    def check(*scans):
        judged.append(scans[-1])
        return replace(PASSED, status=status)

    monkeypatch.setattr(stages, "load_template", lambda _: template)
    monkeypatch.setattr(stages, "bridged", lambda *_: (bridge, bridge))
    monkeypatch.setattr(stages, "check_transform", check)
    monkeypatch.setattr(stages, "normalize_brain", lambda *_: Normalization(ours, ours, PASSED))
    there = tmp_path / "there.h5"
    reuse = Reuse(to_standard=there, from_standard=there, standard_space="MNI152NLin2009cAsym")
    visit = replace(prepared.visit, reuse=reuse)
    found = stages._normalize_to(template.space, visit, prepared, posed, segmented, None, tmp_path / "out")
    assert judged == [bridge]
    assert found.forward == (ours if made_anew else bridge)
    assert found.check.status == ("accepted" if made_anew else "reused")


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
