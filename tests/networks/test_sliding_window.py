"""Windows, weights, mirrors and memory of the sliding window."""

import numpy as np
import pytest
import torch

from bids_app.errors import VisitError
from bids_app.networks import sliding_window
from bids_app.networks.sliding_window import gaussian_weights, predict_logits, window_starts

CPU = torch.device("cpu")


class FakeEngine:
    """Applies a function to patches and remembers their shapes."""

    channels, outputs, patch_size, device = 1, 2, None, CPU

    def __init__(self, function):
        self.function = function
        self.shapes = []

    def __call__(self, batch):
        self.shapes.append(tuple(batch.shape))
        return self.function(batch)


def voxelwise(batch):
    return torch.cat([2 * batch + 1, -batch], dim=1)


@pytest.mark.parametrize("patch", [8, 16, 33, 128])
@pytest.mark.parametrize("step", [0.25, 0.5, 1.0])
def test_starts_are_those_of_nnunet(patch, step):
    from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window

    for size in range(patch, 4 * patch):
        assert window_starts(size, patch, step) == compute_steps_for_sliding_window((size,), (patch,), step)[0]


@pytest.mark.parametrize("patch", [(16, 24, 20), (32, 20)])
def test_weights_are_those_of_nnunet(patch):
    from nnunetv2.inference.sliding_window_prediction import compute_gaussian

    expected = compute_gaussian(patch, device=CPU, dtype=torch.float32)
    np.testing.assert_allclose(gaussian_weights(patch), expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [(20, 23, 30), (6, 30, 9), (10, 10, 10), (3, 4, 5)])
@pytest.mark.parametrize("patch", [(10, 10, 10), (12, 8)])
@pytest.mark.parametrize("mirror_axes", [(), (0, 1)])
def test_a_voxelwise_network_gives_the_same_with_windows(shape, patch, mirror_axes):
    volume = torch.rand(1, *shape)
    logits = predict_logits(FakeEngine(voxelwise), volume, patch, mirror_axes)
    assert logits.shape == (2, *shape) and logits.dtype == torch.float32
    torch.testing.assert_close(logits, voxelwise(volume[None])[0], atol=1e-5, rtol=1e-5)


def test_sides_are_padded_to_multiples_and_cropped_again():
    engine, volume = FakeEngine(voxelwise), torch.rand(1, 12, 16, 9)
    logits = predict_logits(engine, volume, (16, 16, 16), multiple=16)
    assert engine.shapes == [(1, 1, 16, 16, 16)]
    torch.testing.assert_close(logits, voxelwise(volume[None])[0], atol=1e-5, rtol=1e-5)
    predict_logits(engine, torch.rand(1, 16, 17, 16), (16, 16, 16), multiple=16)
    assert len(engine.shapes) == 1 + 3, "32 along y"


def test_a_volume_that_fits_is_one_pass():
    engine = FakeEngine(voxelwise)
    predict_logits(engine, torch.rand(1, 9, 10, 7), (10, 10, 10))
    assert engine.shapes == [(1, 1, 10, 10, 10)]


def test_slices_of_a_2d_network_run_in_batches():
    engine = FakeEngine(voxelwise)
    predict_logits(engine, torch.rand(1, 11, 10, 10), (10, 10))
    assert engine.shapes == [(8, 1, 10, 10), (3, 1, 10, 10)]


def test_centre_of_a_window_weighs_more_than_its_border():
    """Every window answers with its own mean; a border voxel must lean to the window it is central to."""
    volume = torch.cat([torch.zeros(1, 10, 8, 8), torch.ones(1, 10, 8, 8)], dim=1)
    engine = FakeEngine(lambda batch: batch.mean(dim=(2, 3, 4), keepdim=True).expand(batch.shape))
    line = predict_logits(engine, volume, (10, 8, 8))[0, :, 4, 4]
    assert torch.all(line.diff() >= 0) and line[0] == 0 and line[-1] == 1
    assert 0.45 < line[10] < 0.55 and line[7] < 0.35


def test_mirrors_are_flipped_back_and_averaged():
    ramp = torch.arange(4.0).reshape(1, 1, 4, 1, 1)
    engine = FakeEngine(lambda batch: batch + ramp)
    volume = torch.rand(1, 4, 4, 4)
    logits = predict_logits(engine, volume, (4, 4, 4), mirror_axes=(0,))
    torch.testing.assert_close(logits, volume + 1.5)
    assert len(engine.shapes) == 2
    predict_logits(engine, volume, (4, 4, 4), mirror_axes=(0, 1, 2))
    assert len(engine.shapes) == 2 + 8


def test_reduction_before_the_sum_changes_nothing():
    engine = FakeEngine(lambda batch: torch.cat([batch, batch.cumsum(dim=2), batch.flip(3)], dim=1))
    volume = torch.rand(1, 20, 21, 22)
    whole = predict_logits(engine, volume, (10, 12, 14), (0, 2))
    part = predict_logits(engine, volume, (10, 12, 14), (0, 2), reduce=lambda x: x[:, 1:2] - x[:, :1])
    torch.testing.assert_close(part[0], whole[1] - whole[0], atol=1e-5, rtol=1e-5)


@pytest.fixture
def gpu_memory(monkeypatch):
    """Pretend a GPU on which sums do not fit; returns the places tried."""
    tried = []

    def limited(fits_on):
        def sums(engine, volume, patch_size, mirror_axes, reduce, step, place):
            tried.append(place.type)
            if place.type not in fits_on:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")
            return volume

        monkeypatch.setattr(sliding_window, "_sum_windows", sums)
        return tried

    return limited


def test_out_of_gpu_memory_is_tried_once_more_with_sums_in_main_memory(gpu_memory):
    tried = gpu_memory(fits_on=["cpu"])
    engine = FakeEngine(voxelwise)
    engine.device = torch.device("cuda:0")
    predict_logits(engine, torch.rand(1, 4, 4, 4), (4, 4, 4))
    assert tried == ["cuda", "cpu"]


def test_out_of_memory_twice_fails_the_visit_with_the_sizes(gpu_memory):
    tried = gpu_memory(fits_on=[])
    engine = FakeEngine(voxelwise)
    engine.device = torch.device("cuda:0")
    with pytest.raises(VisitError, match=r"8x8x8.*30x20x10"):
        predict_logits(engine, torch.rand(1, 30, 20, 10), (8, 8, 8))
    assert tried == ["cuda", "cpu"]


def test_other_errors_are_not_taken_for_lack_of_memory():
    def broken(batch):
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        predict_logits(FakeEngine(broken), torch.rand(1, 4, 4, 4), (4, 4, 4))
