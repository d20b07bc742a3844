"""Model folders: what is found in them, and what is said of broken ones."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch

from bids_app import images
from bids_app.errors import ConfigError, ExitCode, VisitError
from bids_app.lesion.model import load_model
from bids_app.lesion.nnunet import lesion_output
from bids_app.lesion.segmentation import LesionOutput
from tests.lesion.models import head, write_model

SCAN = head((24, 26, 22))


def edit(path, change):
    """Change a JSON file in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def configuration(plans):
    return next(iter(plans["configurations"].values()))


@pytest.fixture
def folder(tmp_path):
    return write_model(tmp_path / "model", mirror_axes=(0, 1, 2))


def test_what_a_model_says_of_itself(folder):
    model = load_model(folder)
    assert (model.name, model.version, model.channels, model.folds) == ("model", "n/a", ("T1w",), ("0", "1"))
    assert (model.card.threshold, model.card.min_volume_mm3) == (None, None)
    terms = model.terms
    assert (terms.threshold.value, terms.min_volume_mm3.value) == (0.5, 0.0), "as nnUNetv2_predict does it"
    assert model.mirror_axes == (0, 1, 2) and model.patch_size == (24, 32, 28) and len(model.sha256) == 64


def test_card_is_read(folder):
    (folder / "card.json").write_text(json.dumps({"name": "m", "version": "2", "threshold": 0.3, "min_volume_mm3": 0}))
    model = load_model(folder)
    assert (model.name, model.version, model.card.threshold, model.card.min_volume_mm3) == ("m", "2", 0.3, 0.0)


@pytest.mark.parametrize("card", ['{"threshold": 0}', '{"threshold": "much"}', '{"min_volume_mm3": -1}', "[]", "{"])
def test_broken_card(folder, card):
    (folder / "card.json").write_text(card)
    with pytest.raises(ConfigError, match=r"card\.json"):
        load_model(folder)


def test_prediction_is_a_probability_on_the_grid_of_the_scan(folder):
    prediction = load_model(folder).predict([SCAN])
    for image, top in ((prediction.probability, 1.0), (prediction.deviation, 0.5)):
        values = images.data(image)
        assert images.same_grid(image, SCAN) and image.get_data_dtype() == np.float32
        assert values.min() >= 0 and 0.05 < values.max() <= top
        assert values[0, 0, 0] == 0  # outside the box of the brain


def test_deviation_is_that_of_the_folds_own_probabilities(tmp_path):
    folder = write_model(tmp_path / "model", gain=3)
    single = [images.data(load_model(folder, (fold,)).predict([SCAN]).probability) for fold in ("0", "1")]
    both = load_model(folder).predict([SCAN])
    np.testing.assert_allclose(images.data(both.deviation), np.abs(single[0] - single[1]) / 2, atol=1e-5)
    sure = np.logical_and.reduce([(p > 1e-3) & (p < 1 - 1e-3) for p in single])
    logits = [np.log(p[sure] / (1 - p[sure])) for p in single]
    expected = 1 / (1 + np.exp(-np.mean(logits, axis=0)))
    assert sure.sum() > 1000
    np.testing.assert_allclose(images.data(both.probability)[sure], expected, atol=1e-4)


def test_one_fold_has_no_deviation(folder):
    model = load_model(folder, ("1",))
    assert model.folds == ("1",) and model.predict([SCAN]).deviation is None


def test_folds_by_name_and_all(tmp_path):
    model = write_model(tmp_path / "m", folds=("0", "2", "10", "all"))
    assert load_model(model).folds == ("0", "2", "10")
    assert load_model(model, ("fold_2", "all")).folds == ("2", "all")
    assert load_model(write_model(tmp_path / "n", folds=("all",))).folds == ("all",)


def test_checksum_sees_folds_and_weights(folder):
    whole, first = load_model(folder).sha256, load_model(folder, ("0",)).sha256
    (folder / "fold_0" / "checkpoint_final.pth").rename(folder / "fold_0" / "checkpoint_best.pth")
    renamed = load_model(folder).sha256
    assert len({whole, first, renamed}) == 3


def test_half_precision_weights_from_a_stripped_checkpoint(folder):
    whole = images.data(load_model(folder, ("0",)).predict([SCAN]).probability)
    path = folder / "fold_0" / "checkpoint_final.pth"
    weights = torch.load(path, weights_only=False)["network_weights"]
    torch.save(
        {
            "network_weights": {name: value.half() for name, value in weights.items()},
            "inference_allowed_mirroring_axes": [0, 1, 2],
        },
        path,
    )
    half = images.data(load_model(folder, ("0",)).predict([SCAN]).probability)
    assert np.abs(half - whole).mean() < 1e-2 and not np.array_equal(half, whole)


def test_weights_of_compiled_or_distributed_training(folder):
    path = folder / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    checkpoint["network_weights"] = {f"_orig_mod.{k}": v for k, v in checkpoint["network_weights"].items()}
    torch.save(checkpoint, path)
    load_model(folder, ("0",))


def test_nothing_is_printed_and_no_environment_is_needed(folder, capfd, monkeypatch):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(name, raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_model(folder).predict([SCAN])
    assert capfd.readouterr() == ("", "")


def test_folder_above_a_model(tmp_path):
    write_model(tmp_path / "Dataset1" / "nnUNetTrainer__nnUNetPlans__3d_fullres")
    assert load_model(tmp_path / "Dataset1").folds == ("0", "1")
    write_model(tmp_path / "Dataset1" / "nnUNetTrainer__nnUNetPlans__2d", configuration="2d", patch=(8, 8))
    with pytest.raises(ConfigError, match=r"several models.*__2d.*__3d_fullres"):
        load_model(tmp_path / "Dataset1")


def test_configuration_comes_from_checkpoint_then_folder_name(tmp_path):
    model = write_model(tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres", folds=("0",))
    edit(model / "plans.json", lambda plans: plans["configurations"].update({"2d": {}}))
    load_model(model)
    path = model / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    del checkpoint["init_args"]
    torch.save(checkpoint, path)
    load_model(model)
    with pytest.raises(ConfigError, match="which configuration"):
        load_model(model.rename(tmp_path / "renamed"))


def test_inherited_and_old_plans(tmp_path):
    model = write_model(tmp_path / "m", folds=("0",))
    straight = images.data(load_model(model).predict([SCAN]).probability)

    def inherit(plans):
        plans["configurations"]["base"] = plans["configurations"].pop("3d_fullres")
        plans["configurations"]["3d_fullres"] = {"inherits_from": "base", "batch_size": 1}

    edit(model / "plans.json", inherit)
    np.testing.assert_array_equal(images.data(load_model(model).predict([SCAN]).probability), straight)

    def age(plans):  # nnU-Net 2.0 to 2.3 described the network in other words
        settings = plans["configurations"].pop("base") | {"batch_size": 1}
        plans["configurations"] = {"3d_fullres": settings}
        kwargs = settings.pop("architecture")["arch_kwargs"]
        settings |= {
            "UNet_class_name": "PlainConvUNet",
            "UNet_base_num_features": 4,
            "unet_max_num_features": 8,
            "n_conv_per_stage_encoder": kwargs["n_conv_per_stage"],
            "n_conv_per_stage_decoder": kwargs["n_conv_per_stage_decoder"],
            "num_pool_per_axis": [2, 2, 2],
            "pool_op_kernel_sizes": kwargs["strides"],
            "conv_kernel_sizes": kwargs["kernel_sizes"],
        }
        del plans["label_manager"]

    edit(model / "plans.json", age)
    np.testing.assert_array_equal(images.data(load_model(model).predict([SCAN]).probability), straight)


@pytest.mark.parametrize(
    ("names", "ours"),
    [
        (("T1",), ("T1w",)),
        (("t1-weighted",), ("T1w",)),
        (("MPRAGE",), ("T1w",)),
        (("FLAIR", "T1W"), ("FLAIR", "T1w")),
        (("T1w", "T2_FLAIR"), ("T1w", "FLAIR")),
    ],
)
def test_channel_names(tmp_path, names, ours):
    assert load_model(write_model(tmp_path / "m", channels=names, folds=("0",))).channels == ours


@pytest.mark.parametrize(("names", "word"), [(("DWI",), "DWI"), (("T1w", "T1"), "T1w, T1w"), ((), "none")])
def test_channels_that_no_visit_has(tmp_path, names, word):
    folder = write_model(tmp_path / "m", channels=("T1w", "FLAIR"), folds=("0",))
    names = {str(index): name for index, name in enumerate(names)}
    edit(folder / "dataset.json", lambda dataset: dataset.update(channel_names=names))
    with pytest.raises(ConfigError, match=rf"dataset\.json.*{word}"):
        load_model(folder)


def test_a_card_may_name_the_channels(tmp_path):
    folder = write_model(tmp_path / "m", channels=("MRI",), folds=("0",))
    (folder / "card.json").write_text('{"channels": ["T1w"]}')
    assert load_model(folder).channels == ("T1w",)


def test_a_visit_without_the_scans_that_the_model_needs(tmp_path):
    model = load_model(write_model(tmp_path / "m", channels=("T1w", "FLAIR"), folds=("0",)))
    with pytest.raises(VisitError, match="T1w and FLAIR"):
        model.predict([SCAN])


def test_an_empty_scan(folder):
    with pytest.raises(VisitError, match="empty"):
        load_model(folder).predict([images.like(SCAN, np.zeros(SCAN.shape, dtype=np.float32))])


def test_scans_on_different_grids(tmp_path):
    model = load_model(write_model(tmp_path / "m", channels=("T1w", "FLAIR"), folds=("0",)))
    with pytest.raises(ValueError, match="grid"):
        model.predict([SCAN, head((25, 26, 22))])


@pytest.mark.parametrize(
    ("labels", "expected", "noted"),
    [
        ({"background": 0, "lesion": 1}, LesionOutput(1, 2), False),
        ({"background": 0, "tumour": 1}, LesionOutput(1, 2), False),
        ({"background": 0, "wmh": 1, "Lesion": 2}, LesionOutput(2, 3), False),
        ({"background": 0, "stroke": 2, "wmh": 1, "ignore": 3}, LesionOutput(2, 3), False),
        ({"background": 0, "wmh lesion": 1, "lesion": 2}, LesionOutput(2, 3), False),
        ({"background": 0, "stroke core": 1, "oedema": 2}, LesionOutput(1, 3), False),
        ({"background": 0, "a": 1, "b": 2}, LesionOutput(1, 3), True),
        ({"background": 0, "old stroke": 1, "new stroke": 2}, LesionOutput(1, 3), True),
        ({"background": 0, "whole": [1, 2], "stroke": [2]}, LesionOutput(1, 2, independent=True), False),
        ({"background": 0, "whole": [1, 2], "stroke": 2, "x": 1}, LesionOutput(1, 3, independent=True), False),
    ],
)
def test_which_output_is_the_lesion(tmp_path, labels, expected, noted):
    output, notes = lesion_output({"labels": labels}, tmp_path / "dataset.json")
    assert output == expected and bool(notes) is noted


def test_two_classes_need_one_channel():
    logits = torch.randn(3, 2, 4, 5, 6)
    output = LesionOutput(1, 2)
    reduced = output.reduce(logits)
    assert reduced.shape == (3, 1, 4, 5, 6)
    torch.testing.assert_close(output.probability(reduced[0]), torch.softmax(logits[0], 0)[1])


# what a user may do wrong -------------------------------------------------------------------------------------------


def remove(name):
    return lambda folder: (folder / name).unlink()


def in_plans(change):
    return lambda folder: edit(folder / "plans.json", change)


def in_dataset(change):
    return lambda folder: edit(folder / "dataset.json", change)


def in_network(**changes):
    return in_plans(lambda plans: configuration(plans)["architecture"]["arch_kwargs"].update(changes))


def in_checkpoint(change):
    def apply(folder):
        path = folder / "fold_0" / "checkpoint_final.pth"
        checkpoint = torch.load(path, weights_only=False)
        change(checkpoint)
        torch.save(checkpoint, path)

    return apply


BROKEN = {
    "no plans": (remove("plans.json"), r"plans\.json"),
    "no dataset": (remove("dataset.json"), r"dataset\.json"),
    "plans are no JSON": (lambda folder: (folder / "plans.json").write_text("{"), r"plans\.json is not valid JSON"),
    "plans are a list": (lambda folder: (folder / "plans.json").write_text("[]"), r"plans\.json is not a JSON object"),
    "unfinished fold": (remove("fold_1/checkpoint_final.pth"), "fold_1.*checkpoint_final"),
    "no configurations": (in_plans(lambda plans: plans.clear()), "which configuration"),
    "no patch size": (in_plans(lambda plans: configuration(plans).pop("patch_size")), "lacks patch_size"),
    "cascade": (in_plans(lambda plans: configuration(plans).update(previous_stage="3d_lowres")), "cascade"),
    "unknown network": (
        in_plans(lambda plans: configuration(plans)["architecture"].update(network_class_name="evil.Net")),
        "evil.Net",
    ),
    "layer that is no layer": (in_network(nonlin="subprocess.Popen", nonlin_kwargs={"args": "true"}), "Popen"),
    "function of torch.nn": (in_network(nonlin="torch.nn.modules.module.register_module_forward_hook"), "no layer"),
    "impossible network": (in_network(n_stages=5), "no network that can be built"),
    "another network": (in_network(features_per_stage=[4, 8, 16]), "do not fit"),
    "unknown reader": (in_plans(lambda plans: plans.update(image_reader_writer="Tiff3DIO")), "Tiff3DIO"),
    "unknown preprocessor": (in_plans(lambda plans: configuration(plans).update(preprocessor_name="X")), "X"),
    "unknown normalization": (
        in_plans(lambda plans: configuration(plans).update(normalization_schemes=["Magic"])),
        "Magic",
    ),
    "unknown resampling": (in_plans(lambda plans: configuration(plans).update(resampling_fn_data="os")), "resampling"),
    "wrong number of channels": (
        in_dataset(lambda dataset: dataset.update(channel_names={"0": "T1w", "1": "FLAIR"})),
        r"takes 1 channel.*T1w, FLAIR",
    ),
    "channels without numbers": (in_dataset(lambda dataset: dataset.update(channel_names={"T1w": 0})), "number"),
    "no labels": (in_dataset(lambda dataset: dataset.pop("labels")), "no label"),
    "more labels than outputs": (in_dataset(lambda dataset: dataset["labels"].update(wmh=2)), "do not fit"),
    "no weights": (in_checkpoint(lambda checkpoint: checkpoint.pop("network_weights")), "network_weights"),
    "impossible mirrors": (
        in_checkpoint(lambda checkpoint: checkpoint.update(inference_allowed_mirroring_axes=(3,))),
        "mirroring",
    ),
    "empty checkpoint": (lambda folder: (folder / "fold_0" / "checkpoint_final.pth").write_bytes(b""), "damaged"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_model_gets_a_sentence_and_code_78(folder, name):
    damage, words = BROKEN[name]
    damage(folder)
    with pytest.raises(ConfigError, match=words) as caught:
        load_model(folder)
    assert caught.value.exit_code == ExitCode.BAD_CONFIG
    assert str(folder) in caught.value.message and "\n" not in caught.value.message


def test_a_fold_that_is_not_there(folder):
    with pytest.raises(ConfigError, match="no fold 3, x") as caught:
        load_model(folder, ("0", "3", "x"))
    assert "It has: 0, 1." in caught.value.hint


def test_no_model_at_all(tmp_path):
    with pytest.raises(ConfigError, match="no trained-model folder"):
        load_model(tmp_path)
    with pytest.raises(ConfigError, match="There is no model"):
        load_model(tmp_path / "absent")
    (tmp_path / "fold_0").mkdir()
    with pytest.raises(ConfigError, match=r"plans\.json"):
        load_model(tmp_path)
