"""Transforms to one standard space that serve another, by the places they lead to."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from bids_app import images
from bids_app.preprocessing import bridge
from bids_app.preprocessing.bridge import Bridge, bridged
from bids_app.preprocessing.templates import Template
from bids_app.preprocessing.transforms import read_itk

SHAPE = (90, 100, 90)  # of 2 mm


@pytest.fixture
def template(monkeypatch) -> Template:
    """A brain that is a ball of 60 mm, in RAS with its origin in the middle."""
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = -np.array(SHAPE) + 5
    places = nib.affines.apply_affine(affine, np.moveaxis(np.indices(SHAPE), 0, -1))
    inside = (np.linalg.norm(places, axis=-1) < 60).astype(np.uint8)
    brain = images.on_affine(inside.astype(np.float32), affine)
    found = Template("MNI152NLin2009aSym", brain, images.on_affine(inside, affine))
    monkeypatch.setattr(bridge, "load_template", lambda space: found)
    return found


def affine_transform(scale: float, shift: tuple[float, float, float]) -> sitk.AffineTransform:
    transform = sitk.AffineTransform(3)
    transform.Scale(scale)
    transform.SetTranslation(shift)
    return transform


def smooth_field(millimetres: float) -> sitk.DisplacementFieldTransform:
    """A wave along each axis."""
    grid = np.indices((60, 60, 60)) * 4.0 - 120
    values = millimetres * np.sin(grid[::-1] / 40).transpose(1, 2, 3, 0)
    field = sitk.GetImageFromArray(values, isVector=True)
    field.SetOrigin([-120.0] * 3)
    field.SetSpacing([4.0] * 3)
    return sitk.DisplacementFieldTransform(field)


def in_the_brain() -> np.ndarray:
    return np.random.default_rng(4).uniform(-33, 33, (200, 3))


def moved(transform: sitk.Transform, points: np.ndarray) -> np.ndarray:
    return np.array([transform.TransformPoint(point) for point in points.tolist()])


def test_both_ways_lead_where_the_two_steps_lead(template, monkeypatch, tmp_path: Path):
    """From the scan to one template (scaled, shifted, deformed), and from there to the other."""
    to_source = sitk.CompositeTransform([affine_transform(0.9, (12, -30, 7)), smooth_field(3.0)])
    sitk.WriteTransform(to_source, str(tmp_path / "to_source.h5"))
    step = affine_transform(1.02, (0, 2, -3))
    monkeypatch.setattr(bridge, "between", lambda *_: Bridge(step, True))
    forward, inverse = bridged(tmp_path / "to_source.h5", "MNI152NLin2009cAsym", template.space, tmp_path / "made")
    points = in_the_brain()
    wanted = moved(to_source, moved(step, points))
    found = moved(read_itk(forward), points)
    assert np.linalg.norm(found - wanted, axis=1).max() < 0.3
    assert np.linalg.norm(moved(read_itk(inverse), found) - points, axis=1).max() < 0.3
    far = np.array([[0.0, 0.0, 200.0]])  # beyond the field, the affine part goes on
    assert np.linalg.norm(moved(read_itk(forward), far) - moved(to_source, far), axis=1).max() < 25
    assert forward.stat().st_size < 10e6


def test_two_templates_that_do_not_fit_are_no_bridge(template, monkeypatch, tmp_path: Path):
    monkeypatch.setattr(bridge, "between", lambda *_: Bridge(sitk.Transform(), False))
    assert bridged(tmp_path / "to_source.h5", "a", template.space, tmp_path) is None


def test_templates_are_registered_once_a_process(monkeypatch, tmp_path: Path):
    made = []

    def normalize(moving, mask, lesion, fixed, initial, folder):
        made.append((moving, fixed.space))
        path = folder / "forward.txt"
        sitk.WriteTransform(affine_transform(1, (1, 2, 3)), str(path))
        return type("Found", (), {"check": type("Check", (), {"usable": True}), "forward": path})

    monkeypatch.setattr(bridge, "normalize", normalize)
    monkeypatch.setattr(bridge, "load_template", lambda space: Template(space, f"T1w of {space}", None))
    bridge.between.cache_clear()
    first, second = bridge.between("a", "b"), bridge.between("a", "b")
    bridge.between.cache_clear()
    assert made == [("T1w of a", "b")] and first is second
    assert first.pull.TransformPoint((0, 0, 0)) == (1, 2, 3)
