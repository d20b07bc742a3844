"""ONNX lesion models, in the shape of StrokeSeg's."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy import ndimage

from bids_app import images
from bids_app.errors import ConfigError
from bids_app.lesion.model import load_model
from tests.conftest import stored_as
from tests.lesion.models import head
from tests.networks.onnx_files import write_onnx

SCAN = head((20, 24, 18), spacing=1.5)


def test_prediction_and_what_the_model_says_of_itself(tmp_path):
    write_onnx(tmp_path / "net.onnx")
    (tmp_path / "net.json").write_text(json.dumps({"inputs": [{"name": "T1", "reference": "T1"}]}))
    model = load_model(tmp_path / "net.onnx")
    assert (model.name, model.channels, model.folds, model.patch_size) == ("net", ("T1w",), (), (16, 16, 16))
    prediction = model.predict([SCAN])
    values = images.data(prediction.probability)
    assert prediction.deviation is None and images.same_grid(prediction.probability, SCAN)
    assert values.min() >= 0 and values.max() <= 1 and values.std() > 0.01 and not model.notes


def test_the_numbers_are_those_of_the_chain(tmp_path):
    """1 mm, one patch: z-score over the brain, one convolution, softmax."""
    layer = write_onnx(tmp_path / "net.onnx", patch=(32, 32, 32))
    scan = head((20, 24, 18))
    values = images.data(scan)
    inside = ndimage.binary_fill_holes(values != 0)
    scores = np.where(inside, (values - values[inside].mean()) / values[inside].std(), 0)
    edges = np.argwhere(inside)
    box = tuple(slice(low, high + 1) for low, high in zip(edges.min(0), edges.max(0), strict=True))
    volume = torch.from_numpy(scores.astype(np.float32)[box].transpose(2, 1, 0).copy())
    with torch.no_grad():
        expected = torch.softmax(layer(volume[None, None]), dim=1)[0, 1].numpy().transpose(2, 1, 0)
    found = images.data(load_model(tmp_path / "net.onnx").predict([scan]).probability)
    np.testing.assert_allclose(found[box], expected, atol=1e-4)
    assert not np.delete(found, np.arange(box[0].start, box[0].stop), axis=0).any()


def test_half_precision_agrees(tmp_path):
    write_onnx(tmp_path / "single" / "net.onnx")
    write_onnx(tmp_path / "half" / "net.onnx", half=True)
    single, half = (
        images.data(load_model(tmp_path / kind / "net.onnx").predict([SCAN]).probability) for kind in ("single", "half")
    )
    assert 0 < np.abs(single - half).max() < 5e-3


def test_left_is_left_however_the_scan_is_stored(tmp_path, orientation):
    write_onnx(tmp_path / "net.onnx")
    model = load_model(tmp_path)
    straight = images.data(model.predict([SCAN]).probability)
    stored = model.predict([stored_as(SCAN, orientation)]).probability
    np.testing.assert_allclose(images.data(images.to_ras(stored)), straight, atol=1e-5)


def test_channels_without_a_manifest_are_guessed_and_noted(tmp_path):
    write_onnx(tmp_path / "net.onnx", channels=2, patch=("x", "y", "z"))
    model = load_model(tmp_path)
    assert model.channels == ("T1w", "FLAIR") and "manifest" in model.notes[0]
    assert model.patch_size == (128, 128, 128)


def test_card_gives_channels_and_threshold(tmp_path):
    write_onnx(tmp_path / "net.onnx")
    (tmp_path / "card.json").write_text('{"name": "n", "channels": ["FLAIR"], "threshold": 0.4}')
    model = load_model(tmp_path)
    assert (model.name, model.channels, model.card.threshold, model.notes) == ("n", ("FLAIR",), 0.4, ())


def test_single_output_is_a_sigmoid(tmp_path):
    write_onnx(tmp_path / "net.onnx", outputs=1)
    values = images.data(load_model(tmp_path).predict([SCAN]).probability)
    assert 0 <= values.min() < values.max() <= 1


def broken_manifest(folder):
    (folder / "net.json").write_text(json.dumps({"inputs": [{"name": "T1"}, {"name": "FLAIR"}]}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (broken_manifest, "takes 1 channel.*T1w, FLAIR"),
        (lambda folder: (folder / "net.json").write_text('{"inputs": [{"name": "DWI"}]}'), "DWI"),
        (lambda folder: (folder / "net.json").write_text("[]"), r"net\.json"),
        (lambda folder: (folder / "net.onnx").write_bytes(b"x"), "no ONNX network"),
        (lambda folder: write_onnx(folder / "other.onnx"), r"several ONNX networks: net\.onnx, other\.onnx"),
        (lambda folder: write_onnx(folder / "net.onnx", channels=3), "takes 3 channel"),
    ],
)
def test_broken_models(tmp_path, damage, words):
    write_onnx(tmp_path / "net.onnx")
    damage(tmp_path)
    with pytest.raises(ConfigError, match=words):
        load_model(tmp_path)


def test_folds_make_no_sense(tmp_path):
    write_onnx(tmp_path / "net.onnx")
    with pytest.raises(ConfigError, match="has no folds"):
        load_model(tmp_path, ("0",))
