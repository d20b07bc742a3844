"""Which of a network's outputs is the lesion, from the labels of its dataset. No PyTorch of its own."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_app.errors import ConfigError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class LesionOutput:
    """Which of a network's outputs is the lesion, and how its logits become a probability.

    Attributes
    ----------
    index : int
        Output channel of the lesion.
    outputs : int
        Number of output channels.
    independent : bool
        Whether every output is a region with its own sigmoid; otherwise outputs are classes under one softmax.
    written : tuple of int
        Of regions, the label that nnU-Net writes where each output is probable, a later one over an earlier one. Empty
        where the lesion's own probability decides alone.
    labels : frozenset of int
        Of regions, the labels that belong to the lesion.
    """

    index: int
    outputs: int
    independent: bool = False
    written: tuple[int, ...] = ()
    labels: frozenset[int] = frozenset()

    @property
    def decides(self) -> bool:
        """Whether nnU-Net's mask depends on other outputs as well, and is no threshold of the lesion's probability."""
        return bool(self.written) if self.independent else self.outputs > 2

    def reduce(self, logits: torch.Tensor) -> torch.Tensor:
        """The channels of (n, outputs, \\*spatial) that the probability needs, by a linear map.

        Of two classes this is the difference of their logits: the softmax is the sigmoid of it, and because averaging
        and resampling are linear too, one channel carries all there is to know.
        """
        if self.independent and self.decides:
            return logits
        if self.independent or self.outputs == 1:
            return logits[:, self.index : self.index + 1]
        if self.outputs == 2:
            return logits[:, self.index : self.index + 1] - logits[:, 1 - self.index : 2 - self.index]
        return logits

    def probability(self, reduced: torch.Tensor) -> torch.Tensor:
        """Lesion probability, shape (\\*spatial), from reduced logits, shape (k, \\*spatial)."""
        if len(reduced) == 1:
            return reduced[0].sigmoid()
        if self.independent:
            return reduced[self.index].sigmoid()
        return reduced.softmax(dim=0)[self.index]

    def decided(self, reduced: torch.Tensor) -> torch.Tensor:
        """Where nnU-Net's segmentation has the lesion, bool, shape (\\*spatial), from logits as of `probability`."""
        if not self.decides:
            return self.probability(reduced) >= 0.5
        if not self.independent:
            return reduced.argmax(dim=0) == self.index
        lesion = reduced.new_zeros(reduced.shape[1:]).bool()
        for logits, label in zip(reduced, self.written, strict=True):
            lesion[logits > 0] = label in self.labels
        return lesion


def lesion_output(dataset: dict[str, Any], source: Path) -> tuple[LesionOutput, tuple[str, ...]]:
    """Which output is the lesion: a label named lesion or stroke, else the only label, else the first with a note.

    Parameters
    ----------
    dataset : dict
        Content of ``dataset.json``.
    source : Path
        That file, for messages.

    Raises
    ------
    ConfigError
        If there is no foreground label.
    """
    labels = dataset.get("labels")
    labels = labels if isinstance(labels, dict) else {}
    values = {
        name: value if isinstance(value, list) else [value]
        for name, value in labels.items()
        if name not in ("background", "ignore")
    }
    if not values:
        raise ConfigError(f"{source} has no label besides the background.", "Use a model that segments lesions.")
    names = list(values)
    named = [name for name in names if re.fullmatch(r"lesions?|stroke", name, re.IGNORECASE)]
    named = named or [name for name in names if re.search(r"lesion|stroke", name, re.IGNORECASE)]
    chosen = (named or names)[0]
    notes = ()
    if len(named) > 1:
        notes = (f"Several labels are lesions ({', '.join(named)}): took {chosen}.",)
    elif not named and len(names) > 1:
        notes = (f"No label of {', '.join(names)} is called lesion: took {chosen}.",)
    if any(len(value) > 1 for value in values.values()):  # regions: one output with its own sigmoid each
        written = dataset.get("regions_class_order")
        return _region(names.index(chosen), frozenset(values[chosen]), len(names), written), notes
    order = sorted(value[0] for value in values.values())
    return LesionOutput(1 + order.index(values[chosen][0]), 1 + len(order)), notes


def _region(index: int, labels: frozenset[int], outputs: int, written: object) -> LesionOutput:
    """A region as the lesion; `written` are the labels of all regions, in the order in which nnU-Net writes them."""
    order = tuple(written) if isinstance(written, list) and len(written) == outputs else ()
    # another region counts where it adds to the lesion, or is written over it
    others = [
        label for place, label in enumerate(order) if place != index and (label in labels or place > index)
    ]
    if not others:
        return LesionOutput(index, outputs, independent=True)
    return LesionOutput(index, outputs, independent=True, written=order, labels=labels)
