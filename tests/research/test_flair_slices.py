"""The 2-D network for real FLAIR slices: sides, what is learned from, how training goes on, and what is scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from research.flair_slices import train
from research.flair_slices.augmentation import Batch, augmented, plain
from research.flair_slices.evaluate import best_point, marked, score
from research.flair_slices.losses import slice_loss
from research.flair_slices.network import SliceUNet
from research.flair_slices.slices import FILES, SHAPES, Slices, load_slices, zscored
from research.flair_slices.train import Pool, Training, rate_at, train_step

#: Of the files: x (to the left), y, z without the axis of the plane.
STORED = {"axial": (157, 189), "sagittal": (189, 136), "coronal": (157, 136)}
#: A train patient without earlier stroke, one with, a validation and a test patient; none has a row for 1008.
PATIENTS = (1002, 1004, 1001, 1003, 1008)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Files in the format of the real ones: a brain, bright in the middle of its left front, lower part."""
    root = tmp_path_factory.mktemp("data")
    folder = root / "stroke_flair_slices"
    folder.mkdir()
    (root / "lesion_masks").mkdir()
    rows = ["participant_id\tpriorstroke", "sub-1002\t0.0", "sub-1004\t1.0", "sub-1001\tn/a", "sub-1003\t0.0"]
    (root / "lesion_masks" / "SOOP_participants.tsv").write_text("\n".join(rows) + "\n")
    contrasts = ["participant_id\tplane\tlesion_px\tcontrast"]
    for plane, shape in STORED.items():
        rng = np.random.default_rng(0)
        flair = np.zeros((len(PATIENTS), *shape), np.uint8)
        flair[:, 30:-30, 30:-30] = rng.integers(90, 110, (len(PATIENTS), shape[0] - 60, shape[1] - 60))
        lesion = np.zeros_like(flair)
        # x grows to the left: the last columns of the first axis are left (axial, coronal) or in front (sagittal)
        spot = np.s_[-50:-40, -45:-35] if plane == "axial" else np.s_[-50:-40, 35:45]
        for index, patient in enumerate(PATIENTS):
            flair[index][spot] = 200
            lesion[index][spot] = patient in (1002, 1003)
            contrasts.append(f"{patient}\t{plane}_x\t{lesion[index].sum()}\t{2.5 if lesion[index].any() else 'n/a'}")
        np.savez(folder / FILES[plane], id=np.array(PATIENTS), flair=flair, lesion=lesion)
    (folder / "contrast.tsv").write_text("\n".join(contrasts) + "\n")
    return root


@pytest.mark.parametrize(("plane", "front_or_left"), [("axial", "left"), ("sagittal", "front"), ("coronal", "left")])
def test_left_front_and_top_are_where_the_module_says(data, plane, front_or_left):
    slices = load_slices(data, plane)
    assert slices.image.shape == (len(PATIENTS), *SHAPES[plane])
    rows, columns = np.argwhere(slices.lesion[0]).mean(axis=0) - (np.array(SHAPES[plane]) - 1) / 2
    assert (columns < 0) if front_or_left == "left" else (columns > 0)
    assert (rows > 0) == (plane == "axial")  # in front of the middle; below it in the other planes
    assert slices.image[0][slices.lesion[0]].min() > 2


def test_patients_are_split_by_their_number(data):
    slices = load_slices(data, "axial")
    assert slices.of_split("train").patients == (1002, 1004, 1008)
    assert slices.of_split("validation").patients == (1001,)
    assert slices.of_split("test").patients == (1003,)


def test_unmarked_spots_are_ignored_where_an_earlier_stroke_may_be(data):
    slices = load_slices(data, "coronal")
    assert slices.earlier_stroke.tolist() == [False, True, True, False, True]
    spot = slices.lesion[0]
    assert not slices.ignored[0].any()  # no earlier stroke: what is not marked is healthy
    assert slices.ignored[1][spot].all()
    assert slices.ignored[1].sum() < 0.3 * (slices.image[1] != 0).sum()


def test_grey_values_are_scored_inside_the_brain_alone():
    image = np.zeros((10, 10))
    image[2:8, 2:8] = np.arange(36).reshape(6, 6) + 1
    scored = zscored(image)
    inside = scored[2:8, 2:8]
    assert inside.mean() == pytest.approx(0, abs=1e-6)
    assert inside.std() == pytest.approx(1, abs=1e-5)
    assert not scored[:2].any()
    assert not zscored(np.zeros((3, 3))).any()


@pytest.fixture
def batch(data) -> Batch:
    slices = load_slices(data, "axial")[np.array([0, 1, 3, 4])]
    parts = (slices.image, slices.lesion, slices.ignored)
    return Batch(*(torch.from_numpy(part.astype(np.float32))[:, None] for part in parts))


def test_lesions_stay_on_what_they_mark_however_a_slice_is_changed(batch):
    rng = torch.Generator().manual_seed(1)
    for _ in range(3):
        seen, changed = augmented(batch, batch, True, rng)
        assert seen.shape == (4, 2, *SHAPES["axial"])
        assert torch.isfinite(seen).all()
        for image, lesion in zip(changed.image, changed.lesion, strict=True):
            if lesion.any():
                assert image[lesion > 0].mean() > image[(lesion == 0) & (image != 0)].mean() + 1


def test_augmentation_depends_on_its_generator_alone(batch):
    first, second = (augmented(batch, batch, True, torch.Generator().manual_seed(3))[0] for _ in range(2))
    torch.testing.assert_close(first, second)


def test_a_sagittal_slice_has_no_other_side(batch):
    assert not plain(batch.image, mirrored=False)[:, 1].any()
    torch.testing.assert_close(plain(batch.image, mirrored=True)[:, 1:], batch.image.flip(-1))


def test_logits_have_the_size_of_the_slice_at_every_level():
    levels = SliceUNet((8, 16, 16))(torch.zeros(1, 2, 64, 32))
    assert [tuple(level.shape) for level in levels] == [(1, 1, 64, 32), (1, 1, 32, 16)]
    assert torch.sigmoid(levels[0]).max() < 0.06  # it begins with few lesions


def test_what_is_ignored_teaches_nothing():
    lesion = torch.zeros(1, 1, 16, 16)
    counted = torch.ones(1, 1, 16, 16)
    counted[..., :8] = 0
    logits = torch.zeros(1, 1, 16, 16, requires_grad=True)
    slice_loss([logits], lesion, counted, torch.ones(1)).backward()
    assert not logits.grad[..., :8].any()
    assert logits.grad[..., 8:].all()


def test_a_lesion_that_cannot_be_seen_counts_less():
    lesion = torch.zeros(1, 1, 16, 16)
    lesion[..., 4:8, 4:8] = 1
    gradients = []
    for weight in (1.0, 0.3):
        logits = torch.full((1, 1, 16, 16), -2.0, requires_grad=True)
        slice_loss([logits], lesion, torch.ones_like(lesion), torch.tensor([weight])).backward()
        gradients.append(-float(logits.grad[lesion > 0].sum()))
    assert 0 < gradients[1] < 0.5 * gradients[0]


def test_the_rate_rises_stays_and_falls():
    assert rate_at(0, 1000) == 0.01
    assert rate_at(500, 1000) == 1
    assert rate_at(900, 1000) == pytest.approx(0.4)


def test_a_training_goes_on_as_if_it_had_not_been_broken_off(data, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "BATCH", 2)
    pool = Pool.of(load_slices(data, "axial")[np.array([0, 1, 3, 4])])
    whole = Training.begin(seed=0)
    for _ in range(2):
        train_step(whole, pool, seed=0, steps=100)
    broken = Training.begin(seed=0)
    train_step(broken, pool, seed=0, steps=100)
    broken.save(tmp_path / "latest.pth")
    again = Training.begin(seed=5)
    again.load(tmp_path / "latest.pth")
    train_step(again, pool, seed=0, steps=100)
    assert again.step == 2
    for mine, theirs in zip(whole.average.parameters(), again.average.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


def test_a_fold_leaves_its_patients_out(data):
    slices = load_slices(data, "axial")
    assert 1002 not in train.patients_of_fold(slices, 1002 // 10 % train.FOLDS).patients
    assert train.patients_of_fold(slices, None) is slices


def test_only_components_with_a_peak_are_marked():
    probability = np.zeros((1, 20, 20), np.float32)
    probability[0, 2:6, 2:6] = 0.4
    probability[0, 3, 3] = 0.9
    probability[0, 10:14, 10:14] = 0.4
    assert marked(probability, 0.3).sum() == 32
    assert marked(probability, 0.3, 0.8)[0, :8, :8].sum() == 16
    assert marked(probability, 0.3, 0.8).sum() == 16


@pytest.fixture
def four() -> tuple[Slices, np.ndarray]:
    """A visible lesion that is found, an invisible one that is not, a clean slice, and one with a false alarm."""
    lesion = np.zeros((4, 20, 20), bool)
    lesion[:2, 2:7, 2:7] = True
    probability = np.where(lesion, 0.9, 0.0).astype(np.float32)
    probability[1] = 0
    probability[3, 5:10, 5:10] = 0.6
    image = np.ones(lesion.shape, np.float16)
    contrast = np.array([2.0, 0.1, np.nan, np.nan])
    return Slices("axial", (1, 2, 3, 4), image, lesion, lesion & False, contrast, np.zeros(4, bool)), probability


def test_scores_of_slices(four):
    slices, probability = four
    scores = score(marked(probability, 0.5), slices)
    assert scores.dice[:2].tolist() == [1, 0]
    assert np.isnan(scores.dice[2:]).all()
    assert scores.pooled == pytest.approx(2 * 25 / (50 + 50))
    assert scores.pooled_visible == 1
    assert scores.alarmed == 0.5


def test_the_operating_point_keeps_clean_slices_clean(four):
    slices, probability = four
    low, high, scores = best_point(probability, slices, alarmed=0.1)
    assert scores.alarmed == 0
    assert high > 0.6 or low > 0.6
    assert scores.dice[0] == 1
