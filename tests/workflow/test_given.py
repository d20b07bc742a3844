"""What a visit is given instead of made here, on its way to the grid of the reference scan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bids_app import images
from bids_app.derivatives.results import Prepared
from bids_app.errors import VisitError
from bids_app.images import Image, data, on_affine
from bids_app.preprocessing.masks import MaskError
from bids_app.study.models import Reuse, Study, Visit
from bids_app.workflow import given, stages
from tests.conftest import stored_as
from tests.derivatives.mock import make_results, make_visit

SHAPE = (48, 56, 52)
LESION = (slice(16, 21), slice(36, 41), slice(32, 37))


def affine(x: float = -48.0, size: float = 3.0) -> np.ndarray:
    matrix = np.diag([size, size, size, 1.0])
    matrix[:3, 3] = [x, -60, -70]
    return matrix


def lesion_on(matrix: np.ndarray) -> Image:
    values = np.zeros(SHAPE, np.uint8)
    values[LESION] = 1
    return on_affine(values, matrix)


@pytest.fixture
def visit(tmp_path: Path) -> Visit:
    """A T1w, and a FLAIR of other voxels that lies 6 mm further to the right."""
    visit = make_visit(tmp_path / "bids")
    images.save(on_affine(np.ones(SHAPE, np.float32), affine()), visit.t1w.path)
    images.save(on_affine(np.ones((40, 50, 48), np.float32), affine(-42.0, 3.5)), visit.flair.path)
    return visit


@pytest.fixture
def prepared(visit: Visit, tmp_path: Path) -> Prepared:
    prepared = make_results(tmp_path / "work", visit)[0]
    native = on_affine(np.ones(SHAPE, np.float32), affine())
    brain = on_affine(np.ones(SHAPE, np.uint8), affine())
    return replace(
        prepared,
        reference=images.save(native, tmp_path / "native.nii.gz"),
        brain_mask=images.save(brain, tmp_path / "brain.nii.gz"),
    )


def taken(mask: Image, prepared: Prepared, tmp_path: Path) -> tuple[np.ndarray, list[str]]:
    """Voxels of the lesion on the T1w, and the codes of what is doubtful."""
    path = images.save(mask, tmp_path / "mask.nii.gz")
    drawn, problems = given.lesion_mask(path, prepared, images.load(prepared.reference))
    return data(drawn) > 0, [problem.code for problem in problems]


def test_a_mask_drawn_on_the_t1w_stays_where_it_is(prepared: Prepared, tmp_path: Path):
    voxels, codes = taken(lesion_on(affine()), prepared, tmp_path)
    assert codes == [] and voxels[LESION].all() and voxels.sum() == 125


@pytest.mark.parametrize("order", ["LAS", "LIA"])
def test_a_mask_stored_as_the_t1w_is_goes_with_it(visit: Visit, prepared: Prepared, tmp_path: Path, order: str):
    images.save(stored_as(images.load(visit.t1w.path), order), visit.t1w.path)
    voxels, codes = taken(stored_as(lesion_on(affine()), order), prepared, tmp_path)
    assert codes == [] and voxels[LESION].all() and voxels.sum() == 125


def test_a_mask_drawn_on_the_flair_goes_the_way_of_the_flair(prepared: Prepared, tmp_path: Path):
    values = np.zeros((40, 50, 48), np.uint8)
    values[12:18, 20:26, 20:26] = 1
    on_flair = on_affine(values, affine(-42.0, 3.5))
    by_header, codes = taken(on_flair, replace(prepared, flair_matrix=None), tmp_path)
    assert codes == ["mask-grid"]
    to_left = np.eye(4)
    to_left[0, 3] = -6.0  # two voxels of the T1w
    moved, codes = taken(on_flair, replace(prepared, flair_matrix=tuple(map(tuple, to_left))), tmp_path)
    assert codes == ["mask-grid"]
    assert np.array_equal(moved, np.roll(by_header, -2, axis=0)) and moved.any()


def test_a_mask_drawn_on_the_raw_scan_is_told_where_another_grid_is_processed(
    visit: Visit, prepared: Prepared, tmp_path: Path
):
    other = images.save(on_affine(np.ones((60, 60, 60), np.float32), affine(size=2.5)), tmp_path / "preproc.nii.gz")
    other_visit = replace(visit, reuse=Reuse(preprocessed=other))
    prepared = replace(prepared, visit=other_visit, reference=other)
    prepared = replace(prepared, brain_mask=images.save(images.load(other), tmp_path / "brain.nii.gz"))
    voxels, codes = taken(lesion_on(affine()), prepared, tmp_path)
    assert codes == ["mask-grid"]
    assert voxels.sum() * 2.5**3 == pytest.approx(125 * 27, rel=0.1)


def test_a_mask_outside_the_brain_fails_the_visit(prepared: Prepared, tmp_path: Path):
    nowhere = on_affine(np.zeros(SHAPE, np.uint8), affine())
    prepared = replace(prepared, brain_mask=images.save(nowhere, tmp_path / "brain.nii.gz"))
    with pytest.raises(MaskError, match="100% of the lesion in mask"):
        taken(lesion_on(affine()), prepared, tmp_path)


@pytest.mark.parametrize(
    ("values", "what"),
    [
        (lambda mask: mask * np.float32(0.4), "nowhere above one half"),
        (lambda mask: np.ones_like(mask), "more than a lesion can have"),
    ],
)
def test_a_visit_with_a_mask_that_is_none_fails_with_a_sentence(prepared: Prepared, tmp_path: Path, values, what: str):
    path = images.save(on_affine(values(data(lesion_on(affine()))), affine()), tmp_path / "mask.nii.gz")
    visit = replace(prepared.visit, reuse=Reuse(lesion_mask=path))
    posed = make_results(tmp_path / "posed", visit)[1]
    with pytest.raises(VisitError, match=what):
        stages.segment(SimpleNamespace(visit=visit), replace(prepared, visit=visit), posed, tmp_path / "segmented")
    with pytest.raises(VisitError, match=what):  # before the brain is looked for in the T1w, which is blank here
        stages.prepare(SimpleNamespace(visit=visit), tmp_path / "prepared")


def test_what_is_told_of_a_mask_is_told_of_the_visit(prepared: Prepared, tmp_path: Path):
    path = images.save(on_affine(np.zeros(SHAPE, np.uint8), affine()), tmp_path / "mask.nii.gz")
    visit = replace(prepared.visit, reuse=Reuse(lesion_mask=path))
    posed = make_results(tmp_path / "posed", visit)[1]
    job = SimpleNamespace(visit=visit)
    found = stages.segment(job, replace(prepared, visit=visit), posed, tmp_path / "segmented")
    assert found.lesions == () and [problem.code for problem in found.problems] == ["empty-mask"]


def test_the_plan_of_a_dry_run_judges_the_masks_as_the_run_would(visit: Visit, tmp_path: Path, monkeypatch):
    soft = images.save(on_affine(data(lesion_on(affine())) * np.float32(0.4), affine()), tmp_path / "soft.nii.gz")
    empty = images.save(on_affine(np.zeros(SHAPE, np.uint8), affine()), tmp_path / "empty.nii.gz")
    visits = tuple(replace(visit, reuse=Reuse(lesion_mask=mask)) for mask in (soft, empty, None))
    study = Study(tmp_path, "Cohort", ("01",), visits)
    judged = given.with_masks_judged(study).visits
    assert [[(problem.code, str(problem.severity)) for problem in visit.problems] for visit in judged] == [
        [("mask-values", "error")], [("empty-mask", "info")], [],
    ]  # fmt: skip
    assert "nowhere above one half" in judged[0].problems[0].message and not judged[0].usable
    monkeypatch.setattr(given, "MAX_MASKS_READ", 1)
    large = given.with_masks_judged(study)
    assert large.visits == visits and [problem.code for problem in large.problems] == ["masks-unread"]


@pytest.mark.parametrize("moved_mm", [0.0, 400.0])
def test_a_given_brain_mask_is_one_of_this_scan(visit: Visit, tmp_path: Path, moved_mm: float):
    values = np.zeros(SHAPE, np.uint8)
    values[8:40, 10:46, 8:44] = 1  # 1120 mL
    path = images.save(on_affine(values, affine(-48.0 + moved_mm)), tmp_path / "sub-01_desc-brain_mask.nii.gz")
    if moved_mm:
        with pytest.raises(VisitError, match=r"The brain mask has 0 mL.*It is sub-01_desc-brain_mask\.nii\.gz"):
            given.brain_mask(path, images.load(visit.t1w.path), visit)
        return
    mask, problems = given.brain_mask(path, images.load(visit.t1w.path), visit)
    assert np.array_equal(data(mask), values) and problems == ()


def test_a_preprocessed_scan_of_another_place_fails_the_visit(visit: Visit, tmp_path: Path):
    elsewhere = on_affine(np.ones(SHAPE, np.float32), affine(400.0))
    path = images.save(elsewhere, tmp_path / "sub-01_desc-preproc_T1w.nii.gz")
    with pytest.raises(VisitError, match="lies elsewhere than sub-01_ses-1_T1w"):
        given.processed_scan(replace(visit, reuse=Reuse(preprocessed=path)))
    assert given.processed_scan(visit) == visit.t1w.path
