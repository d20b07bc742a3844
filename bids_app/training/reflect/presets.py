"""How long, how fast and with which networks REFLECT is trained: ours for small machines, and the authors'."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from bids_app.anomaly import autoencoder as autoencoders
from bids_app.anomaly import velocity as velocities
from bids_app.anomaly.autoencoder import AutoencoderSize
from bids_app.anomaly.velocity import VelocitySize
from bids_app.errors import UsageError
from bids_app.settings import AnomalyTraining
from bids_app.training.reflect.learn import Course, Optimizers, adam_of_diffusion, adamw, muon
from bids_app.training.reflect.loop import Schedule

DEFAULT = "small"
"""Preset where nobody names one."""
ADAPTING_RATE, ADAPTING_LENGTH = 0.1, 0.1
"""Rate and length of adapting a model, as shares of those of a training from the beginning."""


@dataclass(frozen=True)
class Stage:
    """One training of a preset.

    Attributes
    ----------
    batch : int
        Slices that go through the network together.
    rate : float
    optimizer : callable
    steps : int or None
        Optimizer steps; None goes by `epochs`.
    epochs : int or None
    accumulation : int
        Batches of one step.
    warmup_epochs : int
        Over which the rate rises; 0 takes the 50 steps of `Schedule`.
    at_start : float
        See `tasks.velocity_loss`.
    """

    batch: int
    rate: float
    optimizer: Optimizers
    steps: int | None = None
    epochs: int | None = None
    accumulation: int = 1
    warmup_epochs: int = 0
    at_start: float = 0.0


@dataclass(frozen=True)
class Preset:
    """Networks and trainings.

    Attributes
    ----------
    latents : mapping of str to str
        Name of the autoencoder for ``f4`` and ``f8``.
    latent, velocity : str
        Which of them, and which velocity network, where the user names none.
    stages : mapping of str to Stage
    cosine, ema, clip : float
        See `Schedule`.
    slice_shape : tuple of int or None
        Rows and columns of the networks; None is the box.
    changes : bool
        Whether slices are changed before they are encoded, beside the authors' corruption of latents, where the user
        says nothing.
    """

    latents: Mapping[str, str]
    latent: str
    velocity: str
    stages: Mapping[str, Stage]
    cosine: float
    ema: float
    clip: float | None
    slice_shape: tuple[int, int] | None = None
    changes: bool = True

    def course(self, step: str, rate: float = 1.0, batch: int | None = None, **schedule: Any) -> Course:
        """One training: a share of its rate, its batch unless another is given, and what `Schedule` is to have beside
        what is the preset's."""
        stage = self.stages[step]
        whole = Schedule(cosine=self.cosine, ema=self.ema, clip=self.clip, **schedule)
        return Course(whole, batch or stage.batch, rate * stage.rate, stage.optimizer, at_start=stage.at_start)


PRESETS: Mapping[str, Preset] = {
    "small": Preset(
        latents={"f4": "tiny-f4", "f8": "tiny-f8"},
        latent="f8",
        velocity="tiny",
        stages={
            "autoencoder": Stage(12, 0.01, muon, steps=1500),
            "reflect": Stage(8, 0.02, muon, steps=8000, at_start=0.5),
            "reflect2": Stage(8, 0.002, muon, steps=800),
        },
        cosine=1.0,
        ema=0.998,
        clip=1.0,
    ),
    "paper": Preset(
        latents={"f4": "kl-f4", "f8": "kl-f8"},
        latent="f8",
        velocity="M",
        stages={
            "autoencoder": Stage(12, 5.4e-5, adam_of_diffusion, epochs=100),
            "reflect": Stage(96, 5e-4, adamw, epochs=200, accumulation=2, warmup_epochs=5),
            "reflect2": Stage(96, 1e-5, adamw, epochs=50, accumulation=2),
        },
        cosine=0.5,
        ema=0.0,
        clip=None,
        slice_shape=(256, 256),
        changes=False,
    ),
}
"""The authors publish no schedule of their autoencoder: 100 epochs are ours, its rate is that of latent diffusion."""


def resolved(settings: AnomalyTraining, of_start: str | None = None) -> AnomalyTraining:
    """Settings with a preset, and what it says where the user says nothing.

    Parameters
    ----------
    of_start : str or None
        The preset of what the training begins with.
    """
    name = settings.preset or (of_start if of_start in PRESETS else DEFAULT)
    unsaid = [kind for kind in ("morphology", "focal") if getattr(settings, kind) is None]
    return replace(settings, preset=name, **dict.fromkeys(unsaid, PRESETS[name].changes))


def preset_of(settings: AnomalyTraining) -> Preset:
    """The preset of resolved settings."""
    return PRESETS[settings.preset]


def autoencoder_size(settings: AnomalyTraining) -> AutoencoderSize:
    """Size of the autoencoder that was asked for."""
    preset = preset_of(settings)
    return autoencoders.SIZES[preset.latents[settings.latent or preset.latent]]


def velocity_size(settings: AnomalyTraining) -> VelocitySize:
    """Size of the velocity network that was asked for."""
    named = settings.size or preset_of(settings).velocity
    return replace(velocities.SIZES[named], context=settings.context, volumetric=settings.volumetric)


def batch_of(settings: AnomalyTraining, stack: int = 1) -> int:
    """Slices that go through the network together, of which so many follow each other.

    Raises
    ------
    UsageError
        If they are no whole number of stacks.
    """
    batch = settings.batch or preset_of(settings).stages[settings.step].batch
    if batch % stack:
        raise UsageError(
            f"A batch of {batch} slices holds no whole number of stacks of {stack}, from which a network of several "
            "slices learns.",
            f"Give a multiple of {stack} as --batch.",
        )
    return batch


def course_of(settings: AnomalyTraining, slices: int, processes: int, stack: int = 1) -> Course:
    """How the training that was asked for goes over so many slices, of which so many in a batch follow each other.

    Raises
    ------
    UsageError
        If there are fewer slices than a step takes, or a batch holds no whole number of stacks.
    """
    preset = preset_of(settings)
    stage, batch = preset.stages[settings.step], batch_of(settings, stack)
    accumulation = settings.accumulation or stage.accumulation
    each = batch * accumulation * processes
    if slices < each:
        raise UsageError(
            f"There are {slices} slices, fewer than the {each} of one step.", "Give a smaller --batch, or more scans."
        )
    epoch = slices // each
    share, rate = (1.0, 1.0) if settings.init is None else (ADAPTING_LENGTH, ADAPTING_RATE)
    usual = stage.epochs * epoch if stage.epochs else stage.steps
    steps = settings.epochs * epoch if settings.epochs else max(1, round(share * usual))
    warmup = min(stage.warmup_epochs * epoch or Schedule.warmup, max(1, steps // 10))
    course = preset.course(settings.step, rate, batch, steps=steps, warmup=warmup, accumulation=accumulation)
    on_gpu = torch.cuda.is_available() and settings.device != "cpu"
    workers = max(0, min(8, settings.nprocs // processes - 1)) if on_gpu else 0
    return replace(course, seed=settings.seed, workers=workers)
