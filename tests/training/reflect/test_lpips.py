"""LPIPS from files in the layout that its authors and torchvision publish."""

from __future__ import annotations

import pytest
import torch

from bids_app.errors import ConfigError
from bids_app.training.reflect.lpips import LINEAR, VGG, Lpips, read_lpips

NUMBERS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
"""Of the convolutions among the layers of torchvision's VGG16."""


def write(folder) -> Lpips:
    """Random weights in the published layout, and the network that they make."""
    torch.manual_seed(0)
    network = Lpips()
    layers = [layer for stage in network.stages for layer in stage]
    vgg = {f"features.{n}.{kind}": getattr(layer, kind).data for n, layer in zip(NUMBERS, layers, strict=True)
           for kind in ("weight", "bias")}  # fmt: skip
    for weights in network.linear:
        weights.data.uniform_()
    torch.save(vgg | {"classifier.0.weight": torch.zeros(2, 2)}, folder / VGG)
    linear = {f"lin{n}.model.1.weight": w.data[None, :, None, None] for n, w in enumerate(network.linear)}
    torch.save(linear, folder / LINEAR)
    return network


def test_published_files_are_read(tmp_path):
    network, (one, other) = write(tmp_path), torch.rand(2, 2, 1, 32, 32) * 2 - 1
    read = read_lpips(tmp_path)
    torch.testing.assert_close(read(one, other), network(one, other))
    assert read(one, other).shape == (2,) and (read(one, other) > 0).all()
    assert torch.equal(read(one, one), torch.zeros(2))


def test_a_missing_file_is_told(tmp_path):
    write(tmp_path)
    (tmp_path / LINEAR).unlink()
    with pytest.raises(ConfigError, match="weights of LPIPS") as error:
        read_lpips(tmp_path)
    assert VGG in error.value.hint


def test_other_weights_are_told(tmp_path):
    write(tmp_path)
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / VGG)
    with pytest.raises(ConfigError, match="weights of LPIPS"):
        read_lpips(tmp_path)
