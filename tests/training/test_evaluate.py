"""Scores, the operating point and the table."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from bids_app.training import evaluate
from bids_app.training.evaluate import Case, Operating, Score
from tests.training.heads import toy_head, toy_lesion

SHAPE = (12, 12, 12)


CUBE = slice(2, 6)


def case(group: str = "<=15 mL", truth: slice | None = CUBE, marked: slice | None = CUBE, high: float = 0.9) -> Case:
    """A cube of truth and a cube marked with probability ``high``."""
    mask, probability = np.zeros(SHAPE, bool), np.full(SHAPE, 0.1, np.float16)
    if truth is not None:
        mask[truth, truth, truth] = True
    if marked is not None:
        probability[marked, marked, marked] = high
    return Case("head", group, mask, probability)


class Bright(torch.nn.Module):
    """A network that marks what is dark."""

    def forward(self, image):
        return torch.cat([torch.zeros_like(image), -5 * image - 5], dim=1)


def test_group_of_follows_the_volume():
    groups = [evaluate.group_of(v) for v in (0, 15, 15.1, 70, 71)]
    assert groups == ["healthy", "<=15 mL", "15-70 mL", "15-70 mL", ">70 mL"]


def test_segment_drops_small_components():
    probability = np.zeros(SHAPE)
    probability[1, 1, 1] = 1
    probability[5:8, 5:8, 5:8] = 1
    assert evaluate.segment(probability, Operating(0.5, 0.0)).sum() == 28
    assert evaluate.segment(probability, Operating(0.5, 100.0)).sum() == 27
    assert evaluate.segment(probability * 0.4, Operating(0.5, 0.0)).sum() == 0


def test_score_of_a_perfect_a_missed_and_a_false_lesion():
    point = Operating(0.5, 0.0)
    perfect = evaluate.score(case(), point)
    assert (perfect.dice, perfect.found, perfect.false_ml) == (1.0, True, 0.0)
    missed = evaluate.score(case(marked=None), point)
    assert (missed.dice, missed.found) == (0.0, False)
    healthy = evaluate.score(case("healthy", truth=None), point)
    assert (healthy.dice, healthy.found) == (0.0, False) and healthy.false_ml == pytest.approx(64 * 0.008)
    assert evaluate.score(case("healthy", None, None), point).dice == 1.0


def test_margin_of_a_lesion_is_no_false_lesion():
    assert evaluate.score(case(marked=slice(2, 8)), Operating(0.5, 0.0)).false_ml < 64 * 3 * 0.008
    assert evaluate.score(case(marked=slice(2, 7)), Operating(0.5, 0.0)).false_ml < 0.2


def test_operating_point_keeps_healthy_heads_clean():
    sick = [case(high=0.9), case(high=0.55)]
    dirty = Case("head", "healthy", np.zeros((30,) * 3, bool), np.full((30,) * 3, 0.45, np.float16))
    assert evaluate.choose_operating_point([*sick, dirty]).threshold == 0.5
    assert evaluate.choose_operating_point([*sick, case("healthy", None, None)]).threshold == 0.3


def test_interval_contains_the_mean_and_widens_with_spread_between_heads():
    values, heads = [0.4, 0.5, 0.6, 0.7] * 5, ["a", "b", "c", "d"] * 5
    low, high = evaluate.clustered_interval(values, heads)
    assert low < np.mean(values) < high
    same = evaluate.clustered_interval([0.5] * 8, ["a", "b"] * 4)
    assert same == [0.5, 0.5]


def test_table_has_a_row_for_each_group_there_is():
    scores = [Score("a", ">70 mL", 0.8, True, 0.1), Score("b", "healthy", 1.0, False, 0.0)]
    table = evaluate.summarize(scores)
    assert list(table) == [">70 mL", "healthy"] and "dice" not in table["healthy"]
    lines = evaluate.as_markdown(table).splitlines()
    assert len(lines) == 4 and lines[2].startswith("| >70 mL | 1 | 0.80 (0.80-0.80)")


def test_cases_come_from_every_head_and_group():
    lesions = [toy_lesion(), toy_lesion(-25, 22.0, "sub-0012")]
    cases = evaluate.make_cases([Bright()], [toy_head()], lesions, per_group=1, seed=0)
    assert [c.group for c in cases][-1] == "healthy" and len(cases) == 3
    assert all(c.probability.dtype == np.float16 and c.probability.max() <= 1 for c in cases)


def test_evaluate_fills_in_the_card(tmp_path, monkeypatch):
    (tmp_path / "card.json").write_text(json.dumps({"name": "toy", "threshold": 0.5}))
    monkeypatch.setattr(evaluate, "load_networks", lambda model: [Bright()])
    heads = [toy_head("training_seg_01"), toy_head("training_seg_15")]
    lesions = [toy_lesion(name="sub-0001"), toy_lesion(name="sub-0003")]
    table = evaluate.evaluate(tmp_path, heads, lesions, per_group=1)
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["scores"]["test"] == table and set(card["scores"]) == {"test", "validation"}
    assert card["threshold"] in evaluate.THRESHOLDS and card["min_volume_mm3"] == 10.0
