"""The models that come with the App: who was trained on, how large they are, what their cards say."""

from __future__ import annotations

import json

import pytest

from bids_app.networks.registry import ANOMALY, LESION, embedded_models
from bids_app.training.anatomy import REAL_TEXTURE, split_of
from bids_app.training.embed import checkpoints_sha256

MODELS = {model.name: model for model in embedded_models() if model.kind == LESION}
ANOMALY_MODELS = [model for model in embedded_models() if model.kind == ANOMALY]
MIB = 2**20


def card(name: str) -> dict:
    return json.loads((MODELS[name].folder / "card.json").read_text())


@pytest.mark.parametrize("name", MODELS)
def test_only_heads_of_the_training_split_were_trained_on(name: str):
    heads = card(name)["heads"]
    assert {head for head in heads if not head.startswith("training_seg")} <= set(REAL_TEXTURE)
    assert heads and all(split_of(head) == "train" for head in heads)


@pytest.mark.parametrize("name", MODELS)
def test_networks_are_small_and_calibrated(name: str):
    said = card(name)
    branches = len(said.get("branches", {})) or 1
    assert said["parameters"] <= 0.9e6 * branches
    assert 0 < said["threshold"] < 1 and 0 < said["min_volume_mm3"] <= 100
    assert set(said["scores"]) == {"15 mL or less", "15-70 mL", "over 70 mL", "healthy"}


def test_the_default_serves_every_visit_from_ten_networks():
    assert card("synthetic-late")["branches"] == {"T1w": "../synthetic-t1w", "FLAIR": "../synthetic-flair"}
    folds = {name: sorted(path.name for path in model.folder.glob("fold_*")) for name, model in MODELS.items()}
    assert set(map(tuple, folds.values())) == {tuple(f"fold_{number}" for number in range(5))}


def test_the_fusion_was_fitted_to_the_branches_that_are_there():
    late = MODELS["synthetic-late"].folder
    said = card("synthetic-late")
    for contrast, branch in said["branches"].items():
        assert said["branches_sha256"][contrast] == checkpoints_sha256(late / branch)


def test_all_lesion_networks_together_fit_the_repository():
    size = sum(path.stat().st_size for model in MODELS.values() for path in model.folder.rglob("*.pth"))
    assert size < 20 * MIB


def test_there_is_an_anomaly_model():
    assert [model.name for model in ANOMALY_MODELS] == ["reflect-t1w"]


@pytest.mark.parametrize("model", ANOMALY_MODELS, ids=lambda model: model.name)
def test_anomaly_models_are_small_and_calibrated_on_other_heads(model):
    said = json.loads((model.folder / "card.json").read_text())
    assert said["heads"] and all(split_of(head) == "train" for head in said["heads"])
    assert 0 < said["threshold"] < 0.5 and said["healthy_scans"]["scans"] >= 10
    assert sum(path.stat().st_size for path in model.folder.iterdir()) < 11 * MIB
    assert len(said["known_failures"]) >= 3
