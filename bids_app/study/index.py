"""From a BIDS dataset to its visits; the one module that knows pybids.

pybids walks the folders of the requested visits and lists their T1w and FLAIR. No sidecar is read.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from bids_app.derivatives.names import DESCRIPTION, ScanName, visit_folder, visit_label
from bids_app.errors import CannotWriteError, ConfigError, DatasetError, NoInputError
from bids_app.settings import Settings
from bids_app.study.choice import choose
from bids_app.study.content import has_content
from bids_app.study.filters import Filter, ScanFilters, read_filters
from bids_app.study.models import Problem, Scan, Severity, Study, Visit
from bids_app.study.reuse import IMAGE_EXTENSIONS, check_derivatives, find_reuse
from bids_app.templateflow_cache import bridges
from bids_app.wording import listed

SUFFIXES = ("T1w", "FLAIR")

#: Never looked at: what is no participant, no anatomy, and neither T1w nor FLAIR.
_IGNORED = (
    re.compile(r"^/(?!sub-)"),
    re.compile(r"^/sub-[^/]+(/ses-[^/]+)?/(?!ses-|anat(/|$))"),
    re.compile(r"/anat/(?!.*_(T1w|FLAIR)\.nii(\.gz)?$)"),
)
_LABEL = re.compile(r"[0-9a-zA-Z+]+")
_DATABASE_FILE = "layout_index.sqlite"  # the name is pybids's
_REMAKE = "Delete that folder: the next run makes it anew."


@dataclass(frozen=True)
class _Key:
    """A visit before its scans are known."""

    subject: str
    session: str | None

    @property
    def label(self) -> str:
        return visit_label(self.subject, self.session)

    @property
    def anat(self) -> PurePosixPath:
        """Folder of its scans, relative to the dataset."""
        return visit_folder(self.subject, self.session) / "anat"


def index(settings: Settings) -> Study:
    """Find the visits that were asked for, and choose the scans of each.

    Raises
    ------
    DatasetError
        If `settings.bids_dir` is no BIDS dataset.
    NoInputError
        If it holds no participant, or not those that were asked for (the message lists what there is).
    ConfigError
        If the filter file or the database cannot be used.
    CannotWriteError
        If a new database cannot be written.
    """
    root = _dataset_root(settings.bids_dir)
    check_derivatives(settings.derivatives)
    filters = read_filters(settings.bids_filter_file)
    name = _dataset_name(root)
    participants = _folder_labels(root, "sub")
    if not participants:
        raise NoInputError(f"{root} holds no participant.", "A BIDS dataset has a folder sub-<label> for each.")
    keys = _requested_visits(root, _requested_participants(participants, settings), settings, filters)
    left_out = _without_anatomy(root, keys, settings)
    keys = [key for key in keys if key not in left_out]
    files = _list_scans(root, keys, settings.bids_database_dir)
    # only reuse asks for them, and large datasets are slow to list
    reusing = {key.subject for key in keys} if settings.derivatives else set()
    sessions = {subject: _imaged_sessions(root, subject) for subject in reusing}
    visits = tuple(
        _visit(key, [root / file for file in files.get(key.anat, ())], sessions.get(key.subject, 1), settings, filters)
        for key in keys
    )
    return Study(root, name, participants, visits, tuple(key.label for key in left_out))


def _dataset_root(bids_dir: Path | None) -> Path:
    if bids_dir is None or not bids_dir.is_dir():
        raise NoInputError(f"The BIDS folder {bids_dir} does not exist.", "Check the path; in a container, bind it.")
    return bids_dir.absolute()


def _dataset_name(root: Path) -> str:
    """Name of the dataset, after making sure that it is one."""
    path = root / DESCRIPTION
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DatasetError(
            f"{root} is no BIDS dataset: it has no {DESCRIPTION}.",
            "Give the folder that holds dataset_description.json and the sub-* folders.",
        ) from None
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}.", "Check its permissions.") from error
    except ValueError as error:
        raise DatasetError(f"{path} is not valid JSON: {error}.", "Correct that place.") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{path} is not a JSON object.", "BIDS wants at least Name and BIDSVersion in it.")
    return str(content.get("Name") or root.name)


def _folder_labels(parent: Path, prefix: str) -> tuple[str, ...]:
    """Labels of the folders ``prefix-<label>`` in `parent`, sorted."""
    try:
        names = [entry.name for entry in os.scandir(parent) if entry.name.startswith(f"{prefix}-") and entry.is_dir()]
    except OSError as error:
        raise DatasetError(
            f"The folder {parent} cannot be read: {error.strerror}.", "Check its permissions."
        ) from error
    labels = [name.removeprefix(f"{prefix}-") for name in names]
    return tuple(sorted(label for label in labels if _LABEL.fullmatch(label)))


def _requested_participants(participants: Sequence[str], settings: Settings) -> tuple[str, ...]:
    if unknown := [label for label in settings.participants if label not in participants]:
        raise NoInputError(
            f"{settings.bids_dir} has no {listed(unknown, 'sub-')}.",
            f"There are {len(participants)} participants: {listed(participants)}.",
        )
    wanted = settings.participants or participants
    kept = tuple(sorted(label for label in wanted if label not in settings.excluded))
    if not kept:
        raise NoInputError("Every requested participant is excluded.", "Change --exclude-participant-label.")
    return kept


def _requested_visits(root: Path, subjects: Iterable[str], settings: Settings, filters: ScanFilters) -> list[_Key]:
    """The visits of some participants that sessions and filter file leave."""
    existing = [key for subject in subjects for key in _visits_of(root, subject)]
    sessions = sorted({key.session for key in existing if key.session})
    if unknown := [label for label in settings.sessions if label not in sessions]:
        there_are = f"there are {listed(sessions)}" if sessions else "these participants have no sessions"
        raise NoInputError(
            f"{listed(unknown, 'ses-')} is no session of the requested participants: {there_are}.",
            "Change --session-label.",
        )
    keys = [key for key in existing if not settings.sessions or key.session in settings.sessions]
    keys = [key for key in keys if filters.accept_visit(key.label)]
    if not keys:
        raise NoInputError(
            f"{settings.bids_filter_file} leaves no visit of the requested participants.",
            "Its t1w part names subjects or sessions that are not there.",
        )
    return keys


def _visits_of(root: Path, subject: str) -> list[_Key]:
    """A participant's sessions; what lies beside them, or instead of them, is a visit without session."""
    folder = root / f"sub-{subject}"
    sessions = [_Key(subject, session) for session in _folder_labels(folder, "ses")]
    return sessions if sessions and not (folder / "anat").is_dir() else [_Key(subject, None), *sessions]


def _without_anatomy(root: Path, keys: Sequence[_Key], settings: Settings) -> list[_Key]:
    """Visits without an anat folder, which is no mistake; but it is one in what was asked for by its label."""
    empty = [key for key in keys if not (root / key.anat).is_dir()]
    imaged = {key.subject for key in keys if key not in empty}
    asked = [key for key in empty if key.subject in settings.participants and key.subject not in imaged]
    return [key for key in empty if key not in asked and key.session not in settings.sessions]


def _imaged_sessions(root: Path, subject: str) -> int:
    """How many sessions of a participant, asked for or not, have an anat folder."""
    return sum((root / key.anat).is_dir() for key in _visits_of(root, subject))


def _list_scans(root: Path, keys: Sequence[_Key], database: Path | None) -> dict[PurePosixPath, list[PurePosixPath]]:
    """T1w and FLAIR files by their folder, relative to the dataset, from pybids or its database."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pybids announces its own deprecations
        layout = _new_layout(root, keys) if database is None else _database_layout(root, database)
        paths = layout.get(return_type="file", suffix=list(SUFFIXES), extension=list(IMAGE_EXTENSIONS))
    files: dict[PurePosixPath, list[PurePosixPath]] = {}
    for path in paths:
        relative = PurePosixPath(path).relative_to(layout.root)
        files.setdefault(relative.parent, []).append(relative)
    if database is not None:
        _refuse_old_database(root, keys, files, database)
    return files


def _new_layout(root: Path, keys: Sequence[_Key] | None, database: Path | None = None):
    """A pybids layout of the requested visits or (None) of all, in memory or in a database."""
    from bids.layout import BIDSLayout  # takes most of a second

    return BIDSLayout(root, validate=False, database_path=database, indexer=_indexer(keys))


def _indexer(keys: Sequence[_Key] | None):
    """What pybids shall look at: anat, of the requested visits or (None) of all."""
    from bids.layout import BIDSLayoutIndexer

    ignored = list(_IGNORED)
    if keys is not None:
        subjects = "|".join(sorted({re.escape(key.subject) for key in keys}))
        ignored.append(re.compile(rf"^/sub-(?!({subjects})(/|$))"))
    if keys and all(key.session for key in keys):
        sessions = "|".join(sorted({re.escape(key.session) for key in keys if key.session}))
        ignored.append(re.compile(rf"^/sub-[^/]+/ses-(?!({sessions})(/|$))"))
    return BIDSLayoutIndexer(validate=False, index_metadata=False, ignore=ignored)


def _database_layout(root: Path, database: Path):
    """The layout of a database of the whole dataset, made now if it is not there."""
    from bids.layout import BIDSLayout
    from sqlalchemy.exc import SQLAlchemyError

    if not (database / _DATABASE_FILE).is_file():
        _create_database(root, database)
    try:
        layout = BIDSLayout(root, validate=False, database_path=database)
    except (SQLAlchemyError, ValueError, AttributeError) as error:
        raise ConfigError(f"The database in {database} cannot be used: {error}.", _REMAKE) from error
    if Path(layout.root).resolve() != root.resolve():
        raise ConfigError(f"The database in {database} is of another dataset, {layout.root}.", _REMAKE)
    return layout


def _refuse_old_database(
    root: Path, keys: Iterable[_Key], files: Mapping[PurePosixPath, Sequence[PurePosixPath]], database: Path
) -> None:
    """Fail if a requested visit has a scan by now that the database does not know."""
    newer = [key.label for key in keys if _scans_on_disk(root, key) - {file.name for file in files.get(key.anat, ())}]
    if newer:
        raise ConfigError(f"The database in {database} is older than {listed(newer)}.", _REMAKE)


def _scans_on_disk(root: Path, key: _Key) -> set[str]:
    """Names of the T1w and FLAIR in a visit's folder, downloaded or not."""
    folder = root / key.anat
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return {name for name in names if re.fullmatch(rf"{re.escape(key.label)}_([^.]*_)?(T1w|FLAIR)\.nii(\.gz)?", name)}


def _create_database(root: Path, database: Path) -> None:
    """Index all participants beside the final place, then move: two runs may do it at the same time."""
    try:
        database.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=database))
    except OSError as error:
        raise CannotWriteError(
            f"The database folder {database} cannot be written: {error.strerror}.",
            "Choose another --bids-database-dir.",
        ) from error
    try:
        _new_layout(root, None, temporary)
        (temporary / _DATABASE_FILE).replace(database / _DATABASE_FILE)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _visit(key: _Key, files: Sequence[Path], sessions: int, settings: Settings, filters: ScanFilters) -> Visit:
    """A visit, its scans chosen, with everything that should be said of it."""
    own = [path for path in files if path.name.startswith(f"{key.label}_") and os.path.lexists(path)]
    t1w, t1w_problems = choose(_scans(own, "T1w", filters.t1w))
    flair, flair_problems = choose(_scans(own, "FLAIR", filters.flair), partner=t1w)
    visit, reuse_problems = Visit(key.subject, key.session, t1w, flair), ()
    if visit.reference:
        # fMRIPrep's transforms to another space serve as well, where its template is on this machine
        spaces = (*settings.standard_spaces, *bridges(settings.standard_spaces))
        reuse, reuse_problems = find_reuse(
            key.subject, key.session, visit.reference, settings.derivatives, spaces, sessions
        )
        visit = replace(visit, reuse=reuse)
    missing = _missing_scans(visit, own)
    problems = t1w_problems + flair_problems + missing + _not_downloaded(visit) + reuse_problems
    return replace(visit, problems=problems)


def _scans(files: Iterable[Path], suffix: str, accepted: Filter) -> list[Scan]:
    """The scans of one suffix that pass the filter."""
    endings = tuple(f"_{suffix}{extension}" for extension in IMAGE_EXTENSIONS)
    return [
        Scan(path, ScanName.parse(path.name), suffix)
        for path in files
        if path.name.endswith(endings) and accepted.accepts(path.name)
    ]


def _missing_scans(visit: Visit, files: Sequence[Path]) -> tuple[Problem, ...]:
    """What to say of a visit without T1w, or whose FLAIR were all rejected."""
    problems = []
    if visit.t1w is None:
        rejected = [path.name for path in files if "_T1w." in path.name]
        why = f"none of {', '.join(rejected)} may be used (filter file, part-)" if rejected else "there is none in anat"
        problems.append(_no_t1w(visit, why, tuple(rejected)))
    rejected = [path.name for path in files if "_FLAIR." in path.name]
    if visit.flair is None and rejected:
        message = f"None of {', '.join(rejected)} may be used (filter file, part-); the T1w is used alone."
        problems.append(Problem("no-flair", Severity.INFO, message, tuple(rejected)))
    return tuple(problems)


def _no_t1w(visit: Visit, why: str, rejected: tuple[str, ...]) -> Problem:
    """An error, unless there is a FLAIR to work on."""
    message = f"{visit.label} has no T1w: {why}"
    if visit.flair is None:
        return Problem("no-t1w", Severity.ERROR, f"{message}.", rejected)
    message += "; its FLAIR takes its place, for models that can use it alone."
    return Problem("flair-alone", Severity.INFO, message, rejected)


def _not_downloaded(visit: Visit) -> tuple[Problem, ...]:
    """One problem a file that is listed, but whose content is elsewhere."""
    reuse = visit.reuse
    files = [scan.path for scan in (visit.t1w, visit.flair) if scan]
    files += [reuse.preprocessed, reuse.brain_mask, reuse.to_standard, reuse.from_standard, reuse.lesion_mask]
    absent = [path for path in files if path and not has_content(path)]
    return tuple(
        Problem(
            "not-downloaded", Severity.ERROR, f"{path.name} is not downloaded. Run: datalad get {path}", (path.name,)
        )
        for path in absent
    )
