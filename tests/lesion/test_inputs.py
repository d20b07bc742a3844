"""What a model wants to see, as cards and the command line write it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bids_app.errors import ConfigError, ExitCode
from bids_app.lesion.card import read_card
from bids_app.lesion.inputs import LesionInput, is_input, parse_input
from bids_app.lesion.terms import read_terms
from bids_app.networks.registry import embedded_models
from bids_app.settings import Settings
from tests.lesion.test_folder import make

WORDS = {
    "native": LesionInput("native", False),
    "native:raw": LesionInput("native", False),
    "native:n4": LesionInput("native", True),
    "native-brain": LesionInput("native-brain", False),
    "native-brain:n4": LesionInput("native-brain", True),
    "rigid": LesionInput("rigid", True),
    "rigid:n4": LesionInput("rigid", True),
    "rigid:raw": LesionInput("rigid", False),
    "affine": LesionInput("affine", True),
    "affine:raw": LesionInput("affine", False),
}


@pytest.mark.parametrize("text", WORDS)
def test_every_word_is_understood_and_written_back(text: str):
    wanted = parse_input(text)
    assert wanted == WORDS[text] and is_input(text)
    assert parse_input(str(wanted)) == wanted


@pytest.mark.parametrize("text", ["", "raw", "Native", "native:", "native:N4", "pose", "native-brain:n4:raw", "mni"])
def test_other_words_are_not(text: str):
    assert not is_input(text)
    with pytest.raises(ValueError, match="native, native-brain, rigid or affine"):
        parse_input(text)


def test_what_the_words_mean():
    assert parse_input("native").words == "the scan on its own grid, skull on, grey values as in the file"
    assert "MNI at 1 mm, bias field corrected" in parse_input("affine").words
    assert [word for word in WORDS if not parse_input(word).brain_alone] == ["native", "native:raw", "native:n4"]
    assert {word for word in WORDS if parse_input(word).own_grid} == {word for word in WORDS if "native" in word}


# ------------------------------------------------------------------------------------------------------- cards


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make(tmp_path / "model", "plans.json", "dataset.json", "fold_0/checkpoint_final.pth")


def write_card(folder: Path, **content: object) -> Path:
    (folder / "card.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ({"input": "native-brain"}, "native-brain"),
        ({"input": "rigid:raw"}, "rigid:raw"),
        ({"input": "native", "bias_correction": True}, "native:n4"),
        ({"input": "affine", "bias_correction": False}, "affine:raw"),
        ({"input": "affine:raw", "bias_correction": False}, "affine:raw"),
        ({"input": None}, None),
        ({"space": "pose: brain-extracted, bias-corrected"}, "rigid"),
        ({"space": "pose: brain-extracted, bias-corrected", "input": "affine"}, "affine"),
        ({"space": "MNI"}, None),
        ({"threshold": 0.4}, None),
    ],
)
def test_a_card_says_what_its_model_wants(model: Path, content: dict, wanted: str | None):
    found = read_card(write_card(model, **content), "model").input
    assert found == (None if wanted is None else parse_input(wanted))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"input": "pose"}, r"wants the input 'pose'.*native, native-brain, rigid or affine"),
        ({"input": "Native"}, "wants the input 'Native'"),
        ({"input": 3}, "wants the input 3"),
        ({"input": ["native"]}, "wants the input"),
        ({"input": "native", "bias_correction": "no"}, "bias_correction 'no'.*true or false"),
        ({"input": "native:n4", "bias_correction": False}, "contradicts itself.*native:raw"),
        ({"bias_correction": True}, "bias_correction and no input"),
        ({"Input": "native"}, "an entry 'Input'.*Write it as input"),
        ({"min-volume-mm3": 3}, "Write it as min_volume_mm3"),
        ({"threshold": 1.5}, "threshold 1.5"),
    ],
)
def test_a_wrong_card_is_refused_with_78(model: Path, content: dict, words: str):
    write_card(model, **content)
    with pytest.raises(ConfigError, match=words) as caught:
        read_terms(model)
    assert caught.value.exit_code is ExitCode.BAD_CONFIG
    assert str(model / "card.json") in caught.value.message


def test_a_card_above_its_model_is_not_passed_over(tmp_path: Path):
    inner = make(tmp_path / "Dataset1" / "T__P__3d", "plans.json", "dataset.json", "fold_0/checkpoint_final.pth")
    write_card(inner.parent, input="rigid")
    with pytest.raises(ConfigError, match=r"lies above its model.*Move it into .*T__P__3d"):
        read_terms(inner.parent)
    write_card(inner, input="affine")
    assert str(read_terms(inner.parent).input.value) == "affine"


# ------------------------------------------------------------------------------------------------------- terms


def said(path: Path, **chosen: object) -> dict[str, tuple[object, str]]:
    """Value and source of each term."""
    terms = read_terms(path).chosen(Settings(out_dir=Path("out"), **chosen))
    return {
        name: (stated.value if name != "input" else str(stated.value), stated.source)
        for name, stated in vars(terms).items()
        if name != "steps"
    }


def test_without_a_card_everything_is_as_in_nnunet(model: Path):
    assert said(model) == {
        "input": ("native", "no card"),
        "threshold": (0.5, "no card"),
        "min_volume_mm3": (0.0, "no card"),
    }
    terms = read_terms(model)
    assert terms.threshold_in_words == "threshold 0.5 (no card)"
    assert terms.input_in_words == (
        "native (no card): the scan on its own grid, skull on, grey values as in the file, as nnUNetv2_predict takes it"
    )


def test_several_classes_have_no_threshold(model: Path):
    (model / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "stroke": 1, "wmh": 2}}))
    terms = read_terms(model)
    assert terms.threshold.value is None
    assert terms.threshold_in_words == "lesion where no other class is more probable, as nnU-Net decides (no card)"
    assert said(model, threshold=0.3)["threshold"] == (0.3, "--threshold")


def test_a_card_that_is_silent_is_told_from_none(model: Path):
    write_card(model, threshold=0.4)
    assert said(model) == {
        "input": ("native", "its card does not say"),
        "threshold": (0.4, "its card"),
        "min_volume_mm3": (0.0, "its card does not say"),
    }


def test_the_user_has_the_last_word_and_a_card_that_says_otherwise_is_named(model: Path):
    chosen = {"lesion_input": "native-brain:n4", "min_lesion_volume": 5.0}
    assert said(model, **chosen)["input"] == ("native-brain:n4", "--lesion-input")
    assert said(model, **chosen)["min_volume_mm3"] == (5.0, "--min-lesion-volume")
    write_card(model, input="rigid")
    assert said(model, **chosen)["input"] == ("native-brain:n4", "--lesion-input; its card says rigid")
    assert said(model, lesion_input="rigid:n4")["input"] == ("rigid", "--lesion-input")


def fusion(folder: Path, **inputs: str) -> Path:
    """A late fusion of branches, and the input that the card of each part names."""
    cards = {name: {"input": wanted} for name, wanted in inputs.items()}
    for name in ("late", "t1w", "flair"):
        make(folder / name, "plans.json", "dataset.json", "fold_0/checkpoint_final.pth")
        if name in cards or name == "late":
            branches = {"branches": {"T1w": "../t1w", "FLAIR": "../flair"}} if name == "late" else {}
            write_card(folder / name, **cards.get(name, {}), **branches)
    return folder / "late"


@pytest.mark.parametrize(
    ("inputs", "wanted", "source"),
    [
        ({"late": "affine"}, "affine", "its card"),
        ({"late": "rigid", "t1w": "rigid:n4"}, "rigid", "its card"),
        ({"t1w": "rigid", "flair": "rigid"}, "rigid", "the card of t1w"),
        ({}, "native", "its card does not say"),
    ],
)
def test_a_fusion_and_its_branches_see_the_same(tmp_path: Path, inputs: dict, wanted: str, source: str):
    assert said(fusion(tmp_path, **inputs))["input"] == (wanted, source)


@pytest.mark.parametrize("inputs", [{"late": "rigid", "flair": "native"}, {"t1w": "native", "flair": "native:n4"}])
def test_a_fusion_whose_cards_contradict_each_other_is_refused(tmp_path: Path, inputs: dict):
    with pytest.raises(ConfigError, match=r"contradict each other: .* wants .*; .* wants"):
        read_terms(fusion(tmp_path, **inputs))


@pytest.mark.parametrize("version", ["StrokeSeg 1", "StrokeSeg 2"])
def test_an_onnx_network_gets_the_steps_of_a_version_of_strokeseg(tmp_path: Path, version: str):
    network = make(tmp_path, "net.onnx")
    if version == "StrokeSeg 2":
        (network / "net.json").write_text(json.dumps({"inputs": [{"name": "T1", "reference": "T1"}]}))
    terms = read_terms(network)
    assert str(terms.input.value) == "rigid" and terms.input.source.startswith(version)
    assert (terms.threshold.value, terms.min_volume_mm3.value) == (0.5, 0.0)
    assert terms.input_in_words.endswith("with this App's brain extraction in place of its own")
    assert f"; then the steps of {version}" in terms.input_in_words
    write_card(network, input="affine")
    assert str(read_terms(network).input.value) == "affine"


def test_the_embedded_models_want_the_rigid_pose_by_their_cards():
    models = [model for model in embedded_models() if model.kind == "lesion"]
    assert len(models) == 3
    for model in models:
        assert said(model.folder)["input"] == ("rigid", "its card")
        assert said(model.folder)["threshold"][1] == "its card"
