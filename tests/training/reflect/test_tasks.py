"""Batches of slices and stacks, and the losses on them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from bids_app.anomaly.autoencoder import Autoencoder
from bids_app.anomaly.corruption import shrunk
from bids_app.anomaly.focal import Focal
from bids_app.anomaly.morphology import Morphology
from bids_app.anomaly.transport import transport
from bids_app.anomaly.velocity import Velocity
from bids_app.training.reflect.slices import Slices, augmented
from bids_app.training.reflect.tasks import (
    CorruptedBatches,
    FlowLoss,
    Latents,
    ReflowLoss,
    SliceBatches,
    Stacks,
    velocity_loss,
)
from tests.anomaly.models import AUTOENCODER, VELOCITY
from tests.training.reflect.conftest import some_slices


def test_the_same_number_gives_the_same_batch():
    batches = CorruptedBatches(some_slices(), 4, 0, channels=2, changes=[Morphology(), Focal()])
    for one, other in zip(batches(3), batches(3), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(batches(3)[0], batches(4)[0])


def test_stacks_follow_each_other_in_one_brain():
    slices = some_slices(3)
    shuffled = slices[np.random.default_rng(0).permutation(len(slices))]
    places = shuffled.stacks(5)
    subjects, heights = np.array(shuffled.subjects)[places], shuffled.heights[places]
    assert (subjects == subjects[:, :1]).all() and (np.diff(heights, axis=1) == 1).all()
    assert len(places) == sum(subject_count - 4 for subject_count in np.unique(slices.subjects, return_counts=True)[1])


def test_no_stack_spans_what_was_left_out():
    slices = some_slices(1)
    kept = slices[np.flatnonzero(slices.heights != slices.heights[8])]
    heights = kept.heights[kept.stacks(4)]
    assert (np.diff(heights, axis=1) == 1).all() and len(heights)


def test_single_slices_are_all_there():
    slices = some_slices(2)
    assert sorted(slices.stacks(1).ravel()) == list(range(len(slices)))


def test_a_stack_is_varied_alike():
    stack = np.repeat(some_slices(1).images[5:6], 4, axis=0)
    for seed in range(6):
        varied = augmented(stack, np.random.default_rng(seed))
        assert (varied == varied[0]).all()


def test_slices_are_mirrored_and_shifted_and_keep_front_and_back_and_background():
    """A brain with a bright mark in front on the left."""
    slice_ = np.zeros((64, 96), np.uint8)
    slice_[16:48, 24:72] = 100
    slice_[20:24, 28:36] = 200
    drawn = [augmented(slice_[None], np.random.default_rng(seed))[0] for seed in range(200)]
    assert all(drawn_slice.dtype == np.uint8 for drawn_slice in drawn)
    rows, columns = np.transpose([ndimage.center_of_mass(image > image.max() - 20) for image in drawn])
    sides = columns - np.array([ndimage.center_of_mass(image > 0)[1] for image in drawn])
    fronts = rows - np.array([ndimage.center_of_mass(image > 0)[0] for image in drawn])
    np.testing.assert_allclose(fronts, -10, atol=0.01)  # never turned over
    np.testing.assert_allclose(np.abs(sides), 16, atol=0.01)
    assert 0.4 < (sides > 0).mean() < 0.6
    assert all((image > 0).sum() == 32 * 48 for image in drawn)
    moved = rows - 21.5
    assert set(np.round(moved)) == {-2, -1, 0, 1, 2}  # 1/32 of 64 rows
    assert 0.3 < np.mean([image.max() == 200 for image in drawn]) < 0.7  # and some are brighter or darker


def test_a_stack_is_corrupted_alike_on_a_run_of_slices():
    same = some_slices(1)
    same = Slices(np.repeat(same.images[8:9], 16, axis=0), ("00",) * 16, np.arange(16.0))
    batches = CorruptedBatches(same, 16, 0, stack=8, channels=2)
    for number in range(8):
        _, _, opacity, _ = batches(number)
        for stack in opacity.split(8):
            patched = np.flatnonzero(stack.flatten(1).any(dim=1).numpy())
            if len(patched):
                assert len(patched) == patched[-1] - patched[0] + 1
                assert all(torch.equal(stack[level], stack[patched[0]]) for level in patched)


def test_healthy_slices_are_what_the_flow_ends_at():
    batches = CorruptedBatches(some_slices(), 6, 1, channels=2, changes=[Morphology(share=1.0)])
    seen, healthy, opacity, content = batches(0)
    assert not torch.equal(seen, healthy)
    autoencoder = Autoencoder(AUTOENCODER).eval()
    start, end = Latents(autoencoder)((seen, healthy, torch.zeros_like(opacity), content))
    assert start.shape == end.shape == (6, 2, 16, 12)
    assert not torch.allclose(start, end)


def test_the_loss_is_that_of_the_straight_line():
    """A network that knows the velocity has none."""
    start, end = torch.randn(4, 2, 8, 8), torch.randn(4, 2, 8, 8)
    assert velocity_loss(lambda latents, time, stack: end - start, start, end) == 0
    assert velocity_loss(lambda latents, time, stack: torch.zeros_like(start), start, end) == pytest.approx(
        float(((end - start) ** 2).mean())
    )


def test_the_line_begins_at_what_is_corrupted():
    """A network that returns what it is shown is shown start + t (end - start)."""
    start, end, times = torch.zeros(64, 1, 2, 2), torch.ones(64, 1, 2, 2), []

    def network(latents, time, stack):
        times.append(time)
        torch.testing.assert_close(latents, time[:, None, None, None].expand_as(latents))
        return latents

    velocity_loss(network, start, end)
    assert times[0].min() < 0.2 and times[0].max() > 0.8


def test_a_share_of_the_lines_is_looked_at_where_it_begins():
    start, end, times = torch.zeros(400, 1, 2, 2), torch.ones(400, 1, 2, 2), []
    velocity_loss(lambda latents, time, stack: times.append(time) or latents, start, end, at_start=0.5)
    assert 0.4 < float((times[0] == 0).float().mean()) < 0.6


def test_corruption_is_mixed_into_the_latent():
    autoencoder = Autoencoder(AUTOENCODER).eval()
    batch = CorruptedBatches(some_slices(), 6, 2, channels=2)(0)
    torch.manual_seed(0)
    start, end = Latents(autoencoder)(batch)
    _, _, opacity, content = batch
    assert opacity.max() > 0.1
    torch.testing.assert_close(start, (1 - opacity).sqrt() * end + opacity.sqrt() * content)


@pytest.mark.parametrize("size", [replace(VELOCITY, context=1), replace(VELOCITY, volumetric=True)])
def test_neighbours_are_seen(size):
    torch.manual_seed(0)
    network = Velocity(size, 2).eval()
    for module in network.modules():
        if type(module).__name__ == "_AcrossSlices":
            torch.nn.init.normal_(module.mix.weight, 0, 0.1)
    stacks, latents = Stacks(4, size.context), torch.randn(8, 2, 16, 12)
    before = stacks.velocity(network, latents, torch.zeros(8))
    latents[1] += 1
    changed = (stacks.velocity(network, latents, torch.zeros(8)) - before).flatten(1).abs().amax(dim=1) > 1e-4
    assert changed[:3].all() and not changed[4:].any()  # the neighbours, and nothing of the other stack


def test_a_volumetric_network_begins_as_one_of_single_slices():
    torch.manual_seed(0)
    network = Velocity(replace(VELOCITY, volumetric=True), 2).eval()
    latents = torch.randn(4, 2, 16, 12)
    together, alone = network(latents, 0.3), torch.cat([network(each[None], 0.3) for each in latents])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", [(16, 12), (15, 11), (24, 20)])
def test_a_velocity_has_the_shape_of_its_latent(shape):
    size = replace(VELOCITY, channels=(8, 8, 8), attention=(False, False, False))
    assert Velocity(size, 2)(torch.randn(1, 2, *shape), 0.5).shape == (1, 2, *shape)


def test_reflow_learns_where_the_teacher_goes():
    torch.manual_seed(0)
    autoencoder, teacher = Autoencoder(AUTOENCODER).eval(), Velocity(VELOCITY, 2).eval()
    batch = CorruptedBatches(some_slices(), 4, 0, channels=2)(0)
    loss = ReflowLoss(Latents(autoencoder), teacher)
    torch.manual_seed(1)
    start, _ = loss.latents(batch)
    goal = transport(teacher, start, 5) - start
    torch.manual_seed(1)
    learned = loss(lambda latents, time, stack: goal, batch, 0).detach()
    assert float(learned) == pytest.approx(0, abs=1e-10)


def test_losses_have_gradients():
    autoencoder, network = Autoencoder(AUTOENCODER).eval(), Velocity(VELOCITY, 2)
    FlowLoss(Latents(autoencoder))(network, CorruptedBatches(some_slices(), 4, 0, channels=2)(0), 0).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_batches_hold_what_is_asked_for():
    (image,) = SliceBatches(some_slices(), 6, 0, stack=3)(0)
    assert image.shape == (6, 1, 64, 48) and image.min() == -1


def test_patches_are_cut_to_the_brain_whatever_its_shape():
    """Random walks stay inside, but their polygons span what a brain folds around."""
    horseshoe = np.zeros((64, 48), np.uint8)
    horseshoe[6:58, 4:44] = 200
    horseshoe[6:46, 14:34] = 0
    slices = Slices(np.repeat(horseshoe[None], 4, axis=0), tuple("0123"), np.zeros(4))
    for number in range(30):
        _, healthy, opacity, _ = CorruptedBatches(slices, 4, 0, channels=2)(number)
        cells = shrunk((healthy[:, 0] + 1) * 127.5, (16, 12))
        assert not opacity.flatten(0, -3).numpy()[~cells].any()
