"""An anomaly model ready to run: a brain in, its healthy twin and its anomaly map out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from bids_app.anomaly.authors import read_autoencoder, read_velocity
from bids_app.anomaly.autoencoder import Autoencoder, AutoencoderSize
from bids_app.anomaly.folder import AnomalyFolder, Card, read_folder
from bids_app.anomaly.residual import anomaly_map
from bids_app.anomaly.tensors import as_tensor, cropped, padded
from bids_app.anomaly.transport import transport
from bids_app.anomaly.usual import Usual
from bids_app.anomaly.velocity import Velocity, VelocitySize
from bids_app.errors import ConfigError, VisitError
from bids_app.networks import registry
from bids_app.networks.device import CPU, MEMORY_HINT, Device, release_memory
from bids_app.networks.weights import folder_sha256, load_checkpoint

Network = TypeVar("Network", Autoencoder, Velocity)

BATCH = 16
"""Slices that go through the networks together."""


@dataclass(frozen=True)
class Twin:
    """What REFLECT says of a brain.

    Attributes
    ----------
    healthy : ndarray
        ``(slices, rows, columns)`` float32: grey values (1 to 255) of the healthy twin; 0 outside of the brain.
    anomaly : ndarray
        The same shape, float32 in [0, 1]; 0 outside of the brain.
    """

    healthy: np.ndarray
    anomaly: np.ndarray


@dataclass(frozen=True)
class AnomalyModel:
    """Autoencoder and velocity network on a device.

    Attributes
    ----------
    card : Card
    sha256 : str
        Over all files that were loaded.
    autoencoder : Autoencoder
    velocity : Velocity
    device : Device
    usual : Usual or None
        What healthy brains have at each place, where that was measured.
    """

    card: Card
    sha256: str
    autoencoder: Autoencoder
    velocity: Velocity
    device: Device
    usual: Usual | None = None

    @torch.inference_mode()
    def explain(self, grey: np.ndarray, steps: int | None = None) -> Twin:
        """Healthy twin and anomaly map of a brain.

        Parameters
        ----------
        grey : ndarray
            ``(slices, rows, columns)`` uint8 of `slices.grey_values`: all axial slices of a brain, from the feet
            upwards.
        steps : int, optional
            Euler steps; those of the card if not given.

        Raises
        ------
        VisitError
            If memory does not suffice, or the networks compute no numbers.
        """
        shown = np.flatnonzero(grey.any(axis=(1, 2)))
        healthy, anomaly = np.zeros(grey.shape, np.float32), np.zeros(grey.shape, np.float32)
        if len(shown):
            # all slices in one stretch: with context, a slice looks at its neighbours
            stretch = slice(shown[0], shown[-1] + 1)
            twin, departure = self._within_memory(as_tensor(grey[stretch]), steps or self.card.steps)
            if not np.isfinite(departure).all():
                raise VisitError(
                    f"The networks of the anomaly model {self.card.name} leave the range of numbers.",
                    "Use --device cpu, whose range is wider, or another model.",
                )
            brain = grey[stretch] > 0
            healthy[stretch] = np.where(brain, np.clip((twin + 1) * 127.5, 1, 255), 0)
            anomaly[stretch] = np.where(brain, departure, 0)
        return Twin(healthy, anomaly)

    def _within_memory(self, slices: Tensor, steps: int) -> tuple[np.ndarray, np.ndarray]:
        try:
            return self._explain(slices, steps)
        except RuntimeError as error:
            release_memory(error)
            raise VisitError(
                f"{self.device.name} ran out of memory for the anomaly model {self.card.name}.", MEMORY_HINT
            ) from error

    def _explain(self, slices: Tensor, steps: int) -> tuple[np.ndarray, np.ndarray]:
        shape = slices.shape[2:]
        larger = padded(slices, self.card.slice_shape or shape)
        latents = self._batched(self.autoencoder.encode, larger)
        moved = transport(self._batched_velocity, latents, steps, self.velocity.size.context)
        twin, seen = (self._batched(self.autoencoder.decode, each) for each in (moved, latents))
        brain = larger > -1 if self.card.masked else None
        departure = anomaly_map(twin, seen, moved, latents, brain, self.card.side)
        return tuple(cropped(each, shape).float().cpu().numpy() for each in (twin[:, 0], departure))

    def _batched_velocity(self, latents: Tensor, time: float) -> Tensor:
        # a volumetric network has to see the whole brain
        batch = len(latents) if self.velocity.size.volumetric else BATCH
        return self._batched(lambda part: self.velocity(part, time), latents, batch)

    def _batched(self, function: Callable[[Tensor], Tensor], slices: Tensor, batch: int = BATCH) -> Tensor:
        """A network on all slices, so many at a time; fp16 on a GPU, fp32 on a processor."""
        with torch.autocast(self.device.name.partition(":")[0], enabled=self.device.is_gpu):
            return torch.cat([function(part.to(self.device.name)).float() for part in slices.split(batch)])


def load_anomaly_model(path: Path, device: Device = CPU, with_usual: bool = True) -> AnomalyModel:
    """Load an anomaly model onto a device.

    Parameters
    ----------
    path : Path
        See `folder.read_folder`.
    with_usual : bool
        Whether to read what is usual, where that was measured: who measures it anew does without.

    Raises
    ------
    ConfigError
        If the model is incomplete, damaged, or changed (an embedded one).
    """
    registry.verify(path)
    folder = read_folder(path)
    if folder.of_authors:
        autoencoder, velocity = read_autoencoder(folder.autoencoder), read_velocity(folder.velocity)
    else:
        autoencoder, velocity = _read_own(folder)
    if velocity.latent_channels != autoencoder.size.latent_channels:
        raise ConfigError(
            f"The networks in {path} do not belong together: latents of {autoencoder.size.latent_channels} and of "
            f"{velocity.latent_channels} channels.",
            "Use the autoencoder that the velocity network was trained with.",
        )
    usual = Usual.load(folder.usual) if folder.usual and with_usual else None
    model = made_ready(folder.card, folder_sha256(folder.files), autoencoder, velocity, device)
    return replace(model, usual=usual)


def made_ready(card: Card, sha256: str, autoencoder: Autoencoder, velocity: Velocity, device: Device) -> AnomalyModel:
    """A model of these networks, which go to the device and are laid out as it computes best."""
    # channels_last saves a processor some 6 %, and puts maps of the authors' networks 2e-3 beside their formulas
    layout = torch.channels_last if device.is_gpu else torch.contiguous_format
    check_frame(card.name, card.slice_shape, autoencoder)
    for network in (autoencoder, velocity):
        network.requires_grad_(False).eval().to(device.name, memory_format=layout)
    return AnomalyModel(card, sha256, autoencoder, velocity, device)


def check_frame(name: str, slice_shape: tuple[int, int] | None, autoencoder: Autoencoder) -> None:
    """Refuse slices that an autoencoder cannot take.

    Raises
    ------
    ConfigError
        If they are no multiples of its cells.
    """
    factor = autoencoder.size.factor
    if slice_shape and any(size % factor for size in slice_shape):
        raise ConfigError(
            f"The card of {name} has a slice_shape of {slice_shape}; its autoencoder takes multiples of {factor}.",
            "Correct the card.",
        )


def _read_own(folder: AnomalyFolder) -> tuple[Autoencoder, Velocity]:
    """The networks that the card describes."""
    autoencoder = read_own_autoencoder(folder.autoencoder, folder.card)
    channels = autoencoder.size.latent_channels
    velocity = _described(folder.velocity, lambda: Velocity(VelocitySize.from_card(folder.card.velocity), channels))
    return autoencoder, velocity


def read_own_autoencoder(file: Path, card: Card) -> Autoencoder:
    """An autoencoder in our format.

    Raises
    ------
    ConfigError
        If the card describes none, or another one.
    """
    return _described(file, lambda: Autoencoder(AutoencoderSize.from_card(card.autoencoder)))


def _described(file: Path, make: Callable[[], Network]) -> Network:
    """A network as its card describes it, with the weights of a file beside the card."""
    try:
        network = make()
    except (TypeError, ValueError, AttributeError, ArithmeticError, LookupError, RuntimeError) as error:
        raise ConfigError(f"The card in {file.parent} describes no networks: {error}.", "Correct the card.") from error
    try:
        network.load_state_dict(load_checkpoint(file))
    except RuntimeError as error:
        raise ConfigError(f"{file} does not fit the sizes in its card.", "Copy the model folder again.") from error
    return network
