"""What each network of REFLECT learns: batches to draw, and the loss on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bids_app.anomaly.autoencoder import Autoencoder
from bids_app.anomaly.corruption import Patches, draw_patches, mixed, shrunk
from bids_app.anomaly.tensors import as_tensor
from bids_app.anomaly.transport import transport
from bids_app.anomaly.velocity import Velocity, with_context
from bids_app.training.reflect.losses import Critic, critic_loss, kl_loss, structural_loss
from bids_app.training.reflect.slices import Slices, augmented

REFLOW_STEPS = 5
"""Euler steps of the teacher of REFLECT-2."""


class Change(Protocol):
    """What is done to a healthy slice before it is encoded; `kind` says it in a word."""

    kind: str

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray: ...


@dataclass(frozen=True)
class SliceBatches:
    """Batches of varied slices, ``(image,)`` with image ``(n, 1, H, W)`` in [-1, 1].

    Attributes
    ----------
    slices : Slices
    size : int
        Slices in a batch.
    seed : int
    stack : int
        So many of them follow each other in one brain.
    """

    slices: Slices
    size: int
    seed: int
    stack: int = 1

    def __call__(self, number: int) -> tuple[Tensor, ...]:
        rng = np.random.default_rng((self.seed, number))
        return (as_tensor(np.concatenate(list(self.draw(rng)))),)

    @cached_property
    def places(self) -> np.ndarray:
        """All stacks that a batch may hold; see `Slices.stacks`."""
        return self.slices.stacks(self.stack)

    def draw(self, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """The stacks of a batch, each ``(stack, H, W)`` uint8."""
        for place in rng.integers(len(self.places), size=self.size // self.stack):
            yield augmented(self.slices.images[self.places[place]], rng)


@dataclass(frozen=True)
class CorruptedBatches(SliceBatches):
    """Batches ``(seen, healthy, opacity, content)``: what is encoded and then patched, and what it should become.

    Attributes
    ----------
    factor, channels : int
        Of the latents.
    textures : torch.Tensor or None
        ``(m, c, h, w)`` latents.
    changes : sequence of callable
        Each from a slice ``(H, W)`` and a generator to a slice; what is done to slices before they are encoded.
    """

    factor: int = 4
    channels: int = 3
    textures: Tensor | None = None
    changes: Sequence[Change] = ()

    def __call__(self, number: int) -> tuple[Tensor, ...]:
        rng = np.random.default_rng((self.seed, number))
        healthy = list(self.draw(rng))
        seen = [self._changed(stack, rng) for stack in healthy]
        patches = [patch for stack in seen for patch in self._patches(stack, rng)]
        opacity, content = (torch.stack([getattr(p, name) for p in patches]) for name in ("opacity", "content"))
        return as_tensor(np.concatenate(seen)), as_tensor(np.concatenate(healthy)), opacity, content

    def _changed(self, stack: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A stack whose slices are changed alike."""
        for change in self.changes:
            seed = rng.integers(2**32)
            stack = np.stack([change(image, np.random.default_rng(seed)) for image in stack])
        return stack

    def _patches(self, stack: np.ndarray, rng: np.random.Generator) -> Iterator[Patches]:
        """The patches of one slice of the stack, on a run of slices: a lesion is seldom in one alone."""
        shape = tuple(size // self.factor for size in stack.shape[1:])
        brains = shrunk(torch.from_numpy(stack), shape)
        patches = draw_patches(brains[len(brains) // 2], self.channels, self.textures, rng)
        first, last = (0, 0) if len(stack) == 1 else np.sort(rng.integers(len(stack), size=2))
        for level, brain in enumerate(brains):
            here = torch.from_numpy(brain) if first <= level <= last else torch.zeros(shape, dtype=torch.bool)
            yield Patches(patches.opacity * here, patches.content)


@dataclass(frozen=True)
class Latents:
    """From a batch of `CorruptedBatches` to latents: where the flow begins and ends."""

    autoencoder: Autoencoder

    @torch.no_grad()
    def __call__(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Latent of the corrupted brain, and of the healthy one; sampled, as in the authors' training."""
        seen, healthy, opacity, content = batch
        end = self.autoencoder.posterior(healthy).sample().float()
        changed = (seen != healthy).flatten(1).any(dim=1)
        start = end.clone()
        if bool(changed.any()):
            start[changed] = self.autoencoder.posterior(seen[changed]).sample().float()
        return mixed(start, content, opacity), end


@dataclass(frozen=True)
class Stacks:
    """How a velocity network sees a batch: stacks of so many slices, each with its neighbours as further channels."""

    length: int = 1
    context: int = 0

    def velocity(self, network: nn.Module, latents: Tensor, time: Tensor) -> Tensor:
        """Velocity of all slices of a batch."""
        seen = torch.cat([with_context(stack, self.context) for stack in latents.split(self.length)])
        return network(seen, time, self.length)


def velocity_loss(
    network: nn.Module, start: Tensor, end: Tensor, stacks: Stacks = Stacks(), at_start: float = 0.0
) -> Tensor:
    """Mean squared error of the velocity at random times of the straight lines from `start` to `end`.

    Parameters
    ----------
    at_start : float
        Share of the lines that are looked at where they begin, which is where a single step is taken; the others at
        uniform times, as the authors'.
    """
    # the slices of a stack are under way together
    time = torch.rand(len(start) // stacks.length, device=start.device)
    time = (time * (torch.rand_like(time) >= at_start)).repeat_interleave(stacks.length)
    where = start + time[:, None, None, None] * (end - start)
    return F.mse_loss(stacks.velocity(network, where, time).float(), end - start)


@dataclass(frozen=True)
class FlowLoss:
    """REFLECT-1: from corrupted latents to the healthy ones that they were made of."""

    latents: Latents
    stacks: Stacks = Stacks()
    at_start: float = 0.0

    def __call__(self, network: nn.Module, batch: tuple[Tensor, ...], step: int) -> Tensor:
        return velocity_loss(network, *self.latents(batch), self.stacks, self.at_start)


@dataclass(frozen=True)
class ReflowLoss:
    """REFLECT-2: from corrupted latents to where a frozen teacher carries them, so that one step will do."""

    latents: Latents
    teacher: Velocity
    stacks: Stacks = Stacks()

    def __call__(self, network: nn.Module, batch: tuple[Tensor, ...], step: int) -> Tensor:
        start, _ = self.latents(batch)
        with torch.no_grad():
            end = carried(self.teacher, start, REFLOW_STEPS, self.stacks).float()
        return velocity_loss(network, start, end, self.stacks)


def carried(network: nn.Module, start: Tensor, steps: int, stacks: Stacks) -> Tensor:
    """Where a network carries the slices of a batch."""

    def velocity(latents: Tensor, time: float) -> Tensor:
        return stacks.velocity(network, latents, torch.full((len(latents),), time, device=latents.device))

    return transport(velocity, start, steps)


@dataclass
class Reconstruction:
    """The losses of an autoencoder and of its critic, which judges from `critic_from` on.

    Attributes
    ----------
    critic : Critic or None
    perceptual : callable or None
        LPIPS, in place of the structural loss.
    structural, adversarial, kl : float
        Weights of these terms.
    adaptive : bool
        Weigh the critic so that its gradient at the last layer is as large as that of the difference (Esser et al.,
        CVPR 2021), times `adversarial`.
    critic_from : int
        Step.
    made : list of torch.Tensor
        What the autoencoder made in this step, batch by batch; the critic must see the same batches after it.
    step : int
        The one that `made` is of.
    """

    critic: Critic | None = None
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None
    structural: float = 0.5
    adversarial: float = 0.02
    kl: float = 1e-6
    adaptive: bool = False
    critic_from: int = 1000
    made: list[Tensor] = field(default_factory=list)
    step: int = -1

    def autoencoder_loss(self, network: nn.Module, batch: tuple[Tensor, ...], step: int) -> Tensor:
        """Difference, structure (or perception), divergence of the latents, and what the critic says."""
        (image,) = batch
        made, posterior = network(image)
        if step != self.step:
            self.made.clear()
        self.made.append(made.detach())
        self.step = step
        scale = getattr(network, "module", network).size.scale
        loss = F.l1_loss(made.float(), image) + self.kl * kl_loss(posterior, scale) / image[0].numel()
        if self.perceptual is None:
            loss = loss + self.structural * structural_loss(made, image)
        else:
            loss = loss + self.perceptual(made, image).mean()
        if self.critic is not None and step >= self.critic_from:
            judged = -self.critic(made).mean().float()
            weight = _balance(loss, judged, network) if self.adaptive else 1.0
            loss = loss + self.adversarial * weight * judged
        return loss

    def critic_loss(self, network: nn.Module, batch: tuple[Tensor, ...], step: int) -> Tensor | None:
        """Hinge loss on what the autoencoder has just made."""
        return critic_loss(network, batch[0], self.made.pop(0)) if step >= self.critic_from else None


def _balance(loss: Tensor, judged: Tensor, network: nn.Module) -> Tensor:
    """Ratio of the gradients of two losses at the autoencoder's last layer."""
    last = getattr(network, "module", network).core.decoder.conv_out.weight
    norms = [torch.autograd.grad(each, last, retain_graph=True)[0].norm() for each in (loss, judged)]
    return (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4).detach()
