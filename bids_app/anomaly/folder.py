"""Where the parts of an anomaly model lie, what its card says, and where its thresholds lie. No network, no PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bids_app.errors import ConfigError
from bids_app.text import read_json

CARD, AUTOENCODER, VELOCITY = "card.json", "autoencoder.pth", "velocity.pth"
USUAL = "usual.nii.gz"
"""What healthy brains have at each place: see `usual.Usual`. A model may do without it."""
DEVIATIONS = 3
"""Standard deviations above the mean of healthy brains at which thresholds lie."""
LEAST_DEVIATION = 0.02
"""Added to deviations at each place: where healthy brains agree, a trifle is not yet unusual."""
BOTH, BRIGHT, DARK = SIDES = ("both", "bright", "dark")
"""Which differences a map may count; see `residual.anomaly_map`."""
THEIR_SHAPE = (256, 256)
"""Rows and columns of the slices that networks of REFLECT's authors take."""


@dataclass(frozen=True)
class Card:
    """What ``card.json`` says of an anomaly model.

    Attributes
    ----------
    name, version : str
    contrast : str
        ``T1w`` or ``FLAIR``.
    steps : int
        Euler steps from a brain to its healthy twin.
    threshold : float or None
        Anomaly from which a voxel departs from a healthy brain: mean + 3 SD of the mean anomaly of healthy scans. None
        if nobody measured it.
    masked : bool
        Whether what lies outside of the brain is left out before differences are blurred.
    side : str
        Which differences count: ``both``, or only where the brain is ``bright`` or ``dark`` beside its twin.
    autoencoder, velocity : mapping
        Sizes of the networks; None for those of REFLECT's authors, whose files say it; empty for a velocity network
        that is not there yet.
    slice_shape : tuple of int or None
        Rows and columns that the networks take; None takes those of the box.
    preset : str or None
        Of the training, see `training.reflect.presets`; None if the card does not say.
    """

    name: str
    version: str = "n/a"
    contrast: str = "T1w"
    steps: int = 5
    threshold: float | None = None
    masked: bool = False
    side: str = BOTH
    autoencoder: Mapping[str, Any] | None = None
    velocity: Mapping[str, Any] | None = None
    slice_shape: tuple[int, int] | None = None
    preset: str | None = None


@dataclass(frozen=True)
class AnomalyFolder:
    """An anomaly model that was found complete.

    Attributes
    ----------
    path, autoencoder, velocity : Path
    card : Card
    of_authors : bool
        Whether the networks are files of REFLECT's authors.
    """

    path: Path
    autoencoder: Path
    velocity: Path
    card: Card
    of_authors: bool

    @property
    def files(self) -> list[Path]:
        """All files the model is made of."""
        others = self.path / CARD, self.path / USUAL
        return [self.autoencoder, self.velocity, *(file for file in others if file.is_file())]

    @property
    def usual(self) -> Path | None:
        """What healthy brains have at each place, where that was measured."""
        path = self.path / USUAL
        return path if path.is_file() else None


def read_folder(path: Path) -> AnomalyFolder:
    """The parts of an anomaly model.

    Parameters
    ----------
    path : Path
        A folder with ``card.json``, ``autoencoder.pth`` and ``velocity.pth``, as training writes it; or one with two
        files of REFLECT's authors: ``VAE-Medical-klf8.pt`` or ``VAE-Medical-klf4.pt``, and a checkpoint of a velocity
        network (``*.pt``).

    Raises
    ------
    ConfigError
        If something is missing, or the card has a value of the wrong kind.
    """
    if not path.is_dir():
        raise ConfigError(f"There is no anomaly model {path}.", "Give an embedded model's name or a folder.")
    if (path / AUTOENCODER).is_file() and (path / VELOCITY).is_file():
        return AnomalyFolder(path, path / AUTOENCODER, path / VELOCITY, read_card(path, of_authors=False), False)
    found = sorted(path.glob("*.pt"))
    autoencoders = [file for file in found if "vae" in file.name.lower()]
    others = [file for file in found if file not in autoencoders]
    if len(autoencoders) != 1 or len(others) != 1:
        raise ConfigError(
            f"{path} holds no anomaly model: neither {AUTOENCODER} and {VELOCITY}, nor one VAE*.pt and one other *.pt.",
            "Check the folder.",
        )
    return AnomalyFolder(path, autoencoders[0], others[0], read_card(path, of_authors=True), True)


def read_card(folder: Path, of_authors: bool) -> Card:
    """The card of a model folder; defaults where there is none.

    Raises
    ------
    ConfigError
        If it is no JSON object, a value is of the wrong kind, or our own networks have no sizes.
    """
    path = folder / CARD
    try:
        content = read_json(path) if path.is_file() else {}
        shape = content.get("slice_shape") or (THEIR_SHAPE if of_authors else None)
        threshold = content.get("threshold")
        card = Card(
            name=str(content.get("name", folder.name)),
            version=str(content.get("version", Card.version)),
            contrast=str(content.get("contrast", Card.contrast)),
            steps=int(content.get("steps", Card.steps)),
            threshold=None if threshold is None else float(threshold),
            masked=_yes_or_no(content.get("masked", Card.masked)),
            side=str(content.get("side", Card.side)),
            autoencoder=None if of_authors else dict(content["autoencoder"]),
            velocity=None if of_authors else dict(content.get("velocity", {})),
            slice_shape=None if shape is None else (int(shape[0]), int(shape[1])),
            preset=content.get("preset"),
        )
    except (OSError, ValueError, OverflowError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise ConfigError(f"{path} is no card of an anomaly model: {error!r}.", "Correct the card.") from error
    usable = card.threshold is None or 0 < card.threshold <= 1
    known = card.contrast in ("T1w", "FLAIR") and card.side in SIDES
    if not known or card.steps < 1 or not usable:
        raise ConfigError(
            f"{path} sets contrast {card.contrast}, side {card.side}, steps {card.steps}, threshold {card.threshold}.",
            "The contrast is T1w or FLAIR, the side both, bright or dark, there is at least one step, and the "
            "threshold lies in (0, 1].",
        )
    return card


def _yes_or_no(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} is neither true nor false")
    return value
