"""Atomic writing: a file appears under its final name only when it is whole."""

from __future__ import annotations

import csv
import errno
import fcntl
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import pandas as pd

from bids_app.errors import NO_SPACE, CannotWriteError, no_space_left
from bids_app.images import Image

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""What file systems without locks answer (Lustre, some network drives)."""


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on failure.

    The temporary name is hidden and keeps the extension, so that writers which look at it work.

    Raises
    ------
    CannotWriteError
        If the folder cannot be written or the disk is full.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush_to_disk(temporary)
        temporary.replace(path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        _remove_quietly(temporary)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file; waits for others that hold it. On a file system without locks nothing is held.

    Raises
    ------
    CannotWriteError
        If it cannot be written.
    """
    with ExitStack() as opened:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fcntl.flock(opened.enter_context(path.open("w")), fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise _cannot_write(path, error) from error
        yield


def _flush_to_disk(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _remove_quietly(path: Path) -> None:
    # a full or read-only disk may refuse even this, and the first error is the one to tell
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return


def _in_the_way(path: Path) -> str | None:
    """What is where `path` or one of its folders belongs, as a sentence; None if nothing is."""
    for place in (*reversed(path.parents), path):
        is_folder = place.is_dir()
        if not is_folder and place != path and os.path.lexists(place):  # a link that leads nowhere counts
            return f"{place} is in the way: a folder belongs there."
    return f"{path} is in the way: a file belongs there." if is_folder else None


def _cannot_write(path: Path, error: OSError) -> CannotWriteError:
    if error.errno in NO_SPACE:
        return no_space_left(path)
    if obstacle := _in_the_way(path):
        return CannotWriteError(obstacle, "Rename it.")
    return CannotWriteError(
        f"{path} cannot be written: {error.strerror or error}.", "Choose a folder that you may write to."
    )


def write_text(path: Path, text: str) -> Path:
    """Write a text file."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    """Write a JSON file; insertion order is kept."""
    return write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_table(path: Path, frame: pd.DataFrame) -> Path:
    """Write a BIDS table: tab-separated, ``n/a`` for missing values."""
    return write_rows(path, list(frame.columns), frame.to_dict("records"))


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write a BIDS table row by row, so that it need not fit into memory.

    Parameters
    ----------
    rows : iterable of mapping
        Values by column; what a row lacks is missing, what is in no column is left out.
    """
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream, delimiter="\t", lineterminator="\n")
        table.writerow(columns)
        for row in rows:
            table.writerow([_cell(row.get(column)) for column in columns])
    return path


def _cell(value: Any) -> Any:
    """A value as tables have it: ``n/a`` where there is none, and zero without a sign."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "n/a"
    return value + 0.0 if isinstance(value, float) else value


def write_image(path: Path, image: Image) -> Path:
    """Write a NIfTI image."""
    with atomic(path) as temporary:
        nib.save(image, temporary)
    return path


def copy_file(source: Path, path: Path) -> Path:
    """Copy a file that a step has already written in the work folder."""
    with atomic(path) as temporary:
        shutil.copyfile(source, temporary)
    return path
