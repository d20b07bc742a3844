"""The command line of the training."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bids_app.cli import main
from bids_app.cli_parser import options_markdown, read_request
from bids_app.cli_training import WHAT, training_parser
from bids_app.errors import ExitCode, UsageError
from bids_app.settings import TrainingSettings
from tests.training.own.study import MASKS, VISITS, make_study

ROOT = Path(__file__).parents[3]
NEEDED = ("train", "lesion", "--bids", "data", "--masks", "atlas", "--out", "models", "--fusion", "late")


def settings(*more: str) -> TrainingSettings:
    return read_request([*NEEDED, *more]).settings


def test_the_least_that_is_needed():
    found = settings("--nprocs", "2")
    assert found.name == "late"
    assert found.bids_dir == Path("data").absolute()
    assert found.trained_folds == (0, 1, 2, 3, 4)
    assert (found.init, found.preset, found.epochs, found.nprocs) == (None, None, None, 2)


def test_everything_that_can_be_said():
    found = settings(
        "--init", "m", "--folds", "3", "--fold", "0", "2", "--preset", "small", "--epochs", "7", "--device", "cpu",
        "--work_dir", "w", "--participant_label", "sub-01", "02", "--name", "mine", "--skull-stripped", "yes", "-v",
    )  # fmt: skip
    assert (found.init, found.trained_folds, found.preset, found.epochs) == ("m", (0, 2), "small", 7)
    assert (found.participants, found.name, found.verbosity) == (("01", "02"), "mine", 1)
    assert found.work_dir == Path("w").absolute()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--epochs", "0"), "--epochs is '0'"),
        (("--name", "../x"), "no name for a model"),
        (("--fusion", "both"), "invalid choice: 'both'"),
        (("--fold", "one"), "invalid int value"),
        (("--device", "tpu"), "invalid choice"),
    ],
)
def test_what_makes_no_sense_is_a_sentence(more: tuple[str, ...], words: str):
    with pytest.raises(UsageError, match=re.escape(words)):
        settings(*more)


def test_what_is_missing_is_named(capsys):
    assert main(["train", "lesion", "--bids", "data"]) == ExitCode.USAGE
    assert "--masks, --fusion, --out" in capsys.readouterr().err


def test_the_other_commands_are_as_they_were():
    assert read_request(["data", "out", "participant"]).level == "participant"
    assert read_request(["case", "a_T1w.nii.gz", "out"]).level == "case"


def test_a_dataset_that_is_not_there_is_no_input(tmp_path: Path, capsys):
    command = ["train", "lesion", "--bids", str(tmp_path / "no"), "--masks", "arc", "--out", str(tmp_path / "out")]
    assert main([*command, "--fusion", "t1w", "--device", "cpu"]) == ExitCode.NO_INPUT
    assert "does not exist" in capsys.readouterr().err


def test_a_model_that_does_not_fit_is_bad_configuration(tmp_path: Path, capsys):
    command = ["train", "lesion", "--bids", str(tmp_path), "--masks", "arc", "--out", str(tmp_path / "out")]
    assert main([*command, "--fusion", "t1w", "--device", "cpu", "--init", "nothing"]) == ExitCode.BAD_CONFIG
    assert "no lesion model 'nothing'" in capsys.readouterr().err


def test_a_dry_run_prints_the_plan(tmp_path: Path, capsys):
    root = make_study(tmp_path / "bids", visits=VISITS[:3])
    command = ["train", "lesion", "--bids", str(root), "--masks", MASKS, "--out", str(tmp_path / "out"), "--folds", "2"]
    options = ["--fusion", "t1w", "--device", "cpu", "-w", str(tmp_path / "work"), "--dry-run"]
    assert main([*command, *options]) == ExitCode.OK
    assert "3 visits of 2 subjects" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["bids"]


def test_the_help_names_every_option_once():
    options = re.findall(r"^\| `(--[a-z-]+)", options_markdown(training_parser("lesion")), re.MULTILINE)
    assert {"--bids", "--masks", "--fusion", "--out", "--init", "--folds", "--fold", "--preset"} <= set(options)
    assert len(options) == len(set(options))


@pytest.mark.parametrize("name", ["training.md", "training_anomaly.md"])
def test_the_pages_on_training_name_no_option_that_is_not_there(name):
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    actions = [action for what in WHAT for action in training_parser(what)._actions]
    known = {option for action in actions for option in action.option_strings}
    known |= {"--lesion-model", "--anomaly-model", "--nproc-per-node", "--no-python"}  # of the App, and of torchrun
    assert set(re.findall(r"--[a-z][a-z-]+", page)) <= known
