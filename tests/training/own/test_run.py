"""The whole training on a tiny dataset, from the scans to a model that the App runs."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from bids_app import images
from bids_app.errors import ConfigError, NoInputError, UsageError
from bids_app.lesion.model import load_model
from bids_app.lesion.preparation import prepare
from bids_app.settings import TrainingSettings
from bids_app.training.fusion import fusion_checkpoint, mean_of_branches
from bids_app.training.own import out_of_fold, run
from bids_app.training.own.trainer import OwnTrainer
from tests.training.own.study import MASKS, VISITS, make_study

ROOT = Path(__file__).parents[3]
LABELS = {f"sub-{subject}_ses-{session}" for subject, session, *_ in VISITS}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("training")
    make_study(root / "bids", flair=True)
    return root


@pytest.fixture(scope="module")
def t1w(place: Path, trained: Callable) -> TrainingSettings:
    return trained(place, "t1w")


def card_of(settings: TrainingSettings) -> dict:
    return json.loads((settings.out_dir / settings.name / "card.json").read_text())


def scans_of(settings: TrainingSettings, channels: tuple[str, ...]) -> list[images.Image]:
    folder = prepared(settings, channels)
    return [images.load(folder / f"{channel}.nii.gz") for channel in channels]


def prepared(settings: TrainingSettings, channels: tuple[str, ...]) -> Path:
    """Folder of the prepared case ``sub-01_ses-1``."""
    scans = settings.work_dir / "training" / "scans" / "-".join(channels)
    return next(scans.glob("sub-01_ses-1_*"))


def test_the_result_is_a_model_that_the_app_runs(t1w: TrainingSettings):
    model = load_model(t1w.out_dir / "t1w")
    assert (model.channels, model.folds, model.mirror_axes) == (("T1w",), ("0", "1"), ())
    probability = images.data(model.predict(scans_of(t1w, ("T1w",))).probability)
    assert 0 <= probability.min() < probability.max() <= 1


def test_the_card_tells_what_was_done_and_measured(t1w: TrainingSettings):
    card = card_of(t1w)
    assert card["training_data"] == [{"what": "Tiny", "cases": 7, "subjects": 6}]
    assert card["scores"]["cross_validation"]["all"]["n"] == 6
    assert card["scores"]["cross_validation"]["healthy"]["n"] == 1
    assert 0.1 <= card["threshold"] <= 0.9
    assert card["spacing_mm"] == [4.0, 4.0, 4.0]
    assert card["parameters"] > 0
    assert (card["input"], str(load_model(t1w.out_dir / "t1w").terms.input.value)) == ("rigid", "rigid")


def test_splits_keep_both_sessions_of_a_subject_together(t1w: TrainingSettings):
    path = next((t1w.work_dir / "training" / "t1w").rglob("splits_final.json"))
    splits = json.loads(path.read_text())
    assert {label for split in splits for label in split["val"]} == LABELS
    for split in splits:
        assert len({label in split["val"] for label in ("sub-01_ses-1", "sub-01_ses-2")}) == 1


def test_checkpoints_are_stripped_and_name_nnunets_own_trainer(t1w: TrainingSettings):
    checkpoint = torch.load(t1w.out_dir / "t1w" / "fold_0" / "checkpoint_final.pth", weights_only=True)
    assert (checkpoint["trainer_name"], checkpoint["optimizer_state"]) == ("nnUNetTrainer", {})
    assert checkpoint["inference_allowed_mirroring_axes"] is None


def test_a_second_call_trains_nothing_again(place: Path, t1w: TrainingSettings, trained: Callable, monkeypatch):
    checkpoint = t1w.out_dir / "t1w" / "fold_0" / "checkpoint_final.pth"
    before = torch.load(checkpoint, weights_only=True)["network_weights"]
    monkeypatch.setattr(OwnTrainer, "run_training", lambda self: pytest.fail("trained again"))
    trained(place, "t1w")
    after = torch.load(checkpoint, weights_only=True)["network_weights"]
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_other_options_under_the_same_name_are_refused(place: Path, t1w: TrainingSettings, trained: Callable):
    with pytest.raises(ConfigError, match="begun with other epochs"):
        trained(place, "t1w", epochs=3)


def test_early_fusion_starts_from_the_t1w_model(place: Path, t1w: TrainingSettings, trained: Callable):
    settings = trained(place, "early", init=str(t1w.out_dir / "t1w"), chosen_folds=(1,))
    model = load_model(settings.out_dir / "early")
    assert (model.channels, model.folds) == (("T1w", "FLAIR"), ("1",))
    card = card_of(settings)
    assert "learning rate 0.001" in card["recipe"]
    assert "too good" in card["notes"][0] and "One fold was trained" in card["notes"][1]


@pytest.fixture(scope="module")
def late(place: Path, trained: Callable) -> TrainingSettings:
    return trained(place, "late")


def test_late_fusion_is_two_models_and_a_convolution(late: TrainingSettings):
    folder = late.out_dir / "late"
    assert card_of(late)["branches"] == {"T1w": "t1w", "FLAIR": "flair"}
    weights = torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=True)["network_weights"]
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    assert shapes == {"fusion.weight": (2, 4, 1, 1, 1), "fusion.bias": (2,)}
    model = load_model(folder)
    assert (model.channels, model.folds) == (("T1w", "FLAIR"), ("0", "1"))
    assert load_model(folder / "flair").channels == ("FLAIR",)


def test_the_fusion_of_a_fold_knows_nothing_of_its_own_validation_cases(late: TrainingSettings, monkeypatch):
    logits = late.work_dir / "training" / "late" / "out_of_fold" / "logits"
    assert {path.stem for path in logits.glob("*.npz")} == LABELS
    asked = []
    monkeypatch.setattr(out_of_fold, "_read_logits", lambda path: path.stem)
    monkeypatch.setattr(out_of_fold, "fit_fusion", lambda cases: asked.append(set(cases)))
    path = next((late.work_dir / "training" / "late").rglob("splits_final.json"))
    splits = json.loads(path.read_text())
    seen = [out_of_fold.Seen(_Labelled(label), fold) for fold, split in enumerate(splits) for label in split["val"]]
    out_of_fold.fit_fusions(late.out_dir / "late", seen, None, logits)
    assert asked == [set(splits[1]["val"]), set(splits[0]["val"])]


class _Labelled:
    def __init__(self, label: str):
        self.label = label


def test_the_logits_that_are_fitted_are_those_that_are_fused(late: TrainingSettings):
    """With the mean of the branches in place of the fitted fusion, the App's probability is that of the mean logits."""
    folder = late.work_dir / "mean"
    shutil.copytree(late.out_dir / "late", folder, dirs_exist_ok=True)
    work = late.work_dir / "training" / "late"
    splits = json.loads(next(work.rglob("splits_final.json")).read_text())
    fold = next(number for number, split in enumerate(splits) if "sub-01_ses-1" in split["val"])
    torch.save(fusion_checkpoint(mean_of_branches()), folder / f"fold_{fold}" / "checkpoint_final.pth")
    with np.load(work / "out_of_fold" / "logits" / "sub-01_ses-1.npz") as content:
        logits, truth = content["logits"].astype(np.float32), content["truth"]
    lesion = (logits[1] - logits[0] + logits[3] - logits[2]) / 2
    model, scans = load_model(folder, (str(fold),)), scans_of(late, ("T1w", "FLAIR"))
    box, axes = prepare(scans, model.recipe).box, model.recipe.axes
    probability = images.data(model.predict(scans).probability).transpose(axes)[box]
    np.testing.assert_allclose(probability.ravel(), 1 / (1 + np.exp(-lesion)), atol=0.01)
    mask = images.load(prepared(late, ("T1w", "FLAIR")) / "mask.nii.gz")
    np.testing.assert_array_equal(images.data(mask).transpose(axes)[box].ravel() > 0, truth)


def test_too_few_subjects_are_told(place: Path, trained: Callable):
    with pytest.raises(NoInputError, match="6 subjects cannot be dealt out to 7 folds"):
        trained(place, "t1w", folds=7, name="seven")


def test_a_fold_that_does_not_exist_is_told(place: Path, trained: Callable):
    with pytest.raises(UsageError, match="no fold 2 among 2"):
        trained(place, "t1w", chosen_folds=(2,), name="two")


def test_the_model_of_another_training_is_not_replaced(place: Path, t1w: TrainingSettings, trained: Callable):
    with pytest.raises(UsageError, match="holds something already"):
        run.train_lesion(dataclasses.replace(t1w, work_dir=place / "elsewhere"))
    assert (t1w.out_dir / "t1w" / "card.json").exists()


def test_a_table_says_what_became_of_each_visit(t1w: TrainingSettings):
    table = pd.read_csv(t1w.work_dir / "training" / "t1w" / "cases.tsv", sep="\t").set_index("visit")
    assert set(table.index) == LABELS and set(table.fold) == {0, 1}
    assert "empty-mask" in set(table.problem)


def test_a_dry_run_writes_nothing(place: Path, tmp_path: Path, capsys):
    settings = TrainingSettings(
        place / "bids", MASKS, tmp_path / "out", "early", "early", tmp_path / "work", folds=3, device="cpu"
    )
    run.train_lesion(settings, dry_run=True)
    text = capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    for words in ("7 visits of 6 subjects", "empty-mask", "fold  train  validate", "3 networks, 1000 epochs"):
        assert words in text


#: The App with an epoch of two steps; nothing else is changed.
SHORT = """
import sys
from bids_app.training.own import train
train.STEPS, train.VALIDATION_STEPS = 2, 1
from bids_app.cli import main
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_the_command_line_trains_and_the_app_runs_the_result(tmp_path: Path):
    """Two subjects through preparation, training of the small preset and a participant run with the model."""
    make_study(tmp_path / "bids", visits=(VISITS[0], VISITS[2]))
    script = tmp_path / "short.py"
    script.write_text(SHORT)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def app(*arguments: object) -> subprocess.CompletedProcess:
        command = [sys.executable, str(script), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)

    done = app(
        "train", "lesion", "--bids", tmp_path / "bids", "--masks", MASKS, "--out", tmp_path / "models",
        "--fusion", "t1w", "--folds", 2, "--fold", 0, "--epochs", 1, "--nprocs", 1, "--device", "cpu",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "T1w, fold 0: epoch 1 of 1" in done.stdout
    derived = app(
        tmp_path / "bids", tmp_path / "derived", "participant", "--lesion-model", tmp_path / "models" / "t1w",
        "--participant-label", "02", "--skip-bids-validation", "--no-normalization", "--nprocs", 1, "--device", "cpu",
    )  # fmt: skip
    assert derived.returncode == 0, derived.stderr
    assert list((tmp_path / "derived" / "sub-02" / "ses-1" / "anat").glob("*_probseg.nii.gz"))
