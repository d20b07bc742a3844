"""What the benchmarks' figures rest on: left and right, truth that moves with its scan, intervals."""

from __future__ import annotations

import importlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

import benchmarks
from benchmarks import injected, lesions, real_flair, reflect_speed
from benchmarks.intervals import interval
from benchmarks.synthesis_fit import halved, upright
from bids_app import images
from bids_app.anomaly.autoencoder import Autoencoder
from bids_app.anomaly.velocity import Velocity
from bids_app.training.cases import Case
from tests.anomaly.models import AUTOENCODER, VELOCITY
from tests.conftest import stored_as

#: The grid of the pose, twice as coarse.
HEAD_AFFINE = np.array([[2, 0, 0, -98], [0, 2, 0, -134], [0, 0, 2, -72], [0, 0, 0, 1.0]])
LEFT = (-40, -20, 10)


@pytest.mark.parametrize("path", sorted(Path(benchmarks.__file__).parent.glob("*.py")), ids=lambda path: path.stem)
def test_every_benchmark_finds_what_it_measures(path: Path):
    importlib.import_module(f"benchmarks.{path.stem}")


def ball(shape, affine, center, radius) -> nib.Nifti1Image:
    grid = nib.affines.apply_affine(affine, np.indices(shape).transpose(1, 2, 3, 0))
    return nib.Nifti1Image((np.linalg.norm(grid - center, axis=-1) < radius).astype(np.uint8), affine)


@pytest.fixture(scope="module")
def head() -> images.Image:
    """A brain with the bounding box of MNI's, some of it fluid."""
    values = np.zeros((99, 117, 95), np.float32)
    x, y, z = np.indices(values.shape)
    inside = (abs(x - 49) <= 35) & (abs(y - 58.5) <= 44.5) & (abs(z - 40) <= 33.5)
    values[inside] = 100
    values[inside & (y > 95)] = 20
    return nib.Nifti1Image(values, HEAD_AFFINE)


@pytest.mark.parametrize("flip", [False, True])
def test_an_injected_lesion_lies_on_its_side(head, orientation: str, flip: bool):
    drawn = ball((91, 109, 91), np.array([[2, 0, 0, -90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]]), LEFT, 10)
    share = injected.placed(stored_as(drawn, orientation), head, flip)
    center = nib.affines.apply_affine(head.affine, np.argwhere(share > 0.5)).mean(axis=0)
    assert np.allclose(center, (40 if flip else -40, -20, 10), atol=2.5)


@pytest.mark.parametrize("stage", injected.STAGES)
def test_an_injected_lesion_is_darker_and_nothing_else_changes(head, stage: str):
    share = images.data(ball(head.shape, head.affine, LEFT, 10)).astype(float)
    scan, truth = injected.painted(head, share, stage, np.random.default_rng(0))
    change = images.data(scan) - images.data(head)
    assert truth.sum() == pytest.approx(share.sum(), rel=0.02)
    assert change[truth].mean() < -5 and abs(change[share == 0]).mean() < 0.05
    assert ((images.data(scan) > 0) == (images.data(head) > 0)).all()


def test_a_stored_slice_is_turned_so_that_right_is_right():
    stored = np.zeros((4, 6))  # (x, y), x growing to the left
    stored[0, 5] = 1
    assert np.argwhere(upright(stored)).tolist() == [[5, 3]], "most anterior, most right"
    assert halved(np.full((5, 4), 2.0)).tolist() == [[2, 2], [2, 2]]


def test_a_slice_is_centred_without_being_turned():
    brain = np.zeros((10, 8), bool)
    brain[0:4, 0:3] = True
    image = np.where(brain, np.arange(80).reshape(10, 8) + 1, 0)
    moved = real_flair.centered(image, brain, (12, 12))
    assert np.array_equal(moved[4:8, 4:7] if moved[4, 4] else moved[4:8, 5:8], image[0:4, 0:3])


def lesion_case() -> Case:
    image, truth = torch.zeros(2, 40, 40, 40), np.zeros((40, 40, 40), bool)
    image[:, 4:36, 4:36, 4:36] = 1
    truth[18:24, 10:16, 6:12] = True  # left of the middle
    image[:, torch.from_numpy(truth)] = 5
    return Case("head", "small", image, truth)


@pytest.mark.parametrize("name", list(lesions.DISTURBANCES))
def test_the_truth_stays_where_the_lesion_is(name: str):
    changed = lesions.disturbed(lesion_case(), name)
    bright = changed.image[0].numpy() > 3
    if not name.startswith(("slices", "noise", "bias")):
        assert 2 * (bright & changed.truth).sum() / (bright.sum() + changed.truth.sum()) > 0.85
    assert changed.truth.sum() == pytest.approx(lesion_case().truth.sum(), rel=0.15)


def test_a_flair_that_is_off_moves_to_the_left_and_the_t1w_stays():
    changed = lesions.disturbed(lesion_case(), "FLAIR 5 mm off").image.numpy()
    lesion = np.clip(changed - 1, 0, None)
    places = (np.arange(40) * lesion).sum(axis=(1, 2, 3)) / lesion.sum(axis=(1, 2, 3))
    assert places[0] - places[1] == pytest.approx(2.5, abs=0.3)


def test_left_and_right_are_exchanged():
    changed = lesions.disturbed(lesion_case(), "left and right exchanged")
    assert np.argwhere(changed.truth).mean(axis=0)[2] == pytest.approx(39 - 8.5)


def test_an_interval_holds_its_mean_and_shrinks_with_more_values():
    words = [interval(np.random.default_rng(1).normal(0.5, 0.1, n)) for n in (20, 2000)]
    widths = []
    for text in words:
        mean, low, high = (float(part) for part in text.replace("(", "").replace(")", "").replace(" to", "").split())
        assert low <= mean <= high
        widths.append(high - low)
    assert widths[1] < widths[0]


@pytest.mark.parametrize("frame", [(64, 48), (48, 48)])
def test_the_plain_reflect_and_ours_draw_the_same_map(frame):
    torch.manual_seed(0)
    networks = Autoencoder(AUTOENCODER).eval(), Velocity(VELOCITY, AUTOENCODER.latent_channels).eval()
    grey = reflect_speed.make_brain()[14:148:12, ::4, ::4]
    plain = reflect_speed.plain_maps(*networks, grey, 3, frame)
    ours = reflect_speed.our_model(*networks, frame, "cpu").explain(grey, 3).anomaly
    inside = grey > 0
    assert ours[inside].std() > 0.01 and ours[inside].min() > 0 and ours.max() < 1
    assert np.abs(plain - ours)[inside].max() < reflect_speed.TOLERANCE


def test_the_brain_that_is_timed_is_one_of_an_adult():
    grey = reflect_speed.make_brain()
    assert (grey > 0).sum() / 1e6 == pytest.approx(1.5, abs=0.05)
    assert reflect_speed.middle(grey, 8).any(axis=(1, 2)).all() and len(reflect_speed.middle(grey, 0)) == len(grey)
