"""The benchmark of real FLAIR slices: left is left, truth lies in its place, and measures of known maps are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks import reflect_flair
from benchmarks.reflect_flair import COLUMNS, SLICES, Bench, load, row_maps, scores
from benchmarks.unsupervised import Denoising, moments
from bids_app.anomaly import autoencoder, velocity
from bids_app.anomaly.slices import SHAPE
from bids_app.training.anatomy import split_of
from tests.anomaly.models import AUTOENCODER, VELOCITY


@pytest.fixture
def data(tmp_path):
    """Three patients of each use, stored as the real ones: ``(x, y)``, x growing to the left."""
    patients = {use: [f"{n:04d}" for n in range(400) if split_of(f"sub-{n:04d}") == use][:3] for use in USES}
    ids, flair, lesion = [], [], []
    for use in USES:
        for number, patient in enumerate(patients[use]):
            image, mask = np.zeros((2, 157, 189), np.uint8)
            image[30:130, 30:160] = np.random.default_rng(number).integers(60, 120, (100, 130))
            image[30:60, 100:160] = 200  # a bright corner tells the axes apart
            if use == "test" and number == 0:
                mask[35:50, 110:130] = 1
            ids.append(patient), flair.append(image), lesion.append(mask)
    (tmp_path / SLICES).parent.mkdir(parents=True)
    np.savez_compressed(tmp_path / SLICES, id=np.array(ids), flair=np.array(flair), lesion=np.array(lesion))
    return tmp_path


USES = ("train", "validation", "test")


def test_slices_are_split_by_patient_and_truth_lies_on_its_lesion(data):
    split = load(data)
    assert len(split.train) == len(split.validation) == len(split.test) == 3
    assert split.lesions.any(axis=(1, 2)).tolist() == [True, False, False]
    bright = split.test.images[0] > 200
    assert split.lesions[0].sum() == 300 and bright[split.lesions[0]].all()
    rows, columns = (axis.mean() for axis in np.nonzero(bright))
    # stored in LAS, at low x and high y: on the right and in front, which is at the top
    assert rows < SHAPE[1] / 2 and columns > SHAPE[2] / 2


def test_a_perfect_map_gets_full_marks_and_chance_gets_few(data):
    split = load(data)
    noise = np.random.default_rng(0)
    perfect = {id(split.test.images): split.lesions}
    found = scores(lambda grey: perfect.get(id(grey), 0) + 0.1 * noise.random(grey.shape), split)
    assert found["auprc"] == found["froc"] == 1 and found["alarmed"] == 0
    assert found["best_dice"] == pytest.approx(1, abs=0.02)
    assert scores(lambda grey: noise.random(grey.shape), split)["auprc"] < 0.1


def test_moments_are_of_those_that_have_brain_there():
    images = np.zeros((6, 40, 40), np.uint8)
    images[:3] = np.array([80, 100, 120])[:, None, None]
    mean, deviation = moments(images)
    np.testing.assert_allclose(mean, 100, atol=0.1)
    np.testing.assert_allclose(deviation, np.std([80, 100, 120]), atol=0.1)


def test_denoising_removes_what_a_network_knows_for_noise():
    way, image = Denoising(back=5), torch.full((2, 1, 64, 48), 0.3)
    noise = way.noise(image, seed=0)
    torch.testing.assert_close(noise.std(dim=(1, 2, 3)), torch.ones(2))
    assert not torch.equal(noise, way.noise(image))
    scheduler = way.scheduler()

    def knowing(noisy, time):
        """Whose healthy image is 0.3 everywhere."""
        share = scheduler.alphas_cumprod[round(float(torch.as_tensor(time).flatten()[0]) * 1000)]
        return (noisy - share**0.5 * 0.3) / (1 - share) ** 0.5

    lesion = image.clone()
    lesion[0, 0, 20:30, 20:30] = 0.9
    found = way.map(knowing, lesion)
    torch.testing.assert_close(found, (lesion - 0.3)[:, 0].abs(), atol=0.02, rtol=0)


TRAININGS = {
    "z-score": set(),
    "AE": {"ae"},
    "REFLECT-2 focal, 1 step": {"autoencoder", "reflect_focal", "straight_focal"},
    "REFLECT-1 focal bright by place, 1 step": {"autoencoder", "reflect_focal"},
    "REFLECT-1 f4, 1 step": {"f4/autoencoder", "f4/reflect_plain"},
}


@pytest.mark.parametrize("row", TRAININGS)
def test_a_row_is_trained_and_judged(data, tmp_path, monkeypatch, row):
    monkeypatch.setattr(reflect_flair, "BOTTLENECK", AUTOENCODER)
    for latents in ("f4", "f8"):
        monkeypatch.setitem(autoencoder.SIZES, f"tiny-{latents}", AUTOENCODER)
    monkeypatch.setitem(velocity.SIZES, "tiny", VELOCITY)
    monkeypatch.setitem(reflect_flair.BATCHES, "cpu", 2)
    monkeypatch.setattr("bids_app.training.reflect.learn.TEXTURE_COUNT", 2)
    split = load(data)
    bench = Bench(split, tmp_path / "out", seed=0, minutes=1e-4)
    function = row_maps(row, bench)
    found = function(split.test.images)
    assert found.shape == split.test.images.shape and np.isfinite(found).all() and found[split.test.images > 0].any()
    assert set(scores(function, split)) == set(COLUMNS)
    if row.startswith("REFLECT"):
        card = bench.model(row).card
        assert (card.steps, card.masked, card.contrast) == (1, False, "FLAIR")
        assert card.side == ("bright" if "bright" in row else "both")
    checkpoints = (tmp_path / "out").rglob("*.pth")
    assert {path.parent.relative_to(tmp_path / "out").as_posix() for path in checkpoints} == TRAININGS[row]
