"""Small pieces of the sentences that users read."""

from __future__ import annotations

from collections.abc import Sequence


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number and its noun, whose plural is with an s unless given.

    >>> counted(1, "visit"), counted(2, "visit"), counted(2, "copy", "copies")
    ('1 visit', '2 visits', '2 copies')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {plural or f'{noun}s'}"


def of_all(number: int, total: int, noun: str) -> str:
    """A part of a whole, or the whole.

    >>> of_all(1, 1, "visit"), of_all(1, 3, "visit"), of_all(3, 3, "visit")
    ('the only visit', '1 of 3 visits', 'all 3 visits')
    """
    if number == total:
        return f"the only {noun}" if total == 1 else f"all {counted(total, noun)}"
    return f"{number} of {counted(total, noun)}"


def printable(text: str) -> str:
    """Text that any terminal can show: control characters and bytes that are no UTF-8 as escapes.

    >>> printable("Icon\\r"), printable("sub-\\udcfc"), printable("Zürich")
    ('Icon\\\\r', 'sub-\\\\udcfc', 'Zürich')
    """
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def capitalized(sentence: str) -> str:
    """A sentence with a capital first letter; all others stay as they are.

    >>> capitalized("the T1w is used.")
    'The T1w is used.'
    """
    return sentence[:1].upper() + sentence[1:]


def listed(labels: Sequence[str], prefix: str = "", limit: int = 20) -> str:
    """Labels as a list, cut where it gets long.

    >>> listed(["01", "02", "03"], "sub-", limit=2)
    'sub-01, sub-02 and 1 more'
    """
    shown = ", ".join(f"{prefix}{label}" for label in labels[:limit])
    more = len(labels) - limit
    return f"{shown} and {more} more" if more > 0 else shown
