"""What is unusual where it is."""

from __future__ import annotations

import numpy as np

from bids_app.anomaly.usual import LEAST_DEVIATION, Usual


def healthy(count: int = 60):
    """Maps that are high and uneven on the left, low and even on the right; some brains end early."""
    rng = np.random.default_rng(0)
    for number in range(count):
        anomaly = np.full((40, 40), 0.1)
        anomaly[:, :20] = rng.normal(0.4, 0.1)
        brain = np.ones((40, 40), bool)
        brain[:8] = number % 2
        yield anomaly, brain


def test_the_same_anomaly_is_unusual_only_where_brains_do_not_have_it():
    usual = Usual.of(healthy())
    scores = usual.scores(np.full((40, 40), 0.5))
    assert abs(scores[30, 4] - 0.1 / (0.1 + LEAST_DEVIATION)) < 0.3
    assert abs(scores[30, 36] - 0.4 / LEAST_DEVIATION) < 1


def test_a_place_that_half_of_the_brains_lack_has_the_moments_of_the_others():
    usual = Usual.of(healthy())
    np.testing.assert_allclose(usual.mean[1], usual.mean[30], atol=0.03)
    np.testing.assert_allclose(usual.deviation[1], usual.deviation[30], atol=0.03)


def test_where_no_brain_was_nothing_is_divided_by_zero():
    usual = Usual.of((anomaly, np.zeros_like(brain)) for anomaly, brain in healthy(3))
    assert np.isfinite(usual.scores(np.ones((2, 40, 40)))).all()
