"""The recipe of the embedded anomaly model, in small: resumed, and gone on with from a model folder."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from bids_app.anomaly import autoencoder, velocity
from bids_app.anomaly.model import load_anomaly_model
from bids_app.errors import ConfigError
from bids_app.training.reflect import embedded
from tests.anomaly.models import AUTOENCODER, VELOCITY
from tests.training.heads import toy_source


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder in which the recipe was carried out, with small networks and toy heads."""
    folder = tmp_path_factory.mktemp("recipe")
    with pytest.MonkeyPatch.context() as monkeypatch:
        make_small(monkeypatch)
        run(folder)
    return folder


@pytest.fixture
def small(monkeypatch, trained):
    make_small(monkeypatch)
    return trained


def make_small(monkeypatch) -> None:
    monkeypatch.setitem(autoencoder.SIZES, "tiny-f4", AUTOENCODER)
    monkeypatch.setitem(velocity.SIZES, "tiny", VELOCITY)
    monkeypatch.setattr(embedded, "prepare_split", lambda data, cache, split: ([toy_source().head], []))
    monkeypatch.setattr(embedded, "make_source", lambda head: toy_source())
    monkeypatch.setattr(embedded, "VALIDATION_BRAINS", 2)
    monkeypatch.setattr("bids_app.training.reflect.learn.TEXTURE_COUNT", 3)


def run(folder, *options: str) -> None:
    steps = ["--autoencoder-steps", "2", "--flow-steps", "2", "--reflow-steps", "1", "--brains", "1"]
    embedded.main(["--data", str(folder), "--out", str(folder / "out"), *steps, *options])


def test_from_heads_to_a_model_and_on(small, monkeypatch):
    folder = small / "out" / "models" / "reflect-t1w"
    card = json.loads((folder / "card.json").read_text())
    assert card["steps"] == 1 and card["healthy_scans"]["scans"] == 2 and card["heads"] == ["training_seg_01"]
    before = load_anomaly_model(folder)
    run(small)  # nothing is trained again
    assert load_anomaly_model(folder).sha256 == before.sha256
    monkeypatch.setitem(velocity.SIZES, "tiny", replace(velocity.SIZES["tiny"], channels=(8, 16)))
    run(small, "--volumetric", "--init", str(folder), "--latent", "f8")  # sizes and latents stay those of the model
    further = small / "out" / "models" / "reflect-t1w-varied-volumetric"
    said = json.loads((further / "card.json").read_text())
    assert said["optimizer_steps"] == {"autoencoder": 2, "reflect1": 4, "reflect2": 1}
    one, other = (load_anomaly_model(each).autoencoder for each in (folder, further))
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-3)


def test_nothing_is_built_on_what_another_recipe_left(small):
    for changed in (("--flow-steps", "3"), ("--autoencoder-steps", "3"), ("--rate", "0.5"), ("--latent", "f8")):
        with pytest.raises(ConfigError, match="was begun with other"):
            run(small, *changed)
