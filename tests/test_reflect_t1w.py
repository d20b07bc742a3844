"""What happens to the patients of `benchmarks.reflect_t1w`: each change does what it says, where it says it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest
import torch
from torch import Generator

from benchmarks import atrophy, reflect_t1w
from benchmarks.atrophy import LEFT, RIGHT, Change, Region
from bids_app.anomaly.model import load_anomaly_model
from bids_app.anomaly.slices import CENTRE_MM, SHAPE
from bids_app.measures.froc import joined
from bids_app.training.anatomy import Head
from bids_app.training.synthesis.fields import sample
from bids_app.training.synthesis.geometry import rotation_matrix
from bids_app.training.synthesis.healthy import HealthyBrain, healthy_brain
from bids_app.training.synthesis.tissue import Source, make_source
from tests.anomaly.models import VELOCITY, write_anomaly_model
from tests.training.heads import toy_head, toy_lesion

FLUID, CSF, GREY = (4, 43), (24,), (3, 42)


def two_halves(labels: np.ndarray) -> np.ndarray:
    """The toy's labels with those of the right hemisphere on the right, a sulcus in each, and a septum."""
    middle = labels.shape[2] // 2
    labels = labels.copy()
    septum, right = labels[:, :, middle - 4 : middle + 4], labels[:, :, middle:]
    septum[septum == 4] = 2
    for left_label, right_label in ((4, 43), (3, 42), (2, 41)):
        right[right == left_label] = right_label
    for row in (slice(20, 28), slice(labels.shape[2] - 28, labels.shape[2] - 20)):
        sulcus = labels[:, 90:93, row]
        sulcus[np.isin(sulcus, (2, 3, 41, 42))] = 24
    return labels


@pytest.fixture(scope="module")
def head() -> Head:
    """A head whose grid is turned against its pose, as those of real label maps are."""
    toy = toy_head("training_seg_15")
    turn = np.eye(4)
    turn[:3, :3] = rotation_matrix((0, 0, 8))
    return replace(toy, labels=two_halves(toy.labels), pose_to_voxel=toy.pose_to_voxel @ turn, pose_to_mni=turn)


@pytest.fixture(scope="module")
def source(head: Head) -> Source:
    return make_source(head)


@pytest.fixture(scope="module")
def twin(source: Source) -> HealthyBrain:
    return healthy_brain(source, Generator().manual_seed(3))


def region(head: Head, side: int) -> Region:
    """Around the sulcus of one side."""
    z, y, _ = (size // 2 for size in head.labels.shape)
    return Region(np.array([z, y, 26 if side == LEFT else head.labels.shape[2] - 26]), 30.0, side)


CHANGES = {
    "wide ventricles": (lambda head, side: atrophy.dilate_ventricles(head, (side,), 4.0), FLUID, 1),
    "wide sulci": (lambda head, side: atrophy.widen_sulci(head, region(head, side), 2.0), CSF, 1),
    "thin cortex": (lambda head, side: atrophy.thin_cortex(head, region(head, side), 0.6), GREY, -1),
}
"""What is done, the labels whose volume changes, and whether it grows or shrinks."""


@pytest.fixture(scope="module")
def change(head: Head) -> Callable[[str, int], Change]:
    """A change by kind and side, made once."""
    return cache(lambda kind, side: CHANGES[kind][0](head, side))


def volumes(head: Head, points: torch.Tensor, labels: tuple[int, ...]) -> dict[int, float]:
    """Volume of some labels in the left and in the right half of the box, mm3."""
    share = torch.from_numpy(np.isin(head.labels, labels).astype(np.float32))[None, None]
    seen = sample(share, points, head.pose_to_voxel)[0, 0]
    middle = round((SHAPE[2] - 1) / 2 - CENTRE_MM[0] + 0.5)
    return {LEFT: float(seen[..., :middle].sum()), RIGHT: float(seen[..., middle:].sum())}


@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.parametrize("side", [LEFT, RIGHT])
def test_a_change_does_what_it_says_on_its_side(head, twin, change, kind: str, side: int):
    _, labels, sign = CHANGES[kind]
    changed = volumes(head, twin.points + change(kind, side).at(twin.points), labels)
    before = volumes(head, twin.points, labels)
    assert sign * (changed[side] - before[side]) > 500
    assert abs(changed[-side] - before[-side]) < 0.1 * abs(changed[side] - before[side])


@pytest.mark.parametrize("kind", CHANGES)
def test_truth_is_where_the_change_is(source, twin, change, kind: str):
    look = change(kind, LEFT).at(twin.points)
    patient = healthy_brain(source, Generator().manual_seed(3), deform=look)
    truth = reflect_t1w.case_of(patient, twin).truth == reflect_t1w.OBJECT
    moved = (look[0].norm(dim=-1) > 0.2).numpy()[:, ::-1]
    assert truth.any() and truth[:, :, : SHAPE[2] // 2 + 4].sum() > 0.95 * truth.sum(), "columns grow to the right"
    assert (truth & moved).sum() > 0.6 * truth.sum()
    middle = np.argwhere(truth).mean(axis=0) - np.argwhere(moved).mean(axis=0)
    assert np.abs(middle).max() < 12, "rows and slices too"


def test_a_twin_without_change_is_equal(source, twin):
    again = healthy_brain(source, Generator().manual_seed(3), deform=torch.zeros(3), paint=lambda image, tissue: image)
    assert torch.equal(again.image, twin.image) and torch.equal(again.mask, twin.mask)
    assert not reflect_t1w.case_of(again, twin).truth.any()


@pytest.mark.parametrize("kind", CHANGES)
def test_no_change_moves_the_skull_or_folds_tissue(head, change, kind: str):
    look = change(kind, LEFT).look
    outside = (head.labels == 0) | (head.labels >= 202)
    assert np.abs(look[:, outside]).max() < 1.5, "no more than the last blur leaves"
    along = np.stack([1 + np.gradient(look[i], axis=2 - i) for i in range(3)])
    assert (along > 0).mean() > 0.999


@pytest.mark.parametrize("stage", reflect_t1w.STAGES)
def test_a_lesion_is_darker_and_where_its_truth_is(source, twin, stage: str):
    case = reflect_t1w.focal_case(source, twin, [[toy_lesion()]], stage, 3)
    before, inside = reflect_t1w.patient_grey(twin, twin), case.truth == reflect_t1w.OBJECT
    change = case.grey.astype(float) - before
    assert inside.sum() > 1000 and change[inside].mean() < -20
    assert np.abs(change[case.truth == 0]).mean() < 2
    assert len(case.levels) == reflect_t1w.LEVELS


def test_what_touches_any_truth_is_no_false_positive():
    truth, anomaly = (np.zeros(SHAPE[1:], kind) for kind in (np.uint8, np.float32))
    truth[20:30, 20:30], truth[30:34, 20:30] = reflect_t1w.OBJECT, reflect_t1w.TOUCHED
    truth[60:63, 60:63] = reflect_t1w.OBJECT  # too small to be asked for
    for rows, value in ((slice(32, 40), 0.5), (slice(60, 70), 0.6), (slice(100, 110), 0.7)):
        anomaly[rows, 20:65] = value
    found = reflect_t1w.judged(anomaly, truth, 0.4)
    assert found.objects.tolist() == [0.0] and found.false_positives == pytest.approx([0.7])
    anomaly[25:40, 20:25] = 0.8
    assert reflect_t1w.judged(anomaly, truth, 0.4).objects == pytest.approx([0.8])
    summary = reflect_t1w.summary([joined([found]), joined([reflect_t1w.judged(anomaly, truth, 0.4)])])
    assert summary["objects"] == 2 and summary["images"] == 2 and summary["found"]["1.0"][0] == pytest.approx(0.5)


@pytest.mark.parametrize("sees", [{}, {"context": 1}, {"volumetric": True}])
def test_some_slices_have_the_anomaly_of_the_whole_brain(tmp_path, sees: dict):
    model = load_anomaly_model(write_anomaly_model(tmp_path / "tiny", replace(VELOCITY, **sees)))
    for name, weights in model.velocity.named_parameters():
        if "mix" in name:
            torch.nn.init.normal_(weights, 0, 0.3)
    grey = np.random.default_rng(0).integers(1, 255, (24, 32, 32)).astype(np.uint8)
    levels = [6, 7, 12]
    assert np.allclose(reflect_t1w.model_map(model, grey, levels), model.explain(grey).anomaly[levels], atol=1e-5)


def test_a_family_is_kept_and_measured(tmp_path):
    cases = {}
    for number, kind in enumerate(reflect_t1w.KINDS):
        grey, truth = np.full(SHAPE, 100, np.uint8), np.zeros(SHAPE, np.uint8)
        truth[70:90, 50 + number : 70, 50:70] = reflect_t1w.OBJECT
        grey[truth > 0] = 250
        cases[kind] = reflect_t1w.Case(grey, truth)
    family = reflect_t1w.Family("training_seg_15", np.full(SHAPE, 100, np.uint8), cases)
    family.save(tmp_path / "000.npz")
    known = reflect_t1w.Family.load(tmp_path / "000.npz")
    assert known.head == family.head and (known.cases["lesion"].grey == cases["lesion"].grey).all()
    mean = np.full(SHAPE, 100.0, np.float32)
    found = reflect_t1w.judged_family(partial(reflect_t1w.z_map, mean, mean), known, 0.5)
    assert all(each.images == 2 * reflect_t1w.LEVELS and (each.objects > 0.5).all() for each in found.values())
    assert not any(len(each.false_positives) for each in found.values())
