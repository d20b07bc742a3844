"""``--bids-database-dir``: the index that pybids keeps of a dataset; the one module that knows pybids."""

from __future__ import annotations

import re
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from bids_app.errors import CannotWriteError, ConfigError
from bids_app.study.listing import Listing, VisitKey
from bids_app.study.unused import IMAGE_EXTENSIONS
from bids_app.wording import listed

#: Never looked at: what is no participant, no anatomy, and neither T1w nor FLAIR.
_IGNORED = (
    re.compile(r"^/(?!sub-)"),
    re.compile(r"^/sub-[^/]+(/ses-[^/]+)?/(?!ses-|anat(/|$))"),
    re.compile(r"/anat/(?!.*_(T1w|FLAIR)\.nii(\.gz)?$)"),
)
_FILE = "layout_index.sqlite"  # the name is pybids's
_REMAKE = "Delete that folder: the next run makes it anew."


def check_database(root: Path, listings: Mapping[VisitKey, Listing], database: Path) -> None:
    """Make the database of a dataset if it is not there; else make sure that it knows the scans on disk.

    Parameters
    ----------
    listings : mapping
        The requested visits.

    Raises
    ------
    ConfigError
        If it cannot be used, is of another dataset, or is older than a scan of a requested visit.
    CannotWriteError
        If a new one cannot be written.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pybids announces its own deprecations
        layout = _layout(root, database)
        paths = layout.get(return_type="file", suffix=["T1w", "FLAIR"], extension=list(IMAGE_EXTENSIONS))
    known: dict[PurePosixPath, set[str]] = {}
    for path in paths:
        relative = PurePosixPath(path).relative_to(layout.root)
        known.setdefault(relative.parent, set()).add(relative.name)
    newer = [key.label for key, listing in listings.items() if set(listing.scans) - known.get(key.anat, set())]
    if newer:
        raise ConfigError(f"The database in {database} is older than {listed(newer)}.", _REMAKE)


def _layout(root: Path, database: Path):
    """The layout of a database of the whole dataset, made now if it is not there."""
    from bids.layout import BIDSLayout
    from sqlalchemy.exc import SQLAlchemyError

    if not (database / _FILE).is_file():
        _create(root, database)
    try:
        layout = BIDSLayout(root, validate=False, database_path=database)
    except (SQLAlchemyError, ValueError, AttributeError) as error:
        raise ConfigError(f"The database in {database} cannot be used: {error}.", _REMAKE) from error
    if Path(layout.root).resolve() != root.resolve():
        raise ConfigError(f"The database in {database} is of another dataset, {layout.root}.", _REMAKE)
    return layout


def _create(root: Path, database: Path) -> None:
    """Index all participants beside the final place, then move: two runs may do it at the same time."""
    from bids.layout import BIDSLayout, BIDSLayoutIndexer  # takes most of a second

    try:
        database.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=database))
    except OSError as error:
        raise CannotWriteError(
            f"The database folder {database} cannot be written: {error.strerror}.",
            "Choose another --bids-database-dir.",
        ) from error
    try:
        indexer = BIDSLayoutIndexer(validate=False, index_metadata=False, ignore=list(_IGNORED))
        BIDSLayout(root, validate=False, database_path=temporary, indexer=indexer)
        (temporary / _FILE).replace(database / _FILE)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
