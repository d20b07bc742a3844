"""``--bids-filter-file``: which scans of a visit may be used, in the form that fMRIPrep reads.

A file such as ``{"t1w": {"acquisition": "mprage", "run": null}, "flair": {"run": [1, 2]}}``: null is "without this
entity", ``"*"`` is "with this entity, whatever its label", a list is "one of these".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bids_app.errors import ConfigError
from bids_app.text import read_json

ANY = "*"

#: Entities by the long names of pybids and the BIDS schema; the short ones of file names are understood too.
SHORT_KEYS = {
    "subject": "sub",
    "session": "ses",
    "sample": "sample",
    "task": "task",
    "tracksys": "tracksys",
    "acquisition": "acq",
    "nucleus": "nuc",
    "volume": "voi",
    "ceagent": "ce",
    "tracer": "trc",
    "stain": "stain",
    "staining": "stain",
    "reconstruction": "rec",
    "direction": "dir",
    "run": "run",
    "modality": "mod",
    "echo": "echo",
    "flip": "flip",
    "inversion": "inv",
    "mtransfer": "mt",
    "part": "part",
    "processing": "proc",
    "hemisphere": "hemi",
    "space": "space",
    "split": "split",
    "recording": "recording",
    "chunk": "chunk",
    "atlas": "atlas",
    "segmentation": "seg",
    "scale": "scale",
    "resolution": "res",
    "density": "den",
    "label": "label",
    "description": "desc",
    "extension": "extension",
}

#: Labels of these are numbers: ``run-01`` and ``run-1`` are the same.
_NUMBERED = ("run", "echo", "inv", "flip", "chunk")

#: What each kind of scan must be; fMRIPrep's filters repeat it.
_FIXED = {"datatype": {"t1w": "anat", "flair": "anat"}, "suffix": {"t1w": "T1w", "flair": "FLAIR"}}

#: Scans that other Apps filter: files written for them (as BABS does) are accepted, these parts are not used.
_OF_OTHER_APPS = ("asl", "bold", "dwi", "fmap", "m0scan", "pet", "roi", "sbref", "t2w", "t1map", "mp2rage", "mask")


@dataclass(frozen=True)
class Filter:
    """Conditions on the entities of a file name.

    Attributes
    ----------
    conditions : tuple of (str, tuple)
        A short entity key, and the labels allowed; None among them allows its absence, ``"*"`` any label.
    """

    conditions: tuple[tuple[str, tuple[str | None, ...]], ...] = ()

    def accepts(self, filename: str) -> bool:
        """Whether a file name meets every condition.

        >>> Filter((("run", ("2", None)),)).accepts("sub-1_run-02_T1w.nii")
        True
        >>> Filter((("ce", (None,)),)).accepts("sub-1_ce-gad_T1w.nii")
        False
        """
        entities = _entities(filename)
        return all(_allowed(entities.get(key), labels) for key, labels in self.conditions)

    def restricted_to(self, *keys: str) -> Filter:
        """The conditions on `keys` alone."""
        return Filter(tuple(condition for condition in self.conditions if condition[0] in keys))


@dataclass(frozen=True)
class ScanFilters:
    """The filters of a run; conditions on subject and session in `t1w` also choose the visits."""

    t1w: Filter = field(default_factory=Filter)
    flair: Filter = field(default_factory=Filter)

    def accept_visit(self, label: str) -> bool:
        """Whether a visit, as ``sub-01_ses-1``, may hold a T1w that passes."""
        return self.t1w.restricted_to("sub", "ses").accepts(label)


def read_filters(path: Path | None) -> ScanFilters:
    """Read a filter file; None is no filter.

    Raises
    ------
    ConfigError
        If the file cannot be read, is not JSON, or asks for what does not exist.
    """
    if path is None:
        return ScanFilters()
    try:
        content = read_json(path)
    except OSError as error:
        raise ConfigError(f"The filter file {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ConfigError(f"The filter file {path} is not valid JSON: {error}.", "Correct that place.") from error
    return parse_filters(content, str(path))


def parse_filters(content: Any, source: str = "the filter file") -> ScanFilters:
    """Filters from the parsed content of a filter file.

    Raises
    ------
    ConfigError
        For a key that is neither ``t1w`` nor ``flair`` nor known to other Apps, and for an unknown entity.
    """
    if not isinstance(content, dict) or not all(isinstance(item, dict) for item in content.values()):
        raise ConfigError(f"{source} is not an object of objects.", 'Write it as {"t1w": {"acquisition": "mprage"}}.')
    kinds = {key.lower(): conditions for key, conditions in content.items()}
    if unknown := sorted(set(kinds) - {"t1w", "flair", *_OF_OTHER_APPS}):
        raise ConfigError(f"{source} filters {', '.join(unknown)}.", "afterstroke reads t1w and flair.")
    return ScanFilters(*(_parse_filter(kind, kinds.get(kind, {}), source) for kind in ("t1w", "flair")))


def _parse_filter(kind: str, conditions: Mapping[str, Any], source: str) -> Filter:
    parsed = []
    for name, value in conditions.items():
        if name in _FIXED:
            _check_fixed(kind, name, value, source)
            continue
        key = SHORT_KEYS.get(name, name)
        if key not in SHORT_KEYS.values():
            raise ConfigError(
                f"{source} filters {kind} by '{name}', which is no entity.", f"Known entities: {', '.join(SHORT_KEYS)}."
            )
        parsed.append((key, tuple(_label(key, item) for item in (value if isinstance(value, list) else [value]))))
    return Filter(tuple(parsed))


def _check_fixed(kind: str, name: str, value: Any, source: str) -> None:
    expected = _FIXED[name][kind]
    if expected not in (value if isinstance(value, list) else [value]):
        raise ConfigError(
            f"{source} wants {name} {value!r} for {kind}, but afterstroke reads {expected} there.", f"Leave {name} out."
        )


def _label(key: str, value: Any) -> str | None:
    """A label as `_entities` gives it: without prefix, and without leading zeros where it is a number.

    >>> _label("run", 1), _label("ses", "ses-01"), _label("acq", None)
    ('1', '01', None)
    """
    if value is None:
        return None
    if key == "extension":
        return f".{str(value).lstrip('.')}"
    label = str(value).removeprefix(f"{key}-")
    return str(int(label)) if key in _NUMBERED and label.isdigit() else label


def _entities(filename: str) -> dict[str, str | None]:
    pairs = re.findall(r"(?:^|_)([a-z]+)-([0-9a-zA-Z+]+)", filename)
    entities = {key: _label(key, label) for key, label in pairs}
    _, dot, rest = filename.partition(".")
    return entities | {"extension": dot + rest}


def _allowed(label: str | None, labels: tuple[str | None, ...]) -> bool:
    return label in labels or (label is not None and ANY in labels)
