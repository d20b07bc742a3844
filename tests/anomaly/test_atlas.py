"""The atlas that names where a finding lies."""

from __future__ import annotations

import numpy as np
import pytest

from bids_app import images
from bids_app.anomaly.atlas import STRUCTURES, labels
from bids_app.anomaly.slices import box


def places() -> dict[str, np.ndarray]:
    """Centre of each structure, mm in MNI."""
    image = labels()
    values = images.data(image)
    return {name: images.world(image, np.argwhere(values == label)).mean(axis=0) for label, name in STRUCTURES.items()}


def test_it_lies_in_the_box():
    np.testing.assert_allclose(labels().affine, box().affine)
    assert labels().shape == box().shape


def test_left_is_left():
    for name, (x, _, _) in places().items():
        if name.startswith("left"):
            assert x < -5, name
        elif name.startswith("right"):
            assert x > 5, name
        else:
            assert abs(x) < 3, name


@pytest.mark.parametrize("side", ["left", "right"])
def test_front_is_in_front_and_up_is_up(side):
    found = places()
    caudate, cerebellum = found[f"{side} caudate"], found[f"{side} cerebellar cortex"]
    assert caudate[1] > cerebellum[1] + 50 and caudate[2] > cerebellum[2] + 30
