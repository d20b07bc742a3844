"""What an anomaly model looks at, and where on the scan its maps end up."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from bids_app import images
from bids_app.anomaly.model import Twin
from bids_app.anomaly.slices import SHAPE, GreyScale, from_slices, to_slices
from bids_app.anomaly.usual import Usual
from bids_app.derivatives.names import ScanName
from bids_app.derivatives.results import Aligned, Prepared
from bids_app.errors import VisitError
from bids_app.measures.volumes import volume_ml
from bids_app.preprocessing.checks import Check
from bids_app.settings import Settings
from bids_app.study.models import Scan, Severity, Visit
from bids_app.workflow import tools
from bids_app.workflow.explanation import _partly, compare, explain, look
from tests.anomaly.models import write_anomaly_model
from tests.conftest import stored_as

MARK_MM = np.array([-30.0, 10.0, 20.0])
"""In MNI: left, in front, above."""
SHIFT_MM = (6.0, -4.0, 3.0)
"""From MNI to the scanner."""


def scan(orientation: str, mark: float = 220.0) -> nib.Nifti1Image:
    """A brain of two greys with a bright mark, 3 mm voxels, stored in some order."""
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    affine[:3, 3] = np.array([-75.0, -105.0, -60.0]) + SHIFT_MM
    places = np.moveaxis(np.indices((51, 60, 46)), 0, -1) * 3.0 + affine[:3, 3] - SHIFT_MM
    radius = np.linalg.norm((places - [0, -17, 9]) / [60, 75, 55], axis=-1)
    values = np.where(radius < 1, np.where(radius < 0.5, 150.0, 100.0), 0.0)
    values[np.linalg.norm(places - MARK_MM, axis=-1) < 9] = mark
    return stored_as(nib.Nifti1Image(values.astype(np.float32), affine), orientation)


def matrix() -> np.ndarray:
    """From the scanner to MNI."""
    found = np.eye(4)
    found[:3, 3] = -np.array(SHIFT_MM)
    return found


@pytest.fixture
def visit(tmp_path, orientation):
    """A prepared visit and its alignment."""
    image = nib.as_closest_canonical(scan(orientation))
    mask = images.like(image, (images.data(image) > 0).astype(np.uint8))
    path = images.save(image, tmp_path / "t1w.nii.gz")
    t1w = Scan(path, ScanName.parse("sub-01_T1w.nii.gz"), "T1w")
    brain_mask = images.save(mask, tmp_path / "mask.nii.gz")
    prepared = Prepared(Visit("01", None, t1w, None), path, brain_mask, volume_ml(mask), True)
    return prepared, Aligned(tuple(map(tuple, matrix())), Check("accepted", 1.0, 1.0, ""))


class Brightness:
    """In place of a model: bright is unusual, and the twin is all of one grey."""

    def explain(self, grey: np.ndarray, steps: int | None = None) -> Twin:
        brain = grey > 0
        return Twin(np.where(brain, 128.0, 0.0).astype(np.float32), (grey > 250).astype(np.float32))


def test_the_mark_is_seen_on_the_left_in_front(visit):
    seen = look(*visit, "T1w")
    bright = np.argwhere(images.data(seen.scan) > 190)
    np.testing.assert_allclose(images.world(seen.scan, bright).mean(axis=0), MARK_MM, atol=1.0)
    assert images.data(seen.brain).any() and look(*visit, "FLAIR") is None


def test_the_map_lies_on_the_scan_where_the_mark_is(visit):
    prepared, _ = visit
    anomaly, twin = compare(Brightness(), look(*visit, "T1w"))
    reference = images.load(prepared.reference)
    assert anomaly.shape == twin.shape == reference.shape
    np.testing.assert_allclose(anomaly.affine, reference.affine)
    found = images.world(anomaly, np.argwhere(images.data(anomaly) > 0.5)).mean(axis=0)
    np.testing.assert_allclose(found, MARK_MM + SHIFT_MM, atol=1.0)


def test_the_twin_has_the_intensities_of_the_scan_up_to_its_edge(visit):
    prepared, _ = visit
    _, twin = compare(Brightness(), look(*visit, "T1w"))
    brain = images.data(images.load(prepared.brain_mask)) > 0
    values = images.data(twin)
    assert not values[~brain].any()
    shown = values[brain & (values > 0)]
    assert shown.min() > 100 and shown.max() < 220 and np.ptp(shown) < 1.0


def test_a_flair_is_seen_through_its_own_alignment(visit, tmp_path):
    prepared, aligned = visit
    flair = images.load(prepared.reference)
    shifted = np.eye(4)
    shifted[0, 3] = 12.0
    moved = nib.Nifti1Image(images.data(flair), np.linalg.inv(shifted) @ flair.affine)
    with_flair = replace(
        prepared,
        flair_native=images.save(moved, tmp_path / "flair.nii.gz"),
        flair_matrix=tuple(map(tuple, shifted)),
    )
    seen = look(with_flair, aligned, "FLAIR")
    bright = np.argwhere(images.data(seen.scan) > 190)
    np.testing.assert_allclose(images.world(seen.scan, bright).mean(axis=0), MARK_MM, atol=1.0)


def test_what_a_flair_does_not_show_is_no_brain(visit, tmp_path):
    """A FLAIR without the lowest fifth of the head: neither seen as dark tissue, nor marked."""
    prepared, aligned = visit
    canonical = nib.as_closest_canonical(images.load(prepared.reference))
    part = canonical.slicer[:, :, canonical.shape[2] // 5 :]
    with_flair = replace(
        prepared,
        flair_native=images.save(stored_as(part, "LIA"), tmp_path / "flair.nii.gz"),
        flair_matrix=tuple(map(tuple, np.eye(4))),
    )
    whole, seen = look(visit[0], aligned, "T1w"), look(with_flair, aligned, "FLAIR")
    grey = [GreyScale.of(images.data(each.scan), images.data(each.brain) > 0) for each in (whole, seen)]
    assert grey[1].low > 0.6 * grey[0].low > 20  # not zero, as it is where nothing was seen
    lowest = images.world(part, np.array([[0, 0, 0]]))[0, 2]
    native = images.world(seen.native_brain, np.argwhere(images.data(seen.native_brain) > 0))
    assert native[:, 2].min() >= lowest - 1.5 and 0.8 < seen.covered < 0.99 and whole.covered == 1
    (problem,) = _partly(seen, "FLAIR")
    assert problem.message.startswith(f"The FLAIR shows {seen.covered:.0%} of the brain")
    assert _partly(whole, "T1w") == ()


def explained(visit, tmp_path, card: dict, **settings):
    """The anomaly step of a visit with a tiny model and a lesion mask that is empty."""
    prepared, aligned = visit
    folder = write_anomaly_model(tmp_path / "model", **card)
    tools.anomaly_model.cache_clear()  # the same folder with another card
    mask = images.load(prepared.brain_mask)
    empty = images.save(images.like(mask, np.zeros(mask.shape, np.uint8)), tmp_path / "lesion.nii.gz")
    job = SimpleNamespace(anomaly_folder=folder, settings=Settings(tmp_path, tmp_path, device="cpu", **settings))
    return explain(job, prepared, SimpleNamespace(mask=empty), aligned, (), tmp_path)


@pytest.mark.parametrize("orientation", ["RAS"])
def test_why_there_is_no_map_is_said(visit, tmp_path):
    prepared, aligned = visit
    lost = replace(aligned, check=Check("failed", 0.1, 0.2, "It fits badly."))
    (problem,) = explained((prepared, lost), tmp_path, {}).problems
    assert problem.severity is Severity.WARNING and "It fits badly." in problem.message
    (problem,) = explained(visit, tmp_path, {"contrast": "FLAIR"}).problems
    assert "needs a FLAIR, which this visit lacks" in problem.message


@pytest.fixture
def bright_is_unusual(monkeypatch):
    monkeypatch.setattr("bids_app.anomaly.model.AnomalyModel.explain", lambda _, *seen: Brightness().explain(*seen))


@pytest.mark.parametrize("orientation", ["RAS"])
def test_the_users_threshold_and_steps_go_before_the_models(visit, tmp_path, bright_is_unusual):
    own = explained(visit, tmp_path, {"threshold": 0.2, "steps": 2}, anomaly_steps=2)
    assert (own.explained.model.threshold, own.explained.model.steps, own.problems) == (0.2, 2, ())
    users = explained(visit, tmp_path, {"steps": 2}, anomaly_threshold=0.4, anomaly_steps=1)
    assert (users.explained.model.threshold, users.explained.model.steps, users.problems) == (0.4, 1, ())
    # a threshold belongs to its steps
    (problem,) = explained(visit, tmp_path, {"steps": 2}, anomaly_steps=1).problems
    assert problem.code == "anomaly-threshold" and "measured with 2 steps, and 1 were taken" in problem.message


@pytest.mark.parametrize("orientation", ["RAS"])
def test_a_model_that_computes_no_numbers_leaves_the_lesions(visit, tmp_path, monkeypatch):
    def overflow(*arguments):
        raise VisitError("The networks leave the range of numbers.", "Use --device cpu.")

    monkeypatch.setattr("bids_app.anomaly.model.AnomalyModel.explain", overflow)
    done = explained(visit, tmp_path, {})
    assert done.explained is None and "leave the range of numbers. Use --device cpu" in done.problems[0].message


def is_mark(finding) -> bool:
    return np.linalg.norm(finding.peak_mm - (MARK_MM + SHIFT_MM)) < 9


def usual_near(place_mm: np.ndarray) -> Usual:
    """Anomalies up to 1 are usual around a place in MNI, and none elsewhere."""
    near = from_slices(np.zeros(SHAPE, np.float32))
    places = images.world(near, np.indices(near.shape).reshape(3, -1).T)
    inside = np.linalg.norm(places - place_mm, axis=1) < 20
    limits = to_slices(images.like(near, inside.reshape(near.shape).astype(np.float32)))
    return Usual(limits, 0 * limits)


def test_a_threshold_by_place_is_carried_to_the_scan(visit, tmp_path, bright_is_unusual):
    """What the left front has in healthy brains as well is no finding."""
    usual_near(MARK_MM).save(tmp_path / "model" / "usual.nii.gz")
    done = explained(visit, tmp_path, {})
    assert done.explained.model.threshold is None
    assert images.load(done.explained.mask).shape == images.load(visit[0].reference).shape
    assert not any(map(is_mark, done.explained.findings))


@pytest.mark.parametrize("orientation", ["RAS"])
def test_what_is_usual_on_the_right_is_a_finding_on_the_left(visit, tmp_path, bright_is_unusual):
    usual_near(MARK_MM * [-1, 1, 1]).save(tmp_path / "model" / "usual.nii.gz")
    assert any(map(is_mark, explained(visit, tmp_path, {}).explained.findings))


@pytest.mark.parametrize("orientation", ["RAS"])
def test_the_users_threshold_goes_before_that_of_each_place(visit, tmp_path, bright_is_unusual):
    usual_near(MARK_MM).save(tmp_path / "model" / "usual.nii.gz")
    assert any(map(is_mark, explained(visit, tmp_path, {}, anomaly_threshold=0.5).explained.findings))
