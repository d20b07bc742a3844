"""nnU-Net's trainer under our command: reports, going on, ending early."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bids_app.training.own import run, train
from bids_app.training.own import trainer as own_trainer
from bids_app.training.own.dataset import nnunet_folders
from bids_app.training.own.progress import Epoch, Lines, duration
from bids_app.training.own.trainer import OwnTrainer
from tests.training.own.study import make_study


class Heard:
    """A reporter that remembers."""

    def __init__(self):
        self.said, self.epochs = [], []

    def say(self, text: str) -> None:
        self.said.append(text)

    def epoch(self, what: str, epoch: Epoch) -> None:
        self.epochs.append((what, epoch))


@pytest.fixture(scope="module")
def first_run(tmp_path_factory, trained: Callable) -> train.Run:
    """How fold 0 of a training with one epoch would be trained, its dataset being ready."""
    root = tmp_path_factory.mktemp("train")
    make_study(root / "bids")
    kept = []
    with pytest.MonkeyPatch.context() as patch:

        def keep(item: train.Run, reporter):
            kept.append(item)
            raise KeyboardInterrupt

        patch.setattr(run, "train_fold", keep)
        with pytest.raises(KeyboardInterrupt):
            trained(root, "t1w", epochs=3)
    return kept[0]


def test_ctrl_c_leaves_a_training_that_goes_on(first_run: train.Run, monkeypatch):
    heard = Heard()
    with monkeypatch.context() as patch:
        patch.setattr(heard, "epoch", lambda what, epoch: _interrupt(epoch, after=2), raising=False)
        with pytest.raises(KeyboardInterrupt):
            train.train_fold(first_run, heard)
    assert (first_run.folder / train.LATEST).is_file()
    assert not first_run.is_done
    again = Heard()
    train.train_fold(first_run, again)
    assert again.said == ["T1w, fold 0: goes on after epoch 2"]
    assert [epoch.number for _, epoch in again.epochs] == [3]
    assert first_run.is_done
    last = Heard()
    train.train_fold(first_run, last)
    assert last.said == ["T1w, fold 0: trained before"]


def _interrupt(epoch: Epoch, after: int) -> None:
    if epoch.number == after:
        raise KeyboardInterrupt


def test_the_network_that_sees_both_sides_is_not_mirrored(first_run: train.Run):
    with nnunet_folders(first_run.dataset.base, 0):
        trainer = train._trainer(first_run, Heard())
        *_, axes = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    assert (axes, trainer.inference_allowed_mirroring_axes) == ((), None)


def test_other_networks_are_mirrored_as_nnunet_does(first_run: train.Run, monkeypatch):
    with nnunet_folders(first_run.dataset.base, 0):
        trainer = train._trainer(first_run, Heard())
        name = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
        trainer.configuration_manager.configuration["architecture"]["network_class_name"] = name
        *_, axes = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    assert axes == (0, 1, 2)


@pytest.mark.parametrize("able", [True, False])
def test_a_processor_that_computes_bf16_does(first_run: train.Run, monkeypatch, able: bool):
    monkeypatch.setattr(own_trainer, "computes_bf16", lambda name: able)
    seen = []
    with nnunet_folders(first_run.dataset.base, 0):
        network = train._trainer(first_run, Heard()).network
    first = next(module for module in network.modules() if isinstance(module, torch.nn.Conv3d))
    first.register_forward_hook(lambda module, given, result: seen.append(result.dtype))
    logits = network(torch.randn(1, 1, 48, 48, 48))
    assert seen == [torch.bfloat16 if able else torch.float32]
    assert {level.dtype for level in logits} == {torch.float32}
    sum(level.square().mean() for level in logits).backward()
    assert first.weight.grad.dtype == torch.float32


def test_the_environment_is_left_as_it_was(tmp_path: Path, monkeypatch):
    raw = "nnUNet_raw"
    monkeypatch.setenv(raw, "mine")
    monkeypatch.delenv("nnUNet_results", raising=False)
    with nnunet_folders(tmp_path, 0):
        assert os.environ.get(raw) == str(tmp_path / raw)
        assert os.environ.get("nnUNet_n_proc_DA") == "0"  # noqa: SIM112
    assert os.environ.get(raw) == "mine"
    assert "nnUNet_results" not in os.environ


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")])
def test_a_device_without_enough_memory_is_told(first_run: train.Run, monkeypatch, error):
    def fail(self):
        raise error

    monkeypatch.setattr(OwnTrainer, "run_training", fail)
    with pytest.raises(train.UnavailableError, match="memory of cpu does not suffice"):
        train.train_fold(replace(first_run, fold=1), Heard())


def test_lines_say_everything(capsys):
    Lines().epoch("T1w, fold 0", Epoch(3, 1000, -0.4512, 0.53, 7500))
    expected = "T1w, fold 0: epoch 3 of 1000, loss -0.451, pseudo-Dice 0.530, 2 h 05 min left\n"
    assert capsys.readouterr().out == expected


def test_durations():
    assert [duration(seconds) for seconds in (5, 89, 91, 3400, 3600)] == [
        "5 s",
        "89 s",
        "2 min",
        "57 min",
        "1 h 00 min",
    ]
