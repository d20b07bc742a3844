"""Small pieces of the sentences that users read."""

from __future__ import annotations

from collections.abc import Sequence


def counted(number: int, noun: str) -> str:
    """A number and its noun.

    >>> counted(1, "visit"), counted(2, "visit")
    ('1 visit', '2 visits')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def was(number: int) -> str:
    """The verb after `counted`.

    >>> was(1), was(2)
    ('was', 'were')
    """
    return "was" if number == 1 else "were"


def listed(labels: Sequence[str], prefix: str = "", limit: int = 20) -> str:
    """Labels as a list, cut where it gets long.

    >>> listed(["01", "02", "03"], "sub-", limit=2)
    'sub-01, sub-02 and 1 more'
    """
    shown = ", ".join(f"{prefix}{label}" for label in labels[:limit])
    more = len(labels) - limit
    return f"{shown} and {more} more" if more > 0 else shown
