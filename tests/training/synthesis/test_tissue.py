"""Tissues in the order that T1w and FLAIR have them, on the side where they are."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Generator

from bids_app.training.synthesis import tissue
from bids_app.training.synthesis.geometry import random_points
from bids_app.training.synthesis.tissue import DEEP, FLAIR, T1W
from tests.training.heads import toy_head, toy_source
from tests.training.synthesis.calm import CALM, side


@pytest.mark.parametrize("seed", range(20))
def test_tissue_order_is_that_of_the_contrasts(seed: int):
    rng = Generator().manual_seed(seed)
    means = tissue.draw_means(rng)
    t1w, flair = tissue.t1w_table(means.of(T1W), rng), tissue.flair_table(means.of(FLAIR), rng)
    assert t1w[4] < t1w[3] < t1w[2] and t1w[3] - 0.1 < t1w[12] < t1w[2] + 0.1
    assert flair[4] < flair[2] < flair[3] + 0.1
    assert flair[25] > flair[2] - 0.1 > t1w[25] - 0.3, "a hypointensity of the T1w is bright in the FLAIR"
    for table in (t1w, flair):
        assert table[0] == 0 and (table[1:200] >= 0).all()


def test_left_putamen_is_rendered_on_the_left():
    rng = Generator().manual_seed(0)
    points = random_points(toy_head(), CALM, rng)
    assert side(tissue.draw_tissue(toy_source(), points, rng).share(DEEP)) < -0.2


def test_real_texture_is_carried_into_both_contrasts():
    labels = toy_head().labels
    image = np.select([labels == 24, labels == 3, labels == 2], [40, 100, 160], 0).astype(np.uint8)
    source = tissue.make_source(dataclasses.replace(toy_head(), image=image))
    assert source.image_means == (40, 100, 160)
    rng = Generator().manual_seed(1)
    means = tissue.draw_means(rng)
    curves = tissue.real_curves(source, means)
    for contrast in (T1W, FLAIR):
        assert curves[[40, 100, 160], contrast].tolist() == pytest.approx(means.of(contrast), abs=1e-5)


def test_average_pairs_is_the_mean_of_each_block():
    volume = torch.arange(27.0).view(3, 3, 3)
    expected = torch.nn.functional.avg_pool3d(volume[None, None], 2, stride=1)[0, 0]
    assert torch.allclose(tissue.average_pairs(volume), expected)
