"""What the anomaly model that comes with the App says of the template's brain."""

from __future__ import annotations

import numpy as np
import pytest

from bids_app.anomaly.model import load_anomaly_model
from bids_app.anomaly.slices import box, grey_values, to_slices
from bids_app.networks.registry import find_anomaly_model
from bids_app.preprocessing import transforms
from bids_app.preprocessing.templates import load_template
from bids_app.settings import DEFAULT_SPACE

SHOWN = slice(85, 93)
"""Slices above the ventricles' middle."""
CAVITY = slice(88, 89), slice(70, 90), slice(104, 120)
"""In the white matter of the right frontal lobe (slices, rows, columns)."""


@pytest.fixture(scope="module")
def grey() -> np.ndarray:
    template = load_template(DEFAULT_SPACE)
    seen = [
        transforms.apply_linear(image, np.eye(4), box(), order)
        for image, order in ((template.t1w, 1), (template.brain_mask, 0))
    ]
    return grey_values(to_slices(seen[0]), to_slices(seen[1]) > 0)


def test_a_cavity_is_what_it_marks(grey):
    model = load_anomaly_model(find_anomaly_model(None))
    healthy = model.explain(grey[SHOWN])
    sick = grey.copy()
    sick[CAVITY] = np.minimum(sick[CAVITY], 40)
    found = model.explain(sick[SHOWN])
    here = (CAVITY[0].start - SHOWN.start, *CAVITY[1:])
    brain = grey[SHOWN][here[0]] > 0
    assert found.anomaly[here].mean() > 2 * healthy.anomaly[here].mean()
    assert found.anomaly[here].mean() > 2 * found.anomaly[here[0]][brain].mean()
    assert found.healthy[here].mean() > sick[SHOWN][here].mean() + 10  # the twin is brighter there
    assert 0.02 < healthy.anomaly[grey[SHOWN] > 0].mean() < 0.2
