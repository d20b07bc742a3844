"""Cases, scores and the operating point."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from bids_app.training import evaluate
from bids_app.training.cases import Case
from bids_app.training.evaluate import Operating

SHAPE = (12, 12, 12)
CUBE = slice(2, 6)


def case(group: str = "small", truth: slice | None = CUBE) -> Case:
    """A cube of lesion in an empty scan."""
    mask = np.zeros(SHAPE, bool)
    if truth is not None:
        mask[truth, truth, truth] = True
    return Case("head", group, torch.zeros(2, *SHAPE), mask)


def marked(where: slice | None = CUBE, high: float = 0.9, low: float = 0.1) -> torch.Tensor:
    """Logits of a cube marked with probability ``high`` in a background of ``low``."""
    probability = torch.full(SHAPE, low)
    if where is not None:
        probability[where, where, where] = high
    return torch.logit(probability)


def test_segment_drops_small_components():
    probability = np.zeros(SHAPE)
    probability[1, 1, 1] = 1
    probability[5:8, 5:8, 5:8] = 1
    assert evaluate.segment(probability, Operating(0.5, 0.0)).sum() == 28
    assert evaluate.segment(probability, Operating(0.5, 100.0)).sum() == 27
    assert evaluate.segment(probability * 0.4, Operating(0.5, 0.0)).sum() == 0


def test_score_of_a_perfect_a_missed_and_a_false_lesion():
    point = Operating(0.5, 0.0)
    perfect = evaluate.score(case(), marked(), point)
    assert (perfect.dice, perfect.f1, perfect.anima_f1, perfect.assd_mm) == (1, 1, 1, 0)
    assert (perfect.found, perfect.false_ml) == (1, 0)
    missed = evaluate.score(case(), marked(None), point)
    assert (missed.dice, missed.f1, missed.found) == (0, 0, 0) and np.isnan(missed.assd_mm)
    healthy = evaluate.score(case("none", None), marked(), point)
    assert (healthy.dice, healthy.found) == (0, 0) and healthy.false_ml == pytest.approx(64 * 0.008)
    assert evaluate.score(case("none", None), marked(None), point).dice == 1


def test_margin_of_a_lesion_is_no_false_lesion():
    assert evaluate.score(case(), marked(slice(2, 7)), Operating(0.5, 0.0)).false_ml < 0.2


def clean_head() -> tuple[Case, torch.Tensor]:
    return case("none", None), marked(None)


def test_operating_point_keeps_healthy_heads_clean():
    sick = [(case(), marked(high=0.9)), (case(), marked(high=0.55))]
    nothing = Case("head", "none", torch.zeros(2, 30, 30, 30), np.zeros((30,) * 3, bool))
    dirty = (nothing, torch.logit(torch.full((30,) * 3, 0.45)))
    points = [Operating(threshold) for threshold in evaluate.THRESHOLDS]
    assert evaluate.choose_operating_point([*sick, dirty], points).threshold == 0.5
    assert evaluate.choose_operating_point([*sick, clean_head()], points).threshold == 0.2
    hopeless = (nothing, torch.logit(torch.full((30,) * 3, 0.999)))
    low, high = Operating(0.5), Operating(0.6)
    assert evaluate.choose_operating_point([*sick, hopeless], [low, high]) in (low, high)
    half = (nothing, torch.logit(torch.full((30,) * 3, 0.55)))
    assert evaluate.choose_operating_point([*sick, half, hopeless], [low, high]) == high  # the cleanest there is


def test_operating_point_drops_what_is_too_small_to_be_a_lesion():
    logits = marked()
    logits[10, 10, 10] = 5.0  # 8 mm3
    points = [Operating(0.5, volume) for volume in (0.0, *evaluate.MIN_VOLUMES_MM3)]
    found = evaluate.choose_operating_point([(case(), logits), clean_head()], points)
    assert found.min_volume_mm3 == evaluate.MIN_VOLUMES_MM3[0]


def test_interval_contains_the_mean_and_leaves_nan_out():
    values, heads = [0.4, 0.5, 0.6, 0.7] * 5, ["a", "b", "c", "d"] * 5
    low, high = evaluate.clustered_interval(values, heads)
    assert low < np.mean(values) < high
    apart = [head + step for head in (0.1, 0.9, 0.5, 0.3) for step in (0.0, 0.01)]
    low, high = evaluate.clustered_interval(apart, [name for name in "abcd" for _ in range(2)])
    alone_low, alone_high = evaluate.clustered_interval(apart, list("abcdefgh"))
    assert high - low > 1.2 * (alone_high - alone_low)  # scans of one head are alike: they say less
    same = evaluate.clustered_interval([0.5, np.nan] * 8, ["a", "b"] * 8)
    assert same == (0.5, 0.5)
    assert np.isnan(evaluate.clustered_interval([np.nan], ["a"])).all()


def test_calibration_writes_the_points_into_the_card(tmp_path, monkeypatch):
    """Of two folds, one marks the lesion at 0.9 and one at 0.42: their mean, 0.72, decides for the App."""
    (tmp_path / "card.json").write_text(json.dumps({"name": "toy", "threshold": 0.5, "scores": {}}))
    monkeypatch.setattr(evaluate, "load_model", lambda folder: None)

    def folds(_, image) -> torch.Tensor:
        """The background is marked at 0.35 by both: a threshold has to lie above."""
        sick = bool(image.any())
        return torch.stack([marked(CUBE if sick else None, high, low=0.35) for high in (0.9, 0.42)])

    monkeypatch.setattr(evaluate, "fold_logits", folds)
    sick = Case("head", "small", torch.ones(2, *SHAPE), case().truth)
    point, single = evaluate.calibrate(tmp_path, [sick, case("none", None)])
    card = json.loads((tmp_path / "card.json").read_text())
    assert (card["threshold"], card["min_volume_mm3"], card["name"]) == (point.threshold, point.min_volume_mm3, "toy")
    assert card["one_fold"]["threshold"] == single.threshold == 0.4 and 0.4 <= point.threshold <= 0.7
