"""The learned fusion of two branches."""

from __future__ import annotations

import numpy as np
import pytest

from bids_app.training.fusion import Fused, fit_fusion, mean_of_branches


def scan(seed: int, n: int = 20_000, lesion: float = 0.05, noise: tuple[float, float] = (1.0, 4.0)):
    """Logits of two branches of one scan; the second is noisier, and too sure of the lesion by 2."""
    rng = np.random.default_rng(seed)
    truth = rng.random(n) < lesion
    signal = np.where(truth, 4.0, -6.0)
    first, second = signal + noise[0] * rng.standard_normal(n), signal + 2 + noise[1] * rng.standard_normal(n)
    return np.stack([-first / 2, first / 2, -second / 2, second / 2]).astype(np.float32), truth


def dice(fused: Fused, cases) -> float:
    found = [(np.diff(fused(logits), axis=0)[0] > 0, truth) for logits, truth in cases]
    return float(np.mean([2 * (mask & truth).sum() / (mask.sum() + truth.sum()) for mask, truth in found]))


@pytest.fixture(scope="module")
def cases() -> list:
    return [scan(seed) for seed in range(4)]


@pytest.fixture(scope="module")
def fused(cases) -> Fused:
    return fit_fusion(iter(cases))


def test_it_starts_as_the_mean_of_the_branches():
    logits = np.array([[1.0, 2], [3, 4], [5, 6], [7, 8]], np.float32)
    np.testing.assert_allclose(mean_of_branches()(logits), [[3, 4], [5, 6]])


def test_without_cases_it_stays_the_mean():
    np.testing.assert_array_equal(fit_fusion([]).weight, mean_of_branches().weight)


def test_it_is_better_than_the_mean_on_scans_it_was_not_fitted_to(fused: Fused):
    others = [scan(seed) for seed in range(10, 14)]
    assert dice(fused, others) > dice(mean_of_branches(), others) + 0.02


def test_the_better_branch_counts_more(fused: Fused):
    first, second = fused.weight[1, 1] - fused.weight[0, 1], fused.weight[1, 3] - fused.weight[0, 3]
    assert first > 2 * second > 0


def test_it_is_deterministic(cases, fused: Fused):
    again = fit_fusion(iter(cases))
    np.testing.assert_array_equal(again.weight, fused.weight)
    np.testing.assert_array_equal(again.bias, fused.bias)


def test_shapes_are_those_of_the_network(fused: Fused):
    assert (fused.weight.shape, fused.bias.shape) == ((2, 4), (2,))
    assert fused.weight.dtype == fused.bias.dtype == np.float32


def test_separable_scans_do_not_make_logits_explode():
    assert np.abs(fit_fusion([scan(0, noise=(0.1, 0.1))]).weight).max() < 20


def test_healthy_scans_count_and_break_nothing(cases):
    healthy = [scan(seed, lesion=0.0) for seed in range(20, 24)]
    fused = fit_fusion([*cases, *healthy])
    assert np.isfinite(fused.weight).all()
    assert dice(fused, cases) > dice(mean_of_branches(), cases)


def test_half_precision_logits_will_do(cases, fused: Fused):
    halves = fit_fusion([(logits.astype(np.float16), truth) for logits, truth in cases])
    np.testing.assert_allclose(halves.weight, fused.weight, atol=0.02)
