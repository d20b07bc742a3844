"""What a lesion model is given: the file itself without a card, and each input that a card or the user may ask for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_app import images
from bids_app.derivatives import names
from bids_app.derivatives.names import ScanName
from bids_app.derivatives.results import Posed, Prepared, Segmented
from bids_app.derivatives.visit import write_model_input
from bids_app.errors import VisitError
from bids_app.images import Image
from bids_app.lesion.inputs import SPACES, parse_input
from bids_app.preprocessing import headers, transforms
from bids_app.preprocessing.checks import Check, Registration
from bids_app.settings import Settings
from bids_app.study.models import Reuse, Scan, Visit
from bids_app.workflow import model_input, stages
from bids_app.workflow.job import Job
from bids_app.workflow.model_input import given
from tests.conftest import stored_as
from tests.derivatives.mock import PASSED, provenance
from tests.lesion.models import head, write_model
from tests.lesion.nnunet import dice, nnunet_predicts
from tests.preprocessing.phantoms import rigid, template

SHAPE, SPACING = (44, 52, 42), 2.0
MODEL = {"mirror_axes": (0,), "patch": (24, 32, 28), "spacing": (3.5, 3.0, 3.0), "folds": ("0",), "gain": 8.0}
TILTED = rigid((12, -7, 20), (5, -3, 9))
NEAR, FAR = rigid((0.2, 0, 0), (0.3, -0.2, 0.2)), rigid((5, 3, -4), (8, -6, 4))


def frozen(matrix: np.ndarray) -> tuple:
    return tuple(map(tuple, matrix.tolist()))


def whole_head(seed: int, contrast: int) -> Image:
    """A brain in a head: noise outside of it and a bright shell, nothing zero."""
    brain = head(SHAPE, SPACING, seed, contrast)
    random = np.random.default_rng(seed)
    values = images.data(brain) + np.where(images.data(brain) == 0, random.uniform(20, 90, SHAPE), 0)
    return images.on_affine(values.astype(np.float32), TILTED @ brain.affine)


def brain_mask(image: Image) -> Image:
    return images.like(image, images.data(head(SHAPE, SPACING)) != 0)


def write_raw(image: Image, path: Path, axes: str = "LIA") -> Path:
    """As scanners write it: integers with a slope, axes in another order, oblique."""
    stored = stored_as(image, axes)
    raw = nib.Nifti1Image(np.round(images.data(stored) * 4).astype(np.int16), stored.affine)
    raw.header.set_slope_inter(0.25, 0)
    raw.header.set_xyzt_units("mm", "sec")
    raw.set_sform(stored.affine, 1)
    raw.set_qform(stored.affine, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(raw, path)
    return path


def write_visit(folder: Path, axes: str = "LIA", reuse: Reuse | None = None, **scans: Image) -> Visit:
    found = {}
    for suffix, image in scans.items():
        path = write_raw(image, folder / "bids" / "sub-01" / "anat" / f"sub-01_{suffix}.nii.gz", axes)
        found[suffix] = Scan(path, ScanName.parse(path.name), suffix)
    return Visit("01", None, found.get("T1w"), found.get("FLAIR"), reuse or Reuse())


def prepare(visit: Visit, folder: Path, flair_matrix: np.ndarray = NEAR) -> Prepared:
    """What the first step makes, its bias field a gain of two."""

    def corrected(scan: Scan) -> Image:
        image = headers.clean(scan.path).image
        return images.like(image, images.data(image) * 2)

    reference = corrected(visit.reference)
    prepared = Prepared(
        visit=visit,
        reference=images.save(reference, folder / "reference.nii.gz"),
        brain_mask=images.save(images.resample(brain_mask(whole_head(0, 1)), reference, 0), folder / "mask.nii.gz"),
        brain_volume_ml=500.0,
        skull_stripped=False,
    )
    if visit.flair_to_align is None:
        return prepared
    flair = images.save(corrected(visit.flair), folder / "flair.nii.gz")
    return replace(prepared, flair=flair, flair_native=flair, flair_matrix=frozen(flair_matrix), flair_check=PASSED)


def posed_like(prepared: Prepared, matrix: np.ndarray = TILTED) -> Posed:
    """A pose whose scans are not there: only the rigid input, bias field corrected, may look at them."""
    contrasts = ("T1w", "FLAIR") if prepared.flair else (prepared.contrast,)
    return Posed(tuple((contrast, Path("absent")) for contrast in contrasts), frozen(np.linalg.inv(matrix)), PASSED)


def make_job(folder: Path, visit: Visit, **settings: object) -> Job:
    options = Settings(out_dir=folder / "out", work_dir=folder / "work", device="cpu", **settings)
    return Job(visit, options, provenance(folder / "bids"), {}, folder / "model", "run1")


def segment(job: Job, prepared: Prepared, folder: Path) -> Segmented:
    return stages.segment(job, prepared, posed_like(prepared), folder / "segment")


# ---------------------------------------------------------------------------------- as nnUNetv2_predict has it


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIOWithReorient"])
def test_without_a_card_the_mask_is_that_of_nnunet_on_the_file(tmp_path: Path, orientation: str, reader: str):
    write_model(tmp_path / "model", reader=reader, **MODEL)
    visit = write_visit(tmp_path, orientation, T1w=whole_head(0, 1))
    check_against_nnunet(tmp_path, visit, [visit.t1w.path])


@pytest.mark.parametrize("scheme", ["ZScore", "No"])
def test_standardized_scans_keep_their_negative_values(tmp_path: Path, scheme: str):
    """The steps before are given them shifted, a network that was trained on them is not."""
    write_model(tmp_path / "model", normalization=f"{scheme}Normalization", **MODEL)
    head = whole_head(0, 1)
    visit = write_visit(tmp_path, T1w=images.like(head, images.data(head) - 120))
    assert headers.clean(visit.t1w.path).image.dataobj.min() == 0
    check_against_nnunet(tmp_path, visit, [visit.t1w.path])


@pytest.mark.parametrize("use_mask", [True, False])
@pytest.mark.parametrize("scheme", ["ZScore", "CT", "No", "RescaleTo01"])
def test_every_normalization_is_that_of_nnunet(tmp_path: Path, scheme: str, use_mask: bool):
    write_model(tmp_path / "model", normalization=f"{scheme}Normalization", use_mask=use_mask, **MODEL)
    # a field of view wider than the head, filled with zeros: what the mask of nnU-Net leaves out
    values = np.pad(images.data(whole_head(0, 1))[4:-4, 4:-4, 4:-4], 4)
    visit = write_visit(tmp_path, T1w=images.like(whole_head(0, 1), values))
    check_against_nnunet(tmp_path, visit, [visit.t1w.path])


@pytest.mark.parametrize("channels", [("T1w", "FLAIR"), ("FLAIR", "T1w")])
@pytest.mark.parametrize("moved", ["near", "far"])
def test_two_files_of_one_grid_are_given_as_they_are(tmp_path: Path, channels: tuple[str, ...], moved: str):
    write_model(tmp_path / "model", channels=channels, **MODEL)
    visit = write_visit(tmp_path, T1w=whole_head(0, 1), FLAIR=whole_head(1, -1))
    files = [getattr(visit, channel.lower()).path for channel in channels]
    found = check_against_nnunet(tmp_path, visit, files, {"near": NEAR, "far": FAR}[moved])
    codes = [problem.code for problem in found.problems]
    assert ("model-input-apart" in codes) is (moved == "far")


@pytest.mark.parametrize("contrasts", [("FLAIR",), ("T1w", "FLAIR")])
def test_a_model_of_flair_sees_the_file_whether_there_is_a_t1w_or_not(tmp_path: Path, contrasts: tuple[str, ...]):
    write_model(tmp_path / "model", channels=("FLAIR",), **MODEL)
    scans = {"T1w": whole_head(0, 1), "FLAIR": whole_head(1, -1)}
    visit = write_visit(tmp_path, **{contrast: scans[contrast] for contrast in contrasts})
    check_against_nnunet(tmp_path, visit, [visit.flair.path])


def test_several_classes_are_decided_as_nnunet_does(tmp_path: Path):
    labels = {"background": 0, "stroke": 1, "wmh": 2, "oedema": 3}
    write_model(tmp_path / "model", architecture="ResidualEncoderUNet", labels=labels, **MODEL)
    visit = write_visit(tmp_path, T1w=whole_head(0, 1))
    found = check_against_nnunet(tmp_path, visit, [visit.t1w.path])
    assert found.model.terms.threshold.value is None


def test_the_folds_that_are_asked_for_are_those_of_nnunet(tmp_path: Path):
    write_model(tmp_path / "model", **(MODEL | {"folds": ("0", "1", "2"), "mirror_axes": (0, 1, 2)}))
    visit = write_visit(tmp_path, T1w=whole_head(0, 1))
    check_against_nnunet(tmp_path, visit, [visit.t1w.path], folds=("1", "2"))


def check_against_nnunet(
    folder: Path, visit: Visit, files: list[Path], flair_matrix: np.ndarray = NEAR, folds: tuple[str, ...] = ()
) -> Segmented:
    """Lesions and probability of the step are those of nnU-Net's own predictor on the raw files."""
    expected, segmentation = nnunet_predicts(folder / "model", files, folder / "nnunet", folds)
    prepared = prepare(visit, folder / "prepare", flair_matrix)
    found = segment(make_job(folder, visit, folds=folds), prepared, folder)
    mask = images.data(images.to_ras(segmentation)) == 1
    ours = images.data(images.load(found.mask)) > 0
    assert 0.02 < mask.mean() < 0.9
    assert dice(ours, mask) >= 0.999
    if "Reorient" not in json.loads((folder / "model" / "plans.json").read_text())["image_reader_writer"]:
        theirs = images.to_ras(nib.Nifti1Image(expected[1], segmentation.affine))
        assert np.abs(images.data(images.load(found.probability)) - images.data(theirs)).mean() < 1e-3
    assert str(found.model.terms.input.value) == "native"
    return found


# ----------------------------------------------------------------------------------------------- every input


@pytest.fixture
def small_template(monkeypatch) -> Image:
    """MNI on voxels of 4 mm: many times quicker."""
    monkeypatch.setattr(model_input, "load_template", lambda _: template(1.0))
    return template(1.0).t1w


@pytest.mark.parametrize("correction", ["n4", "raw"])
@pytest.mark.parametrize("space", SPACES)
def test_every_input_is_what_it_is_called(tmp_path: Path, monkeypatch, small_template, space: str, correction: str):
    scans = {"T1w": whole_head(0, 1), "FLAIR": whole_head(1, -1)}
    prepared = prepare(write_visit(tmp_path, **scans), tmp_path / "prepare", np.eye(4))
    rigid, affine = np.linalg.inv(TILTED), np.linalg.inv(TILTED @ np.diag([1.2, 0.9, 1.1, 1]))
    monkeypatch.setattr(model_input, "to_affine", lambda *_: Registration(affine, PASSED))
    posed = posed_like(prepared)
    if (space, correction) == ("rigid", "n4"):  # the step before has made it
        posed = replace(posed, scans=save_pose(prepared, rigid, small_template, tmp_path))
    seen = given(prepared, posed, tuple(scans), parse_input(f"{space}:{correction}"))
    for found, source in zip(seen.scans, scans.values(), strict=True):
        known = images.like(source, images.data(source) * (2 if correction == "n4" else 1))
        if space != "native":
            known = images.masked(known, brain_mask(source))
        if space.startswith("native"):
            assert np.array_equal(seen.matrix, np.eye(4))
            assert images.same_grid(found, nib.load(prepared.visit.t1w.path)), "axes as the file holds them"
            np.testing.assert_allclose(images.data(images.to_ras(found)), images.data(known), atol=0.5)
        else:
            np.testing.assert_allclose(seen.matrix, rigid if space == "rigid" else affine)
            assert images.same_grid(found, small_template)
            assert agreement(found, known, seen.matrix) > 0.97


def agreement(found: Image, source: Image, matrix: np.ndarray) -> float:
    """Correlation with the brain that a matrix carries there, by nibabel's way of resampling."""
    expected = images.resample(images.on_affine(images.data(source), matrix @ source.affine), found, order=1)
    assert images.data(found).sum() == pytest.approx(images.data(expected).sum(), rel=0.1), "its grey values"
    return np.corrcoef(images.data(found).ravel(), images.data(expected).ravel())[0, 1]


def save_pose(prepared: Prepared, matrix: np.ndarray, grid: Image, folder: Path) -> tuple[tuple[str, Path], ...]:
    mask = transforms.apply_linear(images.load(prepared.brain_mask), matrix, grid, order=0)
    scans = {"T1w": prepared.reference, "FLAIR": prepared.flair_native}
    moved = {
        contrast: images.masked(transforms.apply_linear(images.load(path), matrix, grid, order=3), mask)
        for contrast, path in scans.items()
    }
    return tuple((contrast, images.save(scan, folder / f"pose_{contrast}.nii.gz")) for contrast, scan in moved.items())


def test_a_flair_of_another_grid_is_resampled_rigidly_onto_the_t1w(tmp_path: Path):
    """It lies elsewhere by `FAR`, and has thicker slices."""
    t1w, flair = whole_head(0, 1), whole_head(1, -1)
    thick = np.linalg.inv(FAR) @ flair.affine @ np.diag([1, 1, 2, 1])
    elsewhere = images.on_affine(images.data(flair)[:, :, ::2], thick)
    prepared = prepare(write_visit(tmp_path, T1w=t1w, FLAIR=elsewhere), tmp_path / "prepare", FAR)
    seen = given(prepared, posed_like(prepared), ("T1w", "FLAIR"), parse_input("native"))
    raw = nib.load(prepared.visit.t1w.path)
    np.testing.assert_array_equal(images.data(seen.scans[0]), images.data(raw))
    assert images.same_grid(seen.scans[1], raw) and not seen.problems
    moved = images.data(images.to_ras(seen.scans[1]))
    # slices that both grids have, away from where the moved scan ends
    inside = np.s_[12:-12, 12:-12, 14:-14:2]
    assert np.corrcoef(moved[inside].ravel(), images.data(flair)[inside].ravel())[0, 1] > 0.99


def test_a_model_of_flair_answers_in_the_place_of_the_t1w(tmp_path: Path):
    """On its own grid it is not resampled, and what is found there comes to the T1w by the registration."""
    t1w, flair = whole_head(0, 1), whole_head(1, -1)
    elsewhere = images.on_affine(images.data(flair), np.linalg.inv(FAR) @ flair.affine)
    prepared = prepare(write_visit(tmp_path, T1w=t1w, FLAIR=elsewhere), tmp_path / "prepare", FAR)
    for wanted in ("native", "native-brain"):
        seen = given(prepared, posed_like(prepared), ("FLAIR",), parse_input(wanted))
        raw = nib.load(prepared.visit.flair.path)
        assert images.same_grid(seen.scans[0], raw)
        kept = images.data(stored_as(brain_mask(t1w), "LIA")) > 0 if wanted == "native-brain" else True
        np.testing.assert_array_equal(images.data(seen.scans[0]), np.where(kept, images.data(raw), 0))
        np.testing.assert_allclose(seen.matrix, np.linalg.inv(FAR), atol=1e-9)
        back = seen.carried(seen.scans[0], images.load(prepared.reference), order=1)
        inside = np.s_[8:-8, 8:-8, 8:-8]
        known = images.data(flair)[inside] * (images.data(brain_mask(t1w))[inside] if kept is not True else 1)
        np.testing.assert_allclose(images.data(back)[inside], known, atol=0.5)


def test_one_grid_and_a_small_error_of_registration_leave_a_flair_in_its_place(tmp_path: Path):
    prepared = prepare(write_visit(tmp_path, T1w=whole_head(0, 1), FLAIR=whole_head(1, -1)), tmp_path / "prepare")
    near = given(prepared, posed_like(prepared), ("FLAIR",), parse_input("native"))
    assert np.array_equal(near.matrix, np.eye(4))
    far = given(replace(prepared, flair_matrix=frozen(FAR)), posed_like(prepared), ("FLAIR",), parse_input("native"))
    np.testing.assert_allclose(far.matrix, np.linalg.inv(FAR), atol=1e-9)


def test_a_reused_scan_on_another_grid_takes_the_place_of_the_file_and_that_is_told(tmp_path: Path):
    t1w = whole_head(0, 1)
    visit = write_visit(tmp_path, reuse=Reuse(preprocessed=Path("sub-01_desc-preproc_T1w.nii.gz")), T1w=t1w)
    prepared = prepare(visit, tmp_path / "prepare")
    here = given(prepared, posed_like(prepared), ("T1w",), parse_input("native"))
    np.testing.assert_array_equal(images.data(here.scans[0]), images.data(nib.load(visit.t1w.path)))
    assert not here.problems
    other = images.on_affine(images.data(t1w)[2:], t1w.affine)
    images.save(images.like(other, images.data(other) > 0), prepared.brain_mask)
    images.save(other, prepared.reference)
    there = given(prepared, posed_like(prepared), ("T1w",), parse_input("native"))
    assert images.same_grid(images.to_ras(there.scans[0]), other)
    assert [problem.code for problem in there.problems] == ["model-input-reused"]
    assert "sub-01_desc-preproc_T1w.nii.gz" in there.problems[0].message


def test_a_brain_that_cannot_be_aligned_affinely_fails_its_visit_alone(tmp_path: Path, monkeypatch, small_template):
    prepared = prepare(write_visit(tmp_path, T1w=whole_head(0, 1)), tmp_path / "prepare")
    failed = Check("failed", 0.4, 0.1, "The overlap is 0.40.")
    monkeypatch.setattr(model_input, "to_affine", lambda *_: Registration(np.eye(4), failed))
    with pytest.raises(VisitError, match=r"sub-01 could not be aligned affinely .* overlap is 0\.40.*--lesion-input"):
        given(prepared, posed_like(prepared), ("T1w",), parse_input("affine"))


# --------------------------------------------------------------------------------------------- told and kept


def test_another_input_than_the_cards_is_told_in_the_row(tmp_path: Path):
    folder = write_model(tmp_path / "model", **MODEL)
    (folder / "card.json").write_text('{"name": "ours", "input": "rigid"}')
    visit = write_visit(tmp_path, T1w=whole_head(0, 1))
    prepared = prepare(visit, tmp_path / "prepare")
    found = segment(make_job(tmp_path, visit, lesion_input="native"), prepared, tmp_path)
    [problem] = [problem for problem in found.problems if problem.code == "model-input-other"]
    assert problem.message == "The lesion model ours wants rigid (its card), and --lesion-input gave it native."
    assert found.model.terms.input.source == "--lesion-input; its card says rigid"
    assert found.seen == ()


def test_what_the_model_was_given_is_kept_so_that_nnunet_can_take_it(tmp_path: Path):
    folder = write_model(tmp_path / "model", channels=("T1w", "FLAIR"), **MODEL)
    visit = write_visit(tmp_path, T1w=whole_head(0, 1), FLAIR=whole_head(1, -1))
    prepared = prepare(visit, tmp_path / "prepare")
    job = make_job(tmp_path, visit, keep_model_input=True)
    found = segment(job, prepared, tmp_path)
    written = write_model_input(job.log_folder, prepared, found, job.provenance)
    place = tmp_path / "out" / "sub-01" / "log" / "run1" / "model-input"
    assert {path.relative_to(place).as_posix() for path in written} == {
        "sub-01_0000.nii.gz", "sub-01_0001.nii.gz", "sub-01.json",
    }  # fmt: skip
    for number, scan in enumerate((visit.t1w, visit.flair)):
        kept, raw = nib.load(place.parent / names.model_input("01", None, number)), nib.load(scan.path)
        assert images.same_grid(kept, raw)
        np.testing.assert_array_equal(images.data(kept), images.data(raw))
    said = json.loads((place / "sub-01.json").read_text())
    assert said["Channels"] == {"0000": "T1w", "0001": "FLAIR"}
    assert said["Input"] == {
        "Space": "native", "BrainExtracted": False, "BiasCorrected": False, "Source": "no card",
        "Description": "the scan on its own grid, skull on, grey values as in the file", "Steps": "nnU-Net",
    }  # fmt: skip
    assert said["Sources"] == ["bids:raw:sub-01/anat/sub-01_T1w.nii.gz", "bids:raw:sub-01/anat/sub-01_FLAIR.nii.gz"]
    assert (said["Threshold"], said["ThresholdSource"]) == (0.5, "no card")
    _, again = nnunet_predicts(folder, [place / "sub-01_0000.nii.gz", place / "sub-01_0001.nii.gz"], tmp_path / "again")
    assert dice(images.data(images.to_ras(again)) > 0, images.data(images.load(found.mask)) > 0) >= 0.999


def test_nothing_is_kept_unless_asked_for(tmp_path: Path):
    write_model(tmp_path / "model", **MODEL)
    visit = write_visit(tmp_path, T1w=whole_head(0, 1))
    prepared, job = prepare(visit, tmp_path / "prepare"), make_job(tmp_path, visit)
    found = segment(job, prepared, tmp_path)
    assert write_model_input(job.log_folder, prepared, found, job.provenance) == []
    assert not job.log_folder.exists()
    keeping = replace(job, settings=replace(job.settings, keep_model_input=True))
    assert repr(keeping) != repr(job), "a step that did not keep it is not resumed"
