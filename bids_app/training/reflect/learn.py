"""The three trainings of REFLECT, from slices to networks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bids_app.anomaly.autoencoder import Autoencoder, AutoencoderSize
from bids_app.anomaly.textures import draw_textures, texture_shape
from bids_app.anomaly.velocity import Velocity, VelocitySize, begun
from bids_app.training.optimizer import Muon
from bids_app.training.reflect.loop import Check, Learner, Processes, Report, Schedule, fit
from bids_app.training.reflect.losses import Critic
from bids_app.training.reflect.slices import Slices
from bids_app.training.reflect.tasks import (
    Change,
    CorruptedBatches,
    FlowLoss,
    Latents,
    Reconstruction,
    ReflowLoss,
    SliceBatches,
    Stacks,
    carried,
)
from bids_app.training.reflect.whitening import with_white_latents

TEXTURE_COUNT = 256
"""Textures that are drawn for a training, or cut from pictures."""
JUDGED_TEXTURES = 16
"""Those that a network is validated on."""
STACK = 8
"""Slices of one brain that follow each other in the batches of a network that sees neighbours."""
NARROW = -6.0
"""Log variance of the latents of a new autoencoder, before they are scaled."""
CRITIC_RATE = 2e-4
_BATCH = 8
"""Slices that are encoded together; textures of the authors' networks are large."""

Optimizers = Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer]


def muon(parameters: Iterable[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    """Ours."""
    return Muon(parameters, rate)


def adamw(parameters: Iterable[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    """The authors'."""
    return torch.optim.AdamW(parameters, rate, weight_decay=1e-4)


def adam_of_diffusion(parameters: Iterable[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    """That of latent diffusion's autoencoders and their critics."""
    return torch.optim.Adam(parameters, rate, betas=(0.5, 0.9))


@dataclass(frozen=True)
class Course:
    """How one network is trained.

    Attributes
    ----------
    schedule : Schedule
    batch : int
        Slices that go through the network together.
    rate : float
        Peak of the learning rate.
    optimizer : callable
    seed : int
    workers : int
        Processes that draw batches.
    at_start : float
        Of REFLECT-1: see `tasks.velocity_loss`.
    """

    schedule: Schedule
    batch: int = 16
    rate: float = 0.01
    optimizer: Optimizers = muon
    seed: int = 0
    workers: int = 0
    at_start: float = 0.0


@dataclass(frozen=True)
class Corruption:
    """What is done to healthy slices beside the authors' patches.

    Attributes
    ----------
    textures : ndarray or None
        ``(n, H, W)`` float32 in [-1, 1], of `textures.texture_shape`, to fill patches with; None draws procedural ones.
    changes : tuple of callable
        See `tasks.CorruptedBatches`.
    """

    textures: np.ndarray | None = None
    changes: tuple[Change, ...] = ()


def in_words(changes: Sequence[Change]) -> str:
    """Changes of slices, for a card: nothing, or ``, with morphological and focal corruptions``."""
    return f", with {' and '.join(change.kind for change in changes)} corruptions" if changes else ""


@dataclass(frozen=True)
class Place:
    """Where a training runs.

    Attributes
    ----------
    folder : Path
        Of its checkpoints.
    group : Processes
    say, check : callable
        See `loop.fit`.
    """

    folder: Path
    group: Processes
    say: Report = field(default=lambda step, progress, values: None)
    check: Check = field(default=lambda networks: {})


def train_autoencoder(
    slices: Slices,
    size: AutoencoderSize,
    course: Course,
    place: Place,
    reconstruction: Reconstruction | None = None,
    critic_rate: float = CRITIC_RATE,
) -> Autoencoder:
    """An autoencoder of slices, its latents as `whitening` has them.

    Parameters
    ----------
    reconstruction : Reconstruction, optional
        Its losses; ours with a critic if not given.
    critic_rate : float
        Learning rate of the critic.
    """
    _seed(course, place)
    losses = Reconstruction(Critic()) if reconstruction is None else reconstruction
    network = with_narrow_posterior(Autoencoder(size))
    optimizer = course.optimizer(network.parameters(), course.rate)
    learners = [Learner("autoencoder", network, optimizer, losses.autoencoder_loss)]
    if losses.critic is not None:
        judge = adam_of_diffusion(losses.critic.parameters(), critic_rate)
        learners.append(Learner("critic", losses.critic, judge, losses.critic_loss, averaged=False))
    trained = _fit(learners, SliceBatches(slices, course.batch, course.seed), course, place)["autoencoder"]
    return with_white_latents(trained, slices)


@torch.no_grad()
def with_narrow_posterior(autoencoder: Autoencoder) -> Autoencoder:
    """The same new autoencoder, whose latents are hardly noisy, whatever the slice.

    As a layer is usually begun, noise is as large as a latent, and the decoder learns to pass over most channels; it
    takes long until they say anything. (The authors begin with an autoencoder whose posterior is narrow already.)
    """
    layer = autoencoder.core.quant_conv
    of_log_variance = slice(len(layer.bias) // 2, None)
    layer.weight[of_log_variance] = 0.0
    layer.bias[of_log_variance] = NARROW
    return autoencoder


@torch.no_grad()
def encoded(autoencoder: Autoencoder, images: Tensor) -> Tensor:
    """Latents of slices, in batches, on the processor."""
    device = next(autoencoder.parameters()).device
    return torch.cat([autoencoder.encode(part.to(device)).float().cpu() for part in images.split(_BATCH)])


def train_reflect(
    slices: Slices,
    autoencoder: Autoencoder,
    size: VelocitySize,
    course: Course,
    place: Place,
    corruption: Corruption = Corruption(),
    begin: Velocity | None = None,
) -> Velocity:
    """REFLECT-1: a velocity network from corrupted latents to healthy ones.

    Parameters
    ----------
    begin : Velocity, optional
        Whose weights to begin with; see `velocity.begun`.
    """
    _seed(course, place)
    network = Velocity(size, autoencoder.size.latent_channels) if begin is None else begun(begin, size)
    loss = FlowLoss(_latents(autoencoder, place), stacks_of(size), course.at_start)
    return _train_velocity(network, loss, slices, course, place, corruption)


def straighten(
    slices: Slices,
    autoencoder: Autoencoder,
    teacher: Velocity,
    course: Course,
    place: Place,
    corruption: Corruption = Corruption(),
) -> Velocity:
    """REFLECT-2: a copy of the teacher that goes in one step where the teacher goes in five."""
    _seed(course, place)
    network = Velocity(teacher.size, teacher.latent_channels)
    network.load_state_dict(teacher.state_dict())
    fixed = teacher.requires_grad_(False).eval().to(place.group.device)
    loss = ReflowLoss(_latents(autoencoder, place), fixed, stacks_of(teacher.size))
    return _train_velocity(network, loss, slices, course, place, corruption)


@torch.no_grad()
def mended(
    velocity: Velocity, autoencoder: Autoencoder, slices: Slices, steps: int, seed: int = 0, count: int = 128
) -> float:
    """Share of the corruption of so many slices that a model undoes, always the same ones: at most 1, less than 0 if it
    makes them worse. By the squared distance of latents from the healthy ones."""
    stacks, device = stacks_of(velocity.size), next(velocity.parameters()).device
    shape, rng = texture_shape(slices.images.shape[1:]), np.random.default_rng(seed)
    corruption = Corruption(draw_textures(JUDGED_TEXTURES, shape, rng))
    draw = _corrupted(slices, _BATCH, seed, stacks, autoencoder, corruption)
    before = after = 0.0
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for number in range(-(-count // _BATCH)):
            start, end = Latents(autoencoder)(tuple(tensor.to(device) for tensor in draw(number)))
            before += float(((start - end) ** 2).mean())
            after += float(((carried(velocity, start, steps, stacks) - end) ** 2).mean())
    return 1 - after / before


def stacks_of(size: VelocitySize) -> Stacks:
    """How a network of a size sees a batch."""
    return Stacks(STACK, size.context) if size.sees_neighbours else Stacks()


def _latents(autoencoder: Autoencoder, place: Place) -> Latents:
    return Latents(autoencoder.requires_grad_(False).eval().to(place.group.device))


def _train_velocity(
    network: Velocity,
    loss: FlowLoss | ReflowLoss,
    slices: Slices,
    course: Course,
    place: Place,
    corruption: Corruption,
) -> Velocity:
    batches = _corrupted(slices, course.batch, course.seed, loss.stacks, loss.latents.autoencoder, corruption)
    optimizer = course.optimizer(network.parameters(), course.rate)
    return _fit([Learner("velocity", network, optimizer, loss)], batches, course, place)["velocity"]


def _corrupted(
    slices: Slices, batch: int, seed: int, stacks: Stacks, autoencoder: Autoencoder, corruption: Corruption
) -> CorruptedBatches:
    """Batches for the latents of an autoencoder."""
    return CorruptedBatches(
        slices,
        batch,
        seed,
        stacks.length,
        factor=autoencoder.size.factor,
        channels=autoencoder.size.latent_channels,
        textures=_texture_latents(autoencoder, slices.images.shape[1:], seed, corruption.textures),
        changes=corruption.changes,
    )


def _texture_latents(
    autoencoder: Autoencoder, shape: tuple[int, ...], seed: int, textures: np.ndarray | None
) -> Tensor:
    if textures is None:
        textures = draw_textures(TEXTURE_COUNT, texture_shape(shape), np.random.default_rng(seed))
    return encoded(autoencoder, torch.from_numpy(textures)[:, None])


def _seed(course: Course, place: Place) -> None:
    torch.manual_seed(course.seed * 1000 + place.group.rank)


def _fit(learners: list[Learner], batches: SliceBatches, course: Course, place: Place) -> dict[str, nn.Module]:
    return fit(
        learners, batches, course.schedule, place.folder, place.group, course.workers, place.say, place.check
    )
