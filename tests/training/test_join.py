"""A late fusion of finished networks: it weighs them by what they say, and its card tells of both."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bids_app.errors import ConfigError
from bids_app.lesion.model import load_models
from bids_app.training import join
from bids_app.training.cases import Case
from bids_app.training.embed import PREFIX, TRAINING_DATA, Fold, write_model
from bids_app.training.plans import FUSIONS
from bids_app.training.trainer import build_network
from bids_app.training.warm_start import read_warm_start

SHAPE = (8, 8, 8)


def write_branch(models: Path, name: str, folds: tuple[str, ...], head: str) -> None:
    """An untrained model of one contrast."""
    weights = dict(build_network(FUSIONS[name]).named_parameters())
    trained = [Fold(fold, weights, 30, 200, 8, (head,), finished=True) for fold in folds]
    write_model(models / f"{PREFIX}{name}", FUSIONS[name], trained, {"version": "1", "commit": "a", "note": ""}, {})


def toy_case(seed: int) -> Case:
    """A lesion that is bright in the T1w, in noise, and not to be seen in the FLAIR."""
    random = np.random.default_rng(seed)
    truth = random.random(SHAPE) < 0.1
    image = random.normal(size=(2, *SHAPE)).astype(np.float32)
    image[0] += 6 * truth
    return Case("head", "small", torch.from_numpy(image), truth)


def reader(contrast: str) -> SimpleNamespace:
    """A model whose lesion logit is the scan itself."""
    return SimpleNamespace(channels=(contrast,), engines=[lambda scan: torch.cat([-(scan - 3) / 2, (scan - 3) / 2], 1)])


def test_the_branch_that_sees_the_lesion_decides():
    fused = join.fit_branches([reader("T1w"), reader("FLAIR")], [toy_case(seed) for seed in range(3)])
    by_t1w, by_flair = np.diff(fused.weight, axis=0)[0][[1, 3]]
    assert by_t1w > 0.5 and abs(by_flair) < 0.3 * by_t1w
    assert fused.weight.size + fused.bias.size == join.FUSION_PARAMETERS


def test_the_joined_model_runs_with_its_branches_and_its_card_names_both(tmp_path: Path, monkeypatch):
    write_branch(tmp_path, "t1w", ("0", "1"), "training_seg_01")
    write_branch(tmp_path, "flair", ("0", "1"), "training_seg_02")
    monkeypatch.setattr(
        join, "load_model", lambda path, _: reader(FUSIONS[path.name.removeprefix(PREFIX)].contrasts[0])
    )
    asked: list[str] = []

    def cases_of(fold: str) -> list[Case]:
        asked.append(fold)
        return [toy_case(int(fold))]

    target = join.join(tmp_path, cases_of, "b", "2", "joined")
    assert asked == ["0", "1"]
    models = load_models(target).models
    assert [model.channels for model in models] == [("T1w", "FLAIR"), ("T1w",), ("FLAIR",)]
    assert [len(model.engines) for model in models] == [2, 2, 2]
    card = json.loads((target / "card.json").read_text())
    assert (card["name"], card["version"], card["commit"], card["note"]) == ("synthetic-late", "2", "b", "joined")
    assert card["heads"] == ["training_seg_01", "training_seg_02"] and card["training_data"] == TRAINING_DATA
    assert card["input"] == "rigid"
    assert card["scans"] == {"fold_0": 1, "fold_1": 1}
    parameters = json.loads((tmp_path / "synthetic-t1w" / "card.json").read_text())["parameters"]
    assert card["parameters"] == 2 * parameters + join.FUSION_PARAMETERS
    assert (read_warm_start(target, "1").fusion, read_warm_start(target, "1").steps) == ("late", 230)


def test_branches_of_other_folds_are_not_joined(tmp_path: Path):
    write_branch(tmp_path, "t1w", ("0",), "training_seg_01")
    write_branch(tmp_path, "flair", ("0", "1"), "training_seg_01")
    with pytest.raises(ConfigError, match="do not have the same numbered folds"):
        join.join(tmp_path, lambda fold: [], "b", "2")
    assert not (tmp_path / "synthetic-late").exists()
