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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import nibabel as nib
import pandas as pd

from bids_app.errors import NO_SPACE, BlockedError, CannotWriteError, no_space_left
from bids_app.images import Image

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""What file systems without locks answer (Lustre, some network drives)."""
_IN_THE_WAY = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.ELOOP)
_CLOSED = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)


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
def locked(
    path: Path, holder: str = "", waits: Callable[[str], None] | None = None, temporary: bool = False
) -> Iterator[None]:
    """Hold a lock file; waits for others that hold it. On a file system without locks nothing is held.

    The lock ends with the process that holds it, however that ends: what a killed run leaves stops nobody.

    Parameters
    ----------
    path : Path
    holder : str
        Who holds it, for those who wait: it is written into the file.
    waits : callable, optional
        Called once if others hold the lock, with what they have written about themselves.
    temporary : bool
        Remove the file when the lock is released.

    Raises
    ------
    CannotWriteError
        If it cannot be written.
    """
    with ExitStack() as opened:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = opened.enter_context(_held(path, waits))
            stream.truncate(0)
            stream.write(holder)
            stream.flush()
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise _cannot_write(path, error) from error
        if temporary:
            opened.callback(_remove_quietly, path)  # while it is still held
        yield


def _held(path: Path, waits: Callable[[str], None] | None) -> IO[str]:
    """An open file that is locked, and that is still the one of this name: its last holder may have removed it."""
    while True:
        stream = path.open("a+", encoding="utf-8", errors="replace")
        try:
            _lock(stream, waits)
            if _is_at(stream, path):
                return stream
        except BaseException:
            stream.close()
            raise
        stream.close()
        waits = None


def _lock(stream: IO[str], waits: Callable[[str], None] | None) -> None:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if waits:
            stream.seek(0)
            waits(stream.read())
        fcntl.flock(stream, fcntl.LOCK_EX)


def _is_at(stream: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _flush_to_disk(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _remove_quietly(path: Path) -> None:
    # a full or read-only disk may refuse even this, and the first error is the one to tell
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return


def _cannot_write(path: Path, error: OSError) -> CannotWriteError:
    if error.errno in NO_SPACE:
        return no_space_left(path)
    if error.errno in _IN_THE_WAY:
        return BlockedError(
            f"{path} cannot be written: {_what_is_in_the_way(path)} is in the way.", "Rename or remove it."
        )
    if error.errno in _CLOSED:
        return BlockedError(f"{path} cannot be written: {error.strerror}.", "Check the permissions of its folder.")
    return CannotWriteError(
        f"{path} cannot be written: {error.strerror or error}.", "Choose a folder that you may write to."
    )


def _what_is_in_the_way(path: Path) -> str:
    """The file in the place of a folder of `path`, or the folder in its own place."""
    blocking = next((parent for parent in path.parents if os.path.lexists(parent) and not parent.is_dir()), None)
    return f"the file {blocking}" if blocking else f"the folder {path}"


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
