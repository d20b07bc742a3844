"""Where a run may write: the output and work folders, and how they lie to the dataset."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from bids_app.derivatives.names import DESCRIPTION, PIPELINE
from bids_app.errors import CannotWriteError, NoInputError, UsageError
from bids_app.settings import Settings


def check_places(settings: Settings, *more_raw: Path) -> None:
    """Refuse folders that would mix what is written with the raw dataset. Writes nothing.

    Parameters
    ----------
    *more_raw : Path
        Further datasets that are not to be written, beside ``settings.bids_dir``.

    Raises
    ------
    UsageError
        If the output folder, the work folder, the database of pybids or the exported masks are inside the dataset (its
        ``derivatives`` excepted), or the work folder is in the output folder.
    CannotWriteError
        If the output or the work folder is a file.
    """
    out, work = settings.out_dir.resolve(), settings.work_dir.resolve()
    if work.is_relative_to(out):
        raise UsageError(
            f"The work folder {work} is in the output folder {out}, which would be no valid BIDS dataset then.",
            "Choose another one with -w.",
        )
    for raw in (settings.bids_dir, *more_raw):
        if raw is not None:
            _check_raw(settings, raw.resolve())
    for folder, what, hint in ((out, "output folder", ""), (work, "work folder", "Choose another one with -w.")):
        if folder.exists() and not folder.is_dir():
            raise CannotWriteError(f"The {what} {folder} is a file.", hint or "Give a folder, or a name that is free.")


def _check_raw(settings: Settings, raw: Path) -> None:
    """Refuse to write into a raw dataset."""
    never = "The raw dataset is never written: choose another folder"
    derivatives = f"Choose {raw / 'derivatives' / PIPELINE}."
    if settings.out_dir.resolve() == raw:
        raise UsageError(f"The output folder is the dataset {raw} itself.", derivatives)
    for folder, what, hint in (
        (settings.out_dir, "The output folder", derivatives),
        (settings.work_dir, "The work folder", "Choose another one with -w."),
        (settings.bids_database_dir, "--bids-database-dir", f"{never}."),
        (settings.export_lesion_roi, "--export-lesion-roi", f"{never} and copy the masks from there."),
    ):
        if folder and _inside_raw(folder.resolve(), raw):
            raise UsageError(f"{what} {folder} is inside the dataset {raw}.", hint)


def dataset_of(file: Path) -> Path | None:
    """The innermost BIDS dataset that a file lies in; None if it is in none."""
    return next((folder for folder in file.absolute().parents if (folder / DESCRIPTION).is_file()), None)


def check_writable(settings: Settings) -> None:
    """Make the folders that a participant run writes to, and write to them.

    Raises
    ------
    CannotWriteError
        Naming the folder and the reason.
    """
    check_writable_output(settings.out_dir)
    _try_to_write(settings.work_dir, "work folder", "Choose another one with -w.")
    if settings.export_lesion_roi:
        _try_to_write(settings.export_lesion_roi, "folder of --export-lesion-roi")


def check_writable_output(out_dir: Path) -> None:
    """Make the output folder, and write to it.

    Raises
    ------
    CannotWriteError
        Naming the folder and the reason.
    """
    _try_to_write(out_dir, "output folder")


def check_group_input(out_dir: Path) -> None:
    """Make sure that the group level has participants to read.

    Raises
    ------
    NoInputError
        If the folder or any participant in it is not there.
    """
    if not out_dir.is_dir():
        raise NoInputError(f"The output folder {out_dir} does not exist.", "Run the participant level first.")
    if not any(out_dir.glob("sub-*/")):
        raise NoInputError(f"{out_dir} holds no participant.", "Run the participant level first.")


def _inside_raw(folder: Path, raw: Path) -> bool:
    """Whether a folder lies in the dataset, but not among its derivatives."""
    return folder.is_relative_to(raw) and folder.relative_to(raw).parts[:1] != ("derivatives",)


def _try_to_write(folder: Path, what: str, hint: str = "Check its permissions; in a container, bind it.") -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"afterstroke")
    except OSError as error:
        raise CannotWriteError(f"The {what} {folder} cannot be written: {error.strerror}.", hint) from error


def link(source: Path, target: Path) -> None:
    """A link to `source`; a copy where the file system knows no links."""
    try:
        target.symlink_to(source.absolute())
    except OSError:
        shutil.copyfile(source, target)
