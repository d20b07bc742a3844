"""Whether a folder is a BIDS dataset, and what else it may be."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bids_app.derivatives.names import DESCRIPTION, PIPELINE
from bids_app.errors import DatasetError, NoInputError
from bids_app.study.content import TO_BIDS, has_content, holds_dicom, target_of
from bids_app.text import read_text

#: Folders in which a dataset is looked for when it is not where it was said to be.
_INNER = ("rawdata", "raw", "bids", "BIDS", "sourcedata/raw")


@dataclass(frozen=True)
class Dataset:
    """A BIDS dataset.

    Attributes
    ----------
    root : Path
        Absolute.
    name : str
        From its description, else that of the folder.
    own_output : bool
        Whether this App wrote it: its images are made of scans, and are none.
    notes : tuple of str
        What was guessed while reading its description, as clauses.
    """

    root: Path
    name: str
    own_output: bool = False
    notes: tuple[str, ...] = ()


def open_dataset(bids_dir: Path | None) -> Dataset:
    """Make sure that a folder is a BIDS dataset, and read its description.

    Raises
    ------
    NoInputError
        If the folder is not there.
    DatasetError
        If it is no BIDS dataset; the message says what it seems to be.
    """
    if bids_dir is None or not bids_dir.is_dir():
        raise _no_folder(bids_dir)
    root = bids_dir.absolute()
    content, note = _description(root)
    name = content.get("Name")
    notes = (f"{DESCRIPTION} was {note}",) if note else ()
    return Dataset(root, str(name or root.name), PIPELINE in makers(content), notes)


def makers(description: Mapping[str, Any]) -> list[str]:
    """Names of the pipelines in GeneratedBy, which some write as one object instead of a list of them."""
    generated = description.get("GeneratedBy")
    items = generated if isinstance(generated, list) else [generated]
    return [str(maker.get("Name", "?")) for maker in items if isinstance(maker, dict)]


def _no_folder(bids_dir: Path | None) -> NoInputError:
    if bids_dir and (bids_dir.is_file() or bids_dir.suffix in (".nii", ".gz")):
        return NoInputError(
            f"{bids_dir} is no folder.", "Give the folder of a BIDS dataset; for one scan, use afterstroke case."
        )
    target = target_of(bids_dir) if bids_dir else None
    if target:
        return NoInputError(f"The BIDS folder {bids_dir} is a link to {target}, which is not here.", "Bind it as well.")
    return NoInputError(f"The BIDS folder {bids_dir} does not exist.", "Check the path; in a container, bind it.")


def _description(root: Path) -> tuple[dict[str, Any], str]:
    """Content of the description, and what was guessed while reading it."""
    path = root / DESCRIPTION
    if os.path.lexists(path) and not has_content(path):
        raise DatasetError(
            f"{path} is not downloaded.", f"If this is a DataLad dataset, run: datalad get {path}"
        )
    try:
        text = read_text(path)
        content = json.loads(text.content)
    except FileNotFoundError:
        raise _no_dataset(root) from None
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}.", "Check its permissions.") from error
    except ValueError as error:
        raise DatasetError(f"{path} is not valid JSON: {error}.", "Correct that place.") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{path} is not a JSON object.", "BIDS wants at least Name and BIDSVersion in it.")
    return content, text.note


def _no_dataset(root: Path) -> DatasetError:
    """What a folder without a description is instead of a dataset."""
    message = f"{root} is no BIDS dataset: it has no {DESCRIPTION}."
    names = _names(root)
    if not names:
        hint = f"The folder is empty. If it is a DataLad subdataset: datalad get -n {root}; in a container, bind it."
    elif alike := next((name for name in names if _is_alike(name)), None):
        hint = f"Rename {alike} to {DESCRIPTION}."
    elif inner := next((root / name for name in _inner(names) if (root / name / DESCRIPTION).is_file()), None):
        hint = f"There is one in {inner}: give that folder."
    elif any(re.match("sub-", name) for name in names):
        hint = f'It has participants. Write {DESCRIPTION} there: {{"Name": "My study", "BIDSVersion": "1.9.0"}}'
    elif holds_dicom(root):
        return DatasetError(f"{root} is a folder of DICOM, no BIDS dataset.", TO_BIDS)
    else:
        hint = f"Give the folder that holds {DESCRIPTION} and the sub-* folders."
    return DatasetError(message, hint)


def _names(root: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(root))
    except OSError as error:
        raise DatasetError(f"The folder {root} cannot be read: {error.strerror}.", "Check its permissions.") from error


def _is_alike(name: str) -> bool:
    """Whether a file is called almost as the description."""
    return re.fullmatch(r"data[-_ ]?set[-_ ]?descriptions?\.json(\.txt)?", name, re.IGNORECASE) is not None


def _inner(names: list[str]) -> list[str]:
    """Folders inside a folder that may be meant, the usual names first."""
    return [*_INNER, *(name for name in names[:20] if not name.startswith("."))]
