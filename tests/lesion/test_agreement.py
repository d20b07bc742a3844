"""Our predictions are those of nnU-Net itself, run on the same model folders and image files."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bids_app import images
from bids_app.lesion.model import load_model
from tests.conftest import stored_as
from tests.lesion.models import head, write_model
from tests.lesion.nnunet import dice, nnunet_predicts

SHAPE = (40, 48, 36)
T1W = head(SHAPE)
FLAIR = head(SHAPE, seed=1, contrast=-1)

#: Model folders, each of which exercises another path; the images are 40 x 48 x 36 voxels of 1 mm.
MODELS = {
    "plain, other spacing": {"mirror_axes": (0, 1, 2)},
    "residual, other spacing": {"architecture": "ResidualEncoderUNet", "mirror_axes": (0, 1, 2)},
    "residual encoder and decoder": {"architecture": "ResidualUNet", "folds": ("0",)},
    "larger than the patch, two channels": {
        "spacing": (1.0, 1.0, 1.0),
        "channels": ("T1", "FLAIR"),
        "mirror_axes": (0, 2),
    },
    "2d": {"configuration": "2d", "patch": (40, 32), "spacing": (1.2, 1.0), "mirror_axes": (0, 1)},
    "2d residual, two channels": {
        "configuration": "2d",
        "architecture": "ResidualEncoderUNet",
        "patch": (24, 32),
        "spacing": (1.5, 1.5),
        "channels": ("T1w", "T2-FLAIR"),
        "mirror_axes": (0,),
    },
    "lowres, transposed, whole-image normalisation, no mirrors": {
        "configuration": "3d_lowres",
        "spacing": (1.8, 1.5, 1.4),
        "transpose": (1, 0, 2),
        "reader": "NibabelIO",
        "use_mask": False,
    },
    "thick slices": {"spacing": (4.0, 1.0, 1.0), "patch": (12, 32, 28)},
    "resampled with torch": {"resampling": "resample_torch_fornnunet"},
    "thick slices, resampled with torch": {
        "resampling": "resample_torch_fornnunet",
        "spacing": (4.0, 1.0, 1.0),
        "patch": (12, 32, 28),
    },
}


@pytest.mark.parametrize("name", MODELS)
def test_same_probabilities_and_mask_as_nnunet(tmp_path, name):
    folder = write_model(tmp_path / "model", **MODELS[name])
    scans = [T1W, FLAIR][: len(MODELS[name].get("channels", ("T1w",)))]
    expected, segmentation = nnunet_predicts(folder, scans, tmp_path / "nnunet")
    found = images.data(load_model(folder).predict(scans).probability)
    mask = np.asarray(segmentation.dataobj) > 0
    assert 0.005 < mask.mean() < 0.9 and expected[1][expected[1] > 0].std() > 0.05  # the comparison is worth something
    assert np.abs(found - expected[1]).mean() < 1e-3
    assert dice(found >= 0.5, mask) >= 0.999


def test_what_difference_there_is_comes_from_the_half_precision_of_nnunet(tmp_path, monkeypatch):
    """nnU-Net sums its windows in fp16; with the same sums in fp32 hardly a trace of the difference is left."""
    from nnunetv2.inference import predict_from_raw_data

    folder = write_model(tmp_path / "model", spacing=(1.0, 1.0, 1.0), folds=("0",), mirror_axes=(1,))
    weights = predict_from_raw_data.compute_gaussian.__wrapped__

    def single_precision_weights(*args, **kwargs):
        return weights(*args, **kwargs, dtype=torch.float32)

    single_precision_weights.cache_clear = lambda: None
    monkeypatch.setattr(predict_from_raw_data, "compute_gaussian", single_precision_weights)
    monkeypatch.setattr(torch, "half", torch.float32)
    expected, _ = nnunet_predicts(folder, [T1W], tmp_path / "nnunet")
    found = images.data(load_model(folder).predict([T1W]).probability)
    np.testing.assert_allclose(found, expected[1], atol=2e-5)


#: Labels, regions_class_order, output of the lesion, labels that nnU-Net's segmentation gives the lesion.
LABELS = {
    "three classes": ({"background": 0, "edema": 1, "stroke": 2}, None, 2, [2]),
    "three classes, the lesion first": ({"background": 0, "stroke": 1, "wmh": 2}, None, 1, [1]),
    "regions": ({"background": 0, "everything": [1, 2], "lesion": [2]}, [1, 2], 1, [2]),
    "a region that another adds to": ({"background": 0, "lesion": [1, 2], "core": [2]}, [1, 2], 0, [1, 2]),
    "a region that another is written over": ({"background": 0, "lesion": [1], "both": [1, 2]}, [1, 2], 0, [1]),
}


@pytest.mark.parametrize("name", LABELS)
def test_other_labels(tmp_path, name):
    labels, order, output, values = LABELS[name]
    folder = write_model(tmp_path / "model", labels=labels, regions_class_order=order, folds=("0", "1"), gain=8)
    expected, segmentation = nnunet_predicts(folder, [T1W], tmp_path / "nnunet")
    model = load_model(folder)
    prediction = model.predict([T1W])
    found = images.data(prediction.probability)
    assert np.abs(found - expected[output]).mean() < 1e-3
    assert expected[output][expected[output] > 0].std() > 0.05
    mask = np.isin(np.asarray(segmentation.dataobj), values)
    by_threshold = prediction.decided is None
    assert (model.terms.threshold.value == 0.5) is by_threshold
    assert dice(found >= 0.5 if by_threshold else images.data(prediction.decided) > 0, mask) >= 0.999
    assert mask.mean() > 0.005
    if not by_threshold:  # a threshold would have given another mask
        assert dice(found >= 0.5, mask) < 0.99


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO", "SimpleITKIOWithReorient", "NibabelIOWithReorient"])
def test_every_storage_order_is_read_as_nnunet_reads_it(tmp_path, orientation, reader):
    folder = write_model(tmp_path / "model", reader=reader, folds=("0",), spacing=(2.0, 1.7, 1.5))
    scan = stored_as(T1W, orientation)
    expected, segmentation = nnunet_predicts(folder, [scan], tmp_path / "nnunet")
    prediction = load_model(folder).predict([scan]).probability
    assert images.same_grid(prediction, scan)
    assert dice(images.data(prediction) >= 0.5, np.asarray(segmentation.dataobj) > 0) >= 0.999
    if "Reorient" not in reader:  # its probabilities stay in the reoriented grid
        assert np.abs(images.data(prediction) - expected[1]).mean() < 1e-3


def test_a_reorienting_reader_answers_the_same_in_world_space_however_the_scan_is_stored(tmp_path, orientation):
    folder = write_model(tmp_path / "model", reader="NibabelIOWithReorient", folds=("0",))
    model = load_model(folder)
    straight = model.predict([T1W]).probability
    stored = model.predict([stored_as(T1W, orientation)]).probability
    np.testing.assert_allclose(images.data(images.to_ras(stored)), images.data(straight), atol=1e-6)
