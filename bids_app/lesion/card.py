"""What a model's ``card.json`` says: name, channels, input, threshold, smallest lesion."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bids_app.errors import ConfigError
from bids_app.lesion.folder import CARD, read_json
from bids_app.lesion.inputs import CORRECTIONS, KNOWN, RIGID, LesionInput, Stated, T, parse_input, usual

#: How datasets write the names of our channels (lower case, letters and digits only).
CHANNEL_NAMES = {
    "T1w": ("t1w", "t1", "t1weighted", "mrit1", "t1mri", "t1mprage", "mprage"),
    "FLAIR": ("flair", "t2flair", "t2wflair", "mriflair", "flairmri"),
}

#: How every card of this App that does not name its input begins its entry ``space``.
OWN_SPACE = "pose:"

#: Entries of a card that change what is done; others are for its readers.
ENTRIES = ("name", "version", "threshold", "min_volume_mm3", "channels", "input", "bias_correction", "branches")

ITS_CARD, NO_CARD, SILENT_CARD = "its card", "no card", "its card does not say"


@dataclass(frozen=True)
class Card:
    """What a model's ``card.json`` says.

    Attributes
    ----------
    name, version : str
    threshold : float or None
        Probability in (0, 1] from which a voxel is lesion; None if it does not say.
    min_volume_mm3 : float or None
        Smallest lesion that is kept, mm3; None if it does not say.
    channels : tuple of str
        ``T1w`` and ``FLAIR`` in the network's order; empty if the model says it elsewhere.
    input : LesionInput or None
        What the model wants to see; None if it does not say.
    written : bool
        Whether there is a card at all.
    """

    name: str
    version: str = "n/a"
    threshold: float | None = None
    min_volume_mm3: float | None = None
    channels: tuple[str, ...] = ()
    input: LesionInput | None = None
    written: bool = True

    def stated(self, value: T | None, default: T) -> Stated[T]:
        """A value of this card, or a default, and who said it."""
        if value is not None:
            return Stated(value, ITS_CARD)
        return Stated(default, SILENT_CARD if self.written else NO_CARD)


def read_card(folder: Path, default_name: str) -> Card:
    """The card of a model folder; an empty one where there is none.

    Raises
    ------
    ConfigError
        If the card is no JSON object or its values are out of range.
    """
    path = folder / CARD
    if not path.is_file():
        return Card(default_name, written=False)
    content = read_json(path)
    _refuse_misspelt(content, path)
    try:
        card = Card(
            name=str(content.get("name", default_name)),
            version=str(content.get("version", Card.version)),
            threshold=_number(content.get("threshold")),
            min_volume_mm3=_number(content.get("min_volume_mm3")),
            channels=tuple(channel_name(str(name), path) for name in content.get("channels", ())),
            input=_input(content, path),
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path} has a value of the wrong kind: {error}.", "Correct the card.") from error
    if card.threshold is not None and not 0 < card.threshold <= 1:
        raise ConfigError(f"{path} sets threshold {card.threshold}.", "It lies above 0 and is at most 1.")
    if card.min_volume_mm3 is not None and not card.min_volume_mm3 >= 0:
        raise ConfigError(f"{path} sets min_volume_mm3 {card.min_volume_mm3}.", "It is 0 or more.")
    return card


def _refuse_misspelt(content: Mapping[str, Any], path: Path) -> None:
    """Refuse an entry that is nearly one of `ENTRIES`: it would be passed over in silence."""
    for entry in content:
        meant = re.sub(r"[\s-]+", "_", entry.strip().lower())
        if meant in ENTRIES and entry not in ENTRIES:
            raise ConfigError(f"{path} has an entry '{entry}'.", f"Write it as {meant}.")


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _input(content: Mapping[str, Any], path: Path) -> LesionInput | None:
    """What a card says of its model's input; of one that this App wrote, the rigid pose if nothing else."""
    text, corrected = content.get("input"), content.get("bias_correction")
    if text is None and corrected is None:
        return usual(RIGID) if str(content.get("space", "")).startswith(OWN_SPACE) else None
    if text is None:
        raise ConfigError(f"{path} says bias_correction and no input.", f"Add the input: {KNOWN}.")
    try:
        wanted = parse_input(text) if isinstance(text, str) else None
    except ValueError:
        wanted = None
    if wanted is None:
        raise ConfigError(f"{path} wants the input {text!r}, which this App does not know.", f"It knows {KNOWN}.")
    if corrected is None:
        return wanted
    if not isinstance(corrected, bool):
        raise ConfigError(f"{path} says bias_correction {corrected!r}.", "It is true or false.")
    if ":" in text and wanted.corrected is not corrected:
        word = next(word for word, meaning in CORRECTIONS.items() if meaning is corrected)
        raise ConfigError(
            f"{path} contradicts itself: input {text}, bias_correction {str(corrected).lower()}.",
            f"Write the input as {wanted.space}:{word}, or leave bias_correction out.",
        )
    return LesionInput(wanted.space, corrected)


def channel_name(name: str, source: Path) -> str:
    """Our name, ``T1w`` or ``FLAIR``, of a channel as a dataset names it.

    Raises
    ------
    ConfigError
        If the channel is neither.
    """
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    for ours, theirs in CHANNEL_NAMES.items():
        if plain in theirs:
            return ours
    raise ConfigError(
        f"{source} names a channel '{name}'; this App gives a model T1w and FLAIR only.",
        'If it is one of these, say so in the model\'s card.json, as in {"channels": ["T1w"]}.',
    )
