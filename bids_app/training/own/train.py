"""One fold after the other through nnU-Net's trainer: how long, from where, and whom to report to."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bids_app.errors import NO_SPACE as NO_SPACE_CODES
from bids_app.errors import AppError, UnavailableError, no_space_left
from bids_app.lesion.folder import read_json
from bids_app.networks.device import release_memory
from bids_app.training.own.dataset import Dataset, nnunet_folders
from bids_app.training.own.progress import Reporter
from bids_app.training.own.start import starting_weights
from bids_app.training.plans import CONFIGURATION

if TYPE_CHECKING:
    from bids_app.training.own.trainer import OwnTrainer

FINAL, LATEST = "checkpoint_final.pth", "checkpoint_latest.pth"
#: Name of the class of the trainer, which nnU-Net makes a part of the name of its folders.
TRAINER = "OwnTrainer"

#: nnU-Net's own number of epochs, of 250 steps each.
EPOCHS = 1000
#: Epochs of a training that starts from a model.
EPOCHS_FROM_INIT = 200
#: nnU-Net's own steps of an epoch, and those of its validation.
STEPS, VALIDATION_STEPS = 250, 50
#: nnU-Net's own learning rate.
RATE = 1e-2
#: Rate of a training that starts from a model: a tenth, so that the first steps of SGD with its momentum of 0.99 do not
#: undo what the model knows.
RATE_FROM_INIT = 1e-3
#: Augmentation processes of nnU-Net on a GPU, at most.
MAX_PROCESSES = 12


@dataclass(frozen=True)
class Run:
    """How one fold is trained.

    Attributes
    ----------
    dataset : Dataset
    plans : dict
    fold : int
    epochs : int
    device : str
        ``cpu`` or ``cuda:N``.
    processes : int
        For augmentation on a GPU.
    start : Path or None
        Checkpoint that the weights are taken from.
    """

    dataset: Dataset
    plans: dict
    fold: int
    epochs: int
    device: str
    processes: int = 1
    start: Path | None = None

    @property
    def folder(self) -> Path:
        """Where nnU-Net keeps log and checkpoints of the fold."""
        name = f"{TRAINER}__{self.plans['plans_name']}__{CONFIGURATION}"
        return self.dataset.results / name / f"fold_{self.fold}"

    @property
    def is_done(self) -> bool:
        return (self.folder / FINAL).is_file()

    @property
    def what(self) -> str:
        """For messages, as in ``T1w, fold 0``."""
        return f"{' + '.join(self.dataset.channels)}, fold {self.fold}"


def train_fold(run: Run, reporter: Reporter) -> Path:
    """Train one fold, or go on where it was left; a finished fold is left alone.

    Ctrl-C leaves the last checkpoint, of the end of an epoch.

    Returns
    -------
    Path
        Folder of the fold, with ``checkpoint_final.pth``.

    Raises
    ------
    UnavailableError
        If the memory of the device does not suffice.
    CannotWriteError
        If the disk is full.
    """
    if run.is_done:
        reporter.say(f"{run.what}: trained before")
        return run.folder
    processes = min(MAX_PROCESSES, run.processes) if run.device.startswith("cuda") else 0
    with nnunet_folders(run.dataset.base, processes), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = _trainer(run, reporter)
        try:
            trainer.run_training()
        except RuntimeError as error:
            release_memory(error)
            raise UnavailableError(
                f"The memory of {run.device} does not suffice to train {run.what}.",
                "Use another device, or --preset small.",
            ) from error
        except OSError as error:
            raise _disk_error(error, run) from error
        finally:
            trainer.stop_workers()
    return run.folder


def _trainer(run: Run, reporter: Reporter) -> OwnTrainer:
    """A trainer at the start of a fold, or at its last checkpoint."""
    from bids_app.training.own.trainer import OwnTrainer  # nnU-Net's training imports matplotlib, which writes a cache

    content = read_json(run.dataset.preprocessed / "dataset.json")
    latest = run.folder / LATEST
    plans = copy.deepcopy(run.plans) | {"continue_training": latest.is_file()}
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = OwnTrainer(plans, CONFIGURATION, run.fold, content, torch.device(run.device))
        trainer.num_epochs = run.epochs
        trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = STEPS, VALIDATION_STEPS
        trainer.initial_lr = RATE if run.start is None else RATE_FROM_INIT
        trainer.save_every = 1 if "MirrorUNet" in str(plans["configurations"][CONFIGURATION]["architecture"]) else 5
        trainer.on_epoch = lambda epoch: reporter.epoch(run.what, epoch)
        trainer.initialize()
        if latest.is_file():
            trainer.load_checkpoint(str(latest))
            reporter.say(f"{run.what}: goes on after epoch {trainer.current_epoch}")
        elif run.start is not None:
            architecture = plans["configurations"][CONFIGURATION]["architecture"]
            trainer.set_weights(starting_weights(trainer.network, run.start, architecture))
    return trainer


def _disk_error(error: OSError, run: Run) -> Exception:
    if error.errno in NO_SPACE_CODES:
        return no_space_left(run.folder)
    return AppError(f"Training {run.what} failed: {error}.")
