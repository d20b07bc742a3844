"""Lines that say how far a long step has come."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Say = Callable[[str], None]

SECONDS = 10.0
"""Between two lines, and before the first: small cohorts have none."""


def told(items: Sequence[Item], what: str, say: Say) -> Iterator[Item]:
    """The items, one by one, and every few seconds a line on how many are done."""
    last = time.monotonic()
    for number, item in enumerate(items):
        if time.monotonic() - last >= SECONDS:
            last = time.monotonic()
            say(f"{what}: {number:,} of {len(items):,}")
        yield item


def silent(_: str) -> None:
    """Say nothing."""
