"""What the sidecars of a raw scan tell of the scanner it was made with, and nothing of whom or where."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bids_app.derivatives.read import read_object
from bids_app.study.reuse import DerivedFile

#: Tesla; what is more than the strongest magnets for people was written in another unit.
STRONGEST_T = 25.0


@dataclass(frozen=True)
class Scanner:
    """A scanner; None for what no sidecar tells."""

    manufacturer: str | None = None
    model: str | None = None
    field_strength_t: float | None = None


NO_SCANNER = Scanner()


def scanner_of(scan: Path, root: Path) -> Scanner:
    """The scanner that a raw scan was made with, by its sidecars in a BIDS dataset.

    Those of the folders above count as well: a file serves all scans below that have its suffix and its entities, and
    the nearest one is right (BIDS, the inheritance principle). A sidecar that cannot be read tells nothing.
    """
    told: dict[str, Any] = {}
    for path in _sidecars(scan, root):
        told |= read_object(path)
    return Scanner(
        manufacturer=_text(told.get("Manufacturer")),
        model=_text(told.get("ManufacturersModelName")),
        field_strength_t=_tesla(told.get("MagneticFieldStrength")),
    )


def _sidecars(scan: Path, root: Path) -> Iterator[Path]:
    """The JSON files that serve a scan, the nearest and most particular one last."""
    own = DerivedFile.parse(scan)
    folders = [folder for folder in reversed(scan.parents) if folder.is_relative_to(root)] or [scan.parent]
    for folder in folders:
        found = map(DerivedFile.parse, folder.glob(f"*{own.tail}.json"))
        serving = [each for each in found if each.tail == own.tail and each.entities.items() <= own.entities.items()]
        yield from (each.path for each in sorted(serving, key=lambda each: (len(each.entities), each.path.name)))


def _text(value: Any) -> str | None:
    """A text in one line; None if there is none."""
    text = " ".join(value.split()) if isinstance(value, str) else ""
    return text if text and text.lower() != "n/a" else None


def _tesla(value: Any) -> float | None:
    """A field strength, which some write as text; None where it is none.

    >>> _tesla(3), _tesla("1.5"), _tesla(30000), _tesla("3 T"), _tesla(None)
    (3.0, 1.5, None, None, None)
    """
    try:
        strength = float(value)
    except (TypeError, ValueError):
        return None
    return strength if 0 < strength <= STRONGEST_T else None
