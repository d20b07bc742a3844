"""Starting from another model: which fits what, and how its first convolution is extended."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from bids_app.errors import ConfigError
from bids_app.study.models import Visit
from bids_app.training.fusion import fusion_checkpoint, mean_of_branches
from bids_app.training.own.dataset import Dataset
from bids_app.training.own.planning import Part, check_preset, late_plans, plans_for
from bids_app.training.own.start import find_start, starting_weights
from bids_app.training.plans import CONFIGURATION, FUSIONS, NetworkSize, build_plans, shippable
from bids_app.training.transfer import extend_channels

TINY = NetworkSize(features=(4, 8, 8, 8), patch=(16, 16, 16))


def tiny_plans(fusion: str) -> dict:
    return build_plans(replace(FUSIONS[fusion], size=TINY))


def network_of(plans: dict, channels: int) -> torch.nn.Module:
    described = plans["configurations"][CONFIGURATION]["architecture"]
    return get_network_from_plans(
        described["network_class_name"], described["arch_kwargs"], described["_kw_requires_import"], channels, 2,
        deep_supervision=False,
    )  # fmt: skip


def write_model(folder: Path, fusion: str, folds: tuple[int, ...] = (0,), channels: tuple[str, ...] = ()) -> Path:
    """A model folder of the small preset that was never trained."""
    channels = channels or FUSIONS[fusion].contrasts
    plans = tiny_plans(fusion)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    named = {str(number): name for number, name in enumerate(channels)}
    (folder / "dataset.json").write_text(json.dumps({"channel_names": named, "labels": {"background": 0, "lesion": 1}}))
    for fold in folds:
        torch.manual_seed(fold)
        state = network_of(plans, len(channels)).state_dict()
        checkpoint = {"network_weights": state, "current_epoch": 1, "inference_allowed_mirroring_axes": None}
        (folder / f"fold_{fold}").mkdir()
        torch.save(shippable(checkpoint), folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


def write_late(folder: Path) -> Path:
    branches = {"T1w": "t1w", "FLAIR": "flair"}
    for contrast, place in branches.items():
        write_model(folder / place, place, channels=(contrast,))
    (folder / "plans.json").write_text(json.dumps(late_plans(tiny_plans("t1w"), ("T1w", "FLAIR"), "Dataset505_Late")))
    (folder / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1w", "1": "FLAIR"}, "labels": {}}))
    (folder / "card.json").write_text(json.dumps({"channels": ["T1w", "FLAIR"], "branches": branches}))
    (folder / "fold_0").mkdir()
    torch.save(fusion_checkpoint(mean_of_branches()), folder / "fold_0" / "checkpoint_final.pth")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for fusion in ("t1w", "flair", "early", "intermediate"):
        write_model(root / fusion, fusion, folds=(0, 1))
    write_late(root / "late")
    return root


def start(models: Path, model: str, fusion: str):
    return find_start(str(models / model), fusion)


@pytest.mark.parametrize("fusion", ["t1w", "flair", "early", "intermediate"])
def test_the_same_kind_gives_its_weights_as_they_are(models: Path, fusion: str):
    found = start(models, fusion, fusion)
    plans = found.plans_for(fusion)
    network = network_of(plans, len(FUSIONS[fusion].contrasts))
    architecture = plans["configurations"][CONFIGURATION]["architecture"]
    weights = starting_weights(network, found.checkpoint(fusion, 1), architecture)
    network.load_state_dict(weights)
    given = torch.load(models / fusion / "fold_1" / "checkpoint_final.pth", weights_only=True)["network_weights"]
    assert all(torch.equal(weights[key], value) for key, value in given.items())


def test_each_fold_starts_from_the_same_fold_else_from_the_first(models: Path):
    found = start(models, "t1w", "t1w")
    assert [found.checkpoint("t1w", fold).parent.name for fold in (0, 1, 4)] == ["fold_0", "fold_1", "fold_0"]


def test_early_fusion_begins_by_seeing_two_equal_contrasts_as_one(models: Path):
    found = start(models, "t1w", "early")
    plans = found.plans_for("early")
    assert len(plans["configurations"][CONFIGURATION]["normalization_schemes"]) == 2
    single, double = network_of(tiny_plans("t1w"), 1), network_of(plans, 2)
    architecture = plans["configurations"][CONFIGURATION]["architecture"]
    double.load_state_dict(starting_weights(double, found.checkpoint("early", 0), architecture))
    single.load_state_dict(
        torch.load(models / "t1w" / "fold_0" / "checkpoint_final.pth", weights_only=True)["network_weights"]
    )
    volume = torch.randn(1, 1, 32, 32, 32)
    with torch.no_grad():
        expected, got = single.eval()(volume), double.eval()(torch.cat([volume, volume], dim=1))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_the_mean_of_two_contrasts_is_what_the_first_convolution_sees():
    torch.manual_seed(0)
    weight, volumes = torch.randn(3, 1, 3, 3, 3), torch.randn(2, 1, 8, 8, 8)
    both = torch.nn.functional.conv3d(volumes.view(1, 2, 8, 8, 8), extend_channels(weight, 2))
    torch.testing.assert_close(both, torch.nn.functional.conv3d(volumes.mean(0, keepdim=True), weight))


def test_voxel_blocks_of_scan_and_mirror_image_stay_apart():
    weight = torch.arange(16.0).reshape(1, 16, 1, 1, 1)
    extended = extend_channels(weight, 2, groups=2).ravel().tolist()
    scan, mirrored = [n / 2 for n in range(8)], [n / 2 for n in range(8, 16)]
    assert extended == scan + scan + mirrored + mirrored


def test_late_fusion_starts_from_a_t1w_model_in_both_branches(models: Path):
    found = start(models, "t1w", "late")
    assert found.checkpoint("flair", 0) == found.checkpoint("t1w", 0)
    assert found.checkpoint("t1w", 0).parts[-3] == "t1w" and not found.embedded


def test_late_fusion_starts_from_the_branches_of_another(models: Path):
    found = start(models, "late", "late")
    assert [found.checkpoint(part, 0).parts[-3] for part in ("t1w", "flair")] == ["t1w", "flair"]


@pytest.mark.parametrize(
    ("model", "fusion"),
    [
        ("flair", "t1w"), ("t1w", "flair"), ("early", "t1w"), ("flair", "early"), ("intermediate", "early"),
        ("early", "intermediate"), ("t1w", "intermediate"), ("late", "t1w"), ("early", "late"),
        ("flair", "late"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_words(models: Path, model: str, fusion: str):
    with pytest.raises(ConfigError, match=r"is a .* of .*from which --fusion"):
        start(models, model, fusion)


def test_an_unknown_model_is_told():
    with pytest.raises(ConfigError, match="no lesion model 'nothing'"):
        find_start("nothing", "t1w")


def test_weights_of_another_architecture_are_refused(models: Path):
    plans = build_plans(replace(FUSIONS["t1w"], size=replace(TINY, features=(8, 8, 8, 8))))
    architecture = plans["configurations"][CONFIGURATION]["architecture"]
    with pytest.raises(ConfigError, match="do not fit"):
        starting_weights(network_of(plans, 1), models / "t1w" / "fold_0" / "checkpoint_final.pth", architecture)


def test_the_embedded_models_can_be_started_from():
    from bids_app.networks.registry import LESION, embedded_models

    models = [model for model in embedded_models() if model.kind == LESION]
    assert models
    for model in models:
        channels = json.loads((model.folder / "card.json").read_text())["channels"]
        fusion = {("T1w",): "t1w", ("FLAIR",): "flair"}.get(tuple(channels))
        if fusion:
            found = find_start(model.name, fusion)
            assert found.embedded
            plans = found.plans_for(fusion)
            architecture = plans["configurations"][CONFIGURATION]["architecture"]
            assert starting_weights(network_of(plans, 1), found.checkpoint(fusion, 0), architecture)


def test_intermediate_fusion_is_small():
    with pytest.raises(ConfigError, match="small preset"):
        check_preset("intermediate", "resenc-m", None)


def test_a_preset_has_to_be_that_of_the_model(models: Path):
    found = start(models, "t1w", "t1w")
    check_preset("t1w", "small", found)
    with pytest.raises(ConfigError, match="not the preset resenc-m"):
        check_preset("t1w", "resenc-m", found)


def test_plans_are_named_after_their_dataset(tmp_path: Path):
    dataset = Dataset(tmp_path, 501, "OwnT1w", ("T1w",))
    assert plans_for(Part("t1w", 501), dataset, "small", None, 1)["dataset_name"] == "Dataset501_OwnT1w"


def test_late_plans_are_those_of_the_embedded_late_fusion():
    made = late_plans(build_plans(FUSIONS["t1w"]), ("T1w", "FLAIR"), FUSIONS["late"].dataset)
    wanted = build_plans(FUSIONS["late"])
    for plans in (made, wanted):  # the order of the names to import is no matter
        plans["configurations"][CONFIGURATION]["architecture"]["_kw_requires_import"].sort()
    assert made == wanted


@pytest.mark.slow
def test_resenc_m_is_planned_by_nnunet_for_the_data(tmp_path: Path):
    from bids_app import images
    from bids_app.training.own.cases import Case
    from bids_app.training.own.dataset import write_raw
    from bids_app.training.own.prepare import Ready
    from tests.training.own.study import ball, brain

    whole = brain(3)
    scan = images.save(whole, tmp_path / "T1w.nii.gz")
    mask = images.save(images.like(whole, ball(whole, (-36, -22, 22), 18)), tmp_path / "mask.nii.gz")
    cases = [
        Ready(Case(Visit(subject, None, None, None), mask, scan, 24.0), (("T1w", scan),), mask, "") for subject in "ab"
    ]
    dataset = Dataset(tmp_path / "base", 501, "OwnT1w", ("T1w",))
    write_raw(dataset, cases)
    plans = plans_for(Part("t1w", 501), dataset, "resenc-m", None, 1)
    assert (plans["dataset_name"], plans["image_reader_writer"]) == ("Dataset501_OwnT1w", "NibabelIOWithReorient")
    configuration = plans["configurations"][CONFIGURATION]
    assert configuration["architecture"]["network_class_name"].endswith("ResidualEncoderUNet")
    assert configuration["spacing"] == [3.0, 3.0, 3.0]
    again = plans_for(Part("t1w", 501), dataset, "resenc-m", None, 1)
    assert again == plans
