"""What a lesion model wants to see of a visit: in which space, with or without skull and bias field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

NATIVE, NATIVE_BRAIN, RIGID, AFFINE = "native", "native-brain", "rigid", "affine"

#: Every space by the word that cards and ``--lesion-input`` know it by, and what the model sees there.
SPACES = {
    NATIVE: "the scan on its own grid, skull on",
    NATIVE_BRAIN: "the brain on the grid of its scan",
    RIGID: "the brain, brought rigidly to MNI at 1 mm",
    AFFINE: "the brain, brought affinely to MNI at 1 mm",
}

#: After a colon: whether the bias field is corrected.
CORRECTIONS = {"n4": True, "raw": False}

#: For messages.
KNOWN = f"{', '.join(list(SPACES)[:-1])} or {list(SPACES)[-1]}, each also with :n4 or :raw"


@dataclass(frozen=True)
class LesionInput:
    """What a lesion model is given.

    Attributes
    ----------
    space : str
        A key of `SPACES`.
    corrected : bool
        Whether its bias field is corrected (N4).
    """

    space: str
    corrected: bool

    @property
    def own_grid(self) -> bool:
        """Whether the scan keeps its grid, its voxels in the order in which its file holds them."""
        return self.space in (NATIVE, NATIVE_BRAIN)

    @property
    def brain_alone(self) -> bool:
        """Whether it is zero outside the brain."""
        return self.space != NATIVE

    @property
    def words(self) -> str:
        """What it is, for plans and sidecars."""
        return f"{SPACES[self.space]}, {'bias field corrected' if self.corrected else 'grey values as in the file'}"

    def __str__(self) -> str:
        if self == usual(self.space):
            return self.space
        return f"{self.space}:{next(word for word, corrected in CORRECTIONS.items() if corrected is self.corrected)}"


def usual(space: str) -> LesionInput:
    """The input of a space of which nothing else is said: corrected in MNI, as it is on the scan's own grid."""
    return LesionInput(space, corrected=space in (RIGID, AFFINE))


def parse_input(text: str) -> LesionInput:
    """An input as cards and ``--lesion-input`` write it.

    Raises
    ------
    ValueError
        If it is not known.

    >>> parse_input("native"), str(parse_input("native:n4")), str(parse_input("rigid:n4"))
    (LesionInput(space='native', corrected=False), 'native:n4', 'rigid')
    """
    space, colon, correction = text.partition(":")
    if space not in SPACES or (colon and correction not in CORRECTIONS):
        raise ValueError(f"'{text}' is not {KNOWN}")
    return LesionInput(space, CORRECTIONS[correction]) if colon else usual(space)


def is_input(text: str) -> bool:
    """Whether `parse_input` knows it."""
    try:
        parse_input(text)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class Stated(Generic[T]):
    """A value, and who said it: ``its card``, ``no card``, ``--threshold``."""

    value: T
    source: str

    def unless(self, chosen: T | None, option: str) -> Stated[T]:
        """The same, unless the user chose another by an option."""
        return self if chosen is None else Stated(chosen, option)
