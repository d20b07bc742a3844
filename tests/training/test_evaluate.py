"""Cases, scores and the operating point."""

from __future__ import annotations

import json
from types import SimpleNamespace

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


def marked(where: slice | None = CUBE, high: float = 0.9, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    """Logits of a cube marked with probability ``high`` in a background of 0.1."""
    probability = torch.full(shape, 0.1)
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
    assert evaluate.score(case(), marked(slice(2, 8)), Operating(0.5, 0.0)).false_ml < 64 * 3 * 0.008
    assert evaluate.score(case(), marked(slice(2, 7)), Operating(0.5, 0.0)).false_ml < 0.2


def test_operating_point_keeps_healthy_heads_clean():
    sick = [(case(), marked(high=0.9)), (case(), marked(high=0.55))]
    nothing = Case("head", "none", torch.zeros(2, 30, 30, 30), np.zeros((30,) * 3, bool))
    dirty = (nothing, torch.logit(torch.full((30,) * 3, 0.45)))
    assert evaluate.choose_operating_point([*sick, dirty]).threshold == 0.5
    assert evaluate.choose_operating_point([*sick, (case("none", None), marked(None))]).threshold == 0.2


def test_interval_contains_the_mean_and_leaves_nan_out():
    values, heads = [0.4, 0.5, 0.6, 0.7] * 5, ["a", "b", "c", "d"] * 5
    low, high = evaluate.clustered_interval(values, heads)
    assert low < np.mean(values) < high
    same = evaluate.clustered_interval([0.5, np.nan] * 8, ["a", "b"] * 8)
    assert same == (0.5, 0.5)
    assert np.isnan(evaluate.clustered_interval([np.nan], ["a"])).all()


def test_calibration_writes_the_point_into_the_card(tmp_path, monkeypatch):
    (tmp_path / "card.json").write_text(json.dumps({"name": "toy", "threshold": 0.5, "scores": {}}))
    model = SimpleNamespace()
    monkeypatch.setattr(evaluate, "load_model", lambda folder: model)
    monkeypatch.setattr(evaluate, "fold_logits", lambda *_: torch.stack([marked(high=0.99), marked(high=0.6)]))
    point = evaluate.calibrate(tmp_path, [case()])
    card = json.loads((tmp_path / "card.json").read_text())
    assert (card["threshold"], card["min_volume_mm3"]) == (point.threshold, 10.0) and card["name"] == "toy"
    assert point.threshold in evaluate.THRESHOLDS
