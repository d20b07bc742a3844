"""What REFLECT learns to undo stays inside the brain and has the variance of a latent."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from bids_app.anomaly.corruption import draw_content, draw_patches, mixed, polygon, random_walks, shrunk
from bids_app.anomaly.focal import Focal, blotch
from bids_app.anomaly.morphology import Morphology, widened
from bids_app.anomaly.textures import draw_textures, texture_shape
from bids_app.anomaly.transport import transport
from bids_app.anomaly.velocity import with_context


def disc(shape=(48, 40)):
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return (rows - shape[0] / 2) ** 2 + (columns - shape[1] / 2) ** 2 < (min(shape) / 2.5) ** 2


def corrupted(latents, brains, textures, rng):
    """Latents with patches, as training makes them."""
    inside = shrunk(brains, latents.shape[2:])
    drawn = [draw_patches(mask, latents.shape[1], textures, rng) for mask in inside]
    content, opacity = (torch.stack([getattr(patches, part) for patches in drawn]) for part in ("content", "opacity"))
    return mixed(latents, content, opacity)


def test_patches_lie_inside_a_round_brain_and_some_samples_have_none():
    brain = torch.from_numpy(disc()).float().expand(200, -1, -1)
    latents = torch.zeros(200, 3, 48, 40)
    found = corrupted(latents, brain, None, np.random.default_rng(0)).abs().amax(dim=1) > 0
    assert not (found & (brain == 0)).any()
    healthy = 200 - int(found.flatten(1).any(dim=1).sum())
    assert 8 <= healthy <= 40  # a tenth
    shares = found.flatten(1).float().mean(dim=1)
    assert 0.01 < shares.mean() < 0.3


@pytest.mark.parametrize("corner", [(0, 0), (100, 60)])
def test_blotches_lie_all_over_a_small_brain_in_a_large_frame(corner):
    """As in high and low slices: not drawn to its edge from outside."""
    image = np.zeros((256, 256), np.uint8)
    image[corner[0] : corner[0] + 48, corner[1] : corner[1] + 40] = 100 * disc()
    image[corner[0] + 24 :] = np.where(image[corner[0] + 24 :] > 0, 200, 0)
    rng, focal = np.random.default_rng(0), Focal(share=1.0, most=1, radius=(1.5, 1.6), grain=0.0)
    changed = np.mean([focal(image, rng) != image for _ in range(600)], axis=0)
    inner = ndimage.binary_erosion(image > 0, iterations=5)
    rim = (image > 0) & ~inner
    assert 0.3 < changed[rim].mean() / changed[inner].mean() < 1.1


def test_the_same_seed_corrupts_alike_and_an_empty_brain_not_at_all():
    latents, brain = torch.randn(4, 3, 24, 20), torch.from_numpy(disc((24, 20))).float().expand(4, -1, -1)
    first, second = (corrupted(latents, brain, None, np.random.default_rng(1)) for _ in range(2))
    assert torch.equal(first, second) and not torch.equal(first, latents)
    assert torch.equal(corrupted(latents, torch.zeros(4, 24, 20), None, np.random.default_rng(1)), latents)


def test_few_objects_are_likelier_than_many():
    rng = np.random.default_rng(0)
    counts = np.bincount([len(random_walks(disc(), rng)) for _ in range(600)], minlength=5)[1:]
    assert np.allclose(counts / 600, [0.48, 0.24, 0.16, 0.12], atol=0.06)


def test_textures_fill_half_of_the_objects():
    textures = torch.full((3, 2, 30, 30), 100.0)
    brain = torch.from_numpy(disc((24, 20))).float().expand(300, -1, -1)
    found = corrupted(torch.zeros(300, 2, 24, 20), brain, textures, np.random.default_rng(0))
    marked = found.abs().amax(dim=1).flatten(1)
    textured = (marked.amax(dim=1) > 20)[marked.amax(dim=1) > 0].float().mean()
    assert 0.45 < textured < 0.85  # one in two objects, and more than one object in half of the samples


@pytest.mark.parametrize("shape", [(192, 160), (256, 256), (36, 44)])
def test_textures_are_larger_than_slices_and_cut_anywhere(shape):
    larger = texture_shape(shape)
    assert all(size < large and large % 32 == 0 for size, large in zip(shape, larger, strict=True))
    textures = torch.arange(16 * 14, dtype=torch.float32).reshape(1, 1, 16, 14)
    rng = np.random.default_rng(0)
    corners = {float(draw_content((12, 10), 1, textures, rng)[0, 0, 0]) for _ in range(200)}
    assert len({corner for corner in corners if corner == round(corner)}) == 5 * 5


def test_mixing_keeps_the_variance():
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(100_000, generator=generator) for _ in range(2))
    for opacity in (0.2, 0.5, 1.0):
        assert mixed(first, second, torch.tensor(opacity)).std() == pytest.approx(1, abs=0.02)
    assert torch.equal(mixed(first, second, torch.tensor(0.0)), first)


def test_a_polygon_is_filled_and_has_its_points():
    square = polygon([(2, 2), (8, 2), (8, 6), (2, 6)], (10, 12))
    assert square[2:7, 2:9].all() and square.sum() == 35
    assert polygon([(3, 4)], (10, 12)).sum() == 1


def test_textures_are_varied_and_in_range():
    drawn = draw_textures(40, (64, 48), np.random.default_rng(0))
    assert drawn.shape == (40, 64, 48) and drawn.min() >= -1 and drawn.max() <= 1
    assert (drawn.std(axis=(1, 2)) > 0.02).all() and np.ptp(drawn.mean(axis=(1, 2))) > 0.5


def test_widening_moves_the_border_and_nothing_far_away():
    image = np.full((96, 80), 200, np.uint8)
    image[:8] = image[-8:] = 0
    image[40:56, 30:50] = 20
    fluid = image == 20
    wide, narrow = (widened(image, fluid, pixels, 3.0) for pixels in (4.0, -4.0))
    areas = [np.count_nonzero((each > 0) & (each < 110)) for each in (narrow, image, wide)]
    assert areas[0] < areas[1] - 50 and areas[2] > areas[1] + 50
    assert np.array_equal(wide > 0, image > 0)
    assert np.array_equal(wide[:, :10], image[:, :10])


def test_morphology_leaves_its_share_alone():
    image = np.where(disc((96, 80)), 200, 0).astype(np.uint8)
    image[44:52, 36:44] = 10
    rng = np.random.default_rng(0)
    changed = [not np.array_equal(Morphology(share=0.5)(image, rng), image) for _ in range(60)]
    assert 10 < sum(changed) < 45
    assert not Morphology(share=1.0)(np.zeros((96, 80), np.uint8), rng).any()


@pytest.mark.parametrize("steps", [1, 5, 49, 98, 103])
def test_transport_takes_exactly_so_many_steps(steps):
    times = []

    def constant(latents, time):
        times.append(time)
        return torch.ones_like(latents)

    moved = transport(constant, torch.zeros(1, 2, 4, 4), steps)
    assert len(times) == steps and times[0] == 0 and times[-1] < 1
    assert torch.allclose(moved, torch.ones(1, 2, 4, 4), atol=1e-5)


def test_context_is_neighbours_from_below_to_above():
    latents = torch.arange(4.0).view(4, 1, 1, 1)
    assert with_context(latents, 1).flatten(1).tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 3]]
    assert with_context(latents, 0) is latents


def test_blotches_are_soft_edged_and_have_a_tone_of_the_brain():
    image = np.where(disc((96, 80)), 120, 0).astype(np.uint8)
    image[40:60, 30:50] = 30
    blotched = Focal(share=1.0, most=1, grain=0.0, opacity=(1.0, 1.0))
    drawn = [blotched(image, np.random.default_rng(seed)) for seed in range(40)]
    assert all(((each > 0) == (image > 0)).all() for each in drawn)
    changed = [each for each in drawn if (each != image).any()]
    assert len(changed) > 20
    assert all(each[image > 0].min() >= 30 and each.max() <= 120 for each in changed)


def test_blotches_end_before_the_square_they_are_drawn_in():
    rng = np.random.default_rng(0)
    blotches = [blotch(np.exp(rng.uniform(1, 3)), rng.uniform(*Focal.edge), rng) for _ in range(200)]
    at_border = [max(each[0].max(), each[-1].max(), each[:, 0].max(), each[:, -1].max()) for each in blotches]
    assert max(at_border) < 0.3 and np.mean(np.array(at_border) > 0.02) < 0.05


def test_slices_side_by_side_are_blotched_at_the_same_spot():
    lower, upper = (np.where(disc(shape), 100, 0).astype(np.uint8) for shape in ((96, 80), (96, 80)))
    lower[::7] = upper[1::7] = 0
    values = np.random.default_rng(0).integers(1, 60, lower.shape).astype(np.uint8)
    lower, upper = (np.where(each > 0, each + values, 0).astype(np.uint8) for each in (lower, upper))
    spots = []
    for image in (lower, upper):
        changed = Focal(share=1.0, most=1)(image, np.random.default_rng(3)) != image
        spots.append(np.argwhere(changed).mean(axis=0))
    assert np.abs(spots[0] - spots[1]).max() < 2


def test_focal_corruption_leaves_its_share_alone():
    image, rng = np.where(disc((96, 80)), 120, 0).astype(np.uint8), np.random.default_rng(0)
    image[40:60, 30:50] = 30
    kept = sum((Focal(share=0.5)(image, rng) == image).all() for _ in range(100))
    assert 35 < kept < 75
    assert not Focal(share=1.0)(np.zeros_like(image), rng).any()
