"""One walk through the folders of a dataset: which scans there are, and what is not used.

Every folder of a requested participant is listed once, down to the files of anat and of the other datatypes. No file is
opened but the table of a participant's sessions, and, where there is no scan, a few files that may be DICOM.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bids_app.derivatives.names import PARTICIPANTS, visit_folder, visit_label
from bids_app.errors import DatasetError
from bids_app.study.content import is_dicom, target_of
from bids_app.study.unused import (
    ANAT,
    LABEL,
    OTHER_DATATYPES,
    Place,
    Reason,
    Unused,
    is_image,
    is_scan,
    participant_folder,
    session_folder,
    top_file,
    why_unused,
)
from bids_app.text import read_table
from bids_app.wording import listed

#: Folders of a dataset in which no participant is looked for.
_KNOWN = ("derivatives", "sourcedata", "code", "stimuli", "phenotype", "logs", "log", "work", "docs", "figures")
#: What DataLad and git leave at the top of a dataset.
_DATALAD = (".datalad", ".gitmodules", ".git")


@dataclass(frozen=True)
class Folder:
    """The names in a folder.

    Attributes
    ----------
    path : PurePosixPath
        Relative to the dataset.
    files, folders : tuple of str
        Sorted. Links to nowhere are among the files.
    error : str
        Why it could not be listed; empty if it could.
    """

    path: PurePosixPath
    files: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    error: str = ""

    @property
    def empty(self) -> bool:
        return not (self.files or self.folders or self.error)


@dataclass(frozen=True)
class VisitKey:
    """A visit before its scans are known."""

    subject: str
    session: str | None

    @property
    def label(self) -> str:
        return visit_label(self.subject, self.session)

    @property
    def folder(self) -> PurePosixPath:
        """Its folder, relative to the dataset."""
        return visit_folder(self.subject, self.session)

    @property
    def anat(self) -> PurePosixPath:
        """Folder of its scans, relative to the dataset."""
        return self.folder / ANAT


@dataclass(frozen=True)
class Listing:
    """What the folder of a visit holds.

    Attributes
    ----------
    anat : bool
        Whether it has a folder of scans.
    scans : tuple of str
        Names of the T1w and FLAIR in that folder that may be used.
    unused : tuple of Unused
    datatypes : tuple of str
        Its folders of other data than anatomy.
    error : str
        Why it, or its anat, could not be listed.
    """

    anat: bool = False
    scans: tuple[str, ...] = ()
    unused: tuple[Unused, ...] = ()
    datatypes: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Participant:
    """The folder of a participant, and what there is of the visits in it.

    Attributes
    ----------
    sessions : tuple of str
        Labels of its folders of sessions.
    itself : Listing
        What lies beside those, or instead of them.
    """

    subject: str
    sessions: tuple[str, ...]
    itself: Listing

    @property
    def keys(self) -> tuple[VisitKey, ...]:
        """The sessions; what lies beside them, or instead of them, is a visit without session."""
        sessions = tuple(VisitKey(self.subject, session) for session in self.sessions)
        return sessions if sessions and not self.itself.anat else (VisitKey(self.subject, None), *sessions)


@dataclass(frozen=True)
class Top:
    """What lies at the top of a dataset.

    Attributes
    ----------
    participants : tuple of str
        Labels, sorted.
    unused : tuple of Unused
        What looks like a participant, a scan or the table of participants.
    """

    participants: tuple[str, ...]
    unused: tuple[Unused, ...] = ()


@dataclass(frozen=True)
class Lister:
    """Lists the folders of one dataset.

    Attributes
    ----------
    root : Path
    own_output : bool
        Whether this App wrote the dataset.
    datalad : bool
        Whether it is a DataLad dataset, whose empty folders may be subdatasets.
    """

    root: Path
    own_output: bool = False
    datalad: bool = False

    def top(self) -> Top:
        """Participants of the dataset, and what looks like one.

        Raises
        ------
        DatasetError
            If the folder cannot be read.
        """
        folder = self._read(PurePosixPath())
        if folder.error:
            raise DatasetError(f"The folder {self.root} cannot be read: {folder.error}.", "Check its permissions.")
        return Top(_labels(folder.folders, "sub"), tuple(self._top_unused(folder)))

    def participant(self, subject: str) -> Participant:
        """The folder of a participant, without those of its sessions."""
        folder = self._read(visit_folder(subject, None))
        return Participant(subject, _labels(folder.folders, "ses"), self._listing(folder, subject, None))

    def visit(self, key: VisitKey) -> Listing:
        """The folder of a session."""
        return self._listing(self._read(key.folder), key.subject, key.session)

    def _listing(self, folder: Folder, subject: str, session: str | None) -> Listing:
        if folder.error:
            return Listing(error=folder.error, unused=(Unused(folder.path, Reason.UNREADABLE, folder.error),))
        if folder.empty:
            return Listing(unused=(self._empty(folder.path),))
        place = Place(subject, session, folder.path, self.own_output)
        anat = self._read(folder.path / ANAT) if ANAT in folder.folders else None
        scans, unused = self._anat(anat, place) if anat else ((), [])
        unused += _files(folder.files, place)
        unused += self._no_folders(folder, session)
        unused += self._session_rows(folder) if session is None else []
        others = [name for name in folder.folders if name != ANAT and not name.startswith(".")]
        for name in others:
            unused += self._other_folder(name, place, folder.folders)
        if not scans:
            unused += self._dicom_in(anat or folder, unused)
        return Listing(
            anat=anat is not None,
            scans=scans,
            unused=tuple(unused),
            datatypes=tuple(name for name in others if name in OTHER_DATATYPES),
            error=anat.error if anat else "",
        )

    def _anat(self, anat: Folder, visit: Place) -> tuple[tuple[str, ...], list[Unused]]:
        """The scans of a visit, and the rest of its anat."""
        if anat.error:
            return (), [Unused(anat.path, Reason.UNREADABLE, anat.error)]
        place = Place(visit.subject, visit.session, anat.path, visit.own_output)
        unused = _files(anat.files, place)
        refused = {item.path.name for item in unused}
        scans = tuple(name for name in anat.files if is_scan(name, place.label) and name not in refused)
        unused += _lonely_sidecars(anat, place)
        for name in anat.folders:
            if is_image(name):
                unused.append(Unused(anat.path / name, Reason.FOLDER_FOR_FILE))
            elif not name.startswith(".") and (reason := self._images_in(anat.path / name, Reason.BELOW_ANAT)):
                unused.append(Unused(anat.path / name, reason))
        return scans, unused

    def _other_folder(self, name: str, visit: Place, taken: Sequence[str]) -> list[Unused]:
        """What a folder beside anat holds that could be a scan, or a session; `taken` are its neighbours' names."""
        path = visit.folder / name
        if name in OTHER_DATATYPES:
            return _files(self._read(path).files, Place(visit.subject, visit.session, path, visit.own_output))
        if name.startswith("ses-") and LABEL.fullmatch(name.removeprefix("ses-")) and visit.session is None:
            return []  # a visit of its own
        if name.lower() == ANAT:
            return [Unused(path, Reason.ANAT_CASE, f"rename it to {ANAT}")]
        session = session_folder(name) if visit.session is None else None
        if session and (session[0] is not Reason.SESSION_FORM or self._holds_visits(path)):
            return [Unused(path, session[0], _renamed(session[1], taken))]
        if self._holds_visits(path):
            return [Unused(path, Reason.SESSION_FORM)]
        reason = self._images_in(path, Reason.OTHER_FOLDER)
        return [Unused(path, reason)] if reason else []

    def _dicom_in(self, folder: Folder, told: Sequence[Unused]) -> list[Unused]:
        """A folder whose files have no extension and are DICOM, unless that has been told of it."""
        bare = [name for name in folder.files if "." not in name or name.rpartition(".")[2].isdecimal()]
        if any(item.reason is Reason.DICOM for item in told) or not self._any_dicom(folder.path, bare):
            return []
        return [Unused(folder.path, Reason.DICOM)]

    def _no_folders(self, folder: Folder, session: str | None) -> Iterator[Unused]:
        """Links to nowhere in the place of anat or of a session."""
        for name in folder.files:
            if name == ANAT or (session is None and name.startswith("ses-") and LABEL.fullmatch(name[4:])):
                yield self._no_folder(folder.path / name) or Unused(folder.path / name, Reason.PARTICIPANT_FILE)

    def _session_rows(self, folder: Folder) -> list[Unused]:
        """The table of a participant's sessions, if it names one that has no folder."""
        name = f"{folder.path}_sessions.tsv"
        if name not in folder.files:
            return []
        try:
            rows = read_table(self.root / folder.path / name).records()
        except (OSError, ValueError):
            return []  # the App does not need it
        named = [row["session_id"] for row in rows if row.get("session_id")]
        absent = [label for label in named if f"ses-{label.removeprefix('ses-')}" not in folder.folders]
        return [Unused(folder.path / name, Reason.SESSION_ROW, detail=listed(absent, limit=5))] if absent else []

    def _top_unused(self, folder: Folder) -> Iterator[Unused]:
        for name in folder.folders:
            if name.startswith("sub-") and LABEL.fullmatch(name.removeprefix("sub-")):
                continue
            if name.startswith(".") or name.lower() in _KNOWN:
                continue
            found, path = participant_folder(name), PurePosixPath(name)
            if found and (found[0] is not Reason.PARTICIPANT_FORM or self._holds_visits(path)):
                yield Unused(path, found[0], _renamed(found[1], folder.folders))
            elif not found and self._holds_visits(path):
                yield Unused(path, Reason.PARTICIPANT_FORM)
        for name in folder.files:
            if name.startswith("sub-") and LABEL.fullmatch(name.removeprefix("sub-")):
                yield self._no_folder(PurePosixPath(name)) or Unused(PurePosixPath(name), Reason.PARTICIPANT_FILE)
            elif (found := top_file(name)) and not (found[0] is Reason.TABLE and PARTICIPANTS in folder.files):
                yield Unused(PurePosixPath(name), *found)

    def _no_folder(self, path: PurePosixPath) -> Unused | None:
        """A link to nowhere; None for a file."""
        target = target_of(self.root / path)
        return Unused(path, Reason.DANGLING, f"bind {target}") if target and not target.exists() else None

    def _empty(self, path: PurePosixPath) -> Unused:
        return Unused(path, Reason.EMPTY, f"{'' if self.datalad else 'if so, '}run: datalad get {self.root / path}")

    def _holds_visits(self, path: PurePosixPath) -> bool:
        """Whether a folder has one of scans or of a session in it."""
        folders = self._read(path).folders
        return any(name.lower() == ANAT or re.match("ses-", name, re.IGNORECASE) for name in folders)

    def _images_in(self, path: PurePosixPath, reason: Reason) -> Reason | None:
        """DICOM, or `reason`, if a folder holds images; None if it does not."""
        files = self._read(path).files
        if self._any_dicom(path, files):
            return Reason.DICOM
        return reason if any(map(is_image, files)) else None

    def _any_dicom(self, path: PurePosixPath, names: Sequence[str]) -> bool:
        """Whether one of the first files is DICOM."""
        return any(is_dicom(self.root / path / name) for name in names[:3])

    def _read(self, path: PurePosixPath) -> Folder:
        """The names in a folder of the dataset."""
        files, folders = [], []
        try:
            with os.scandir(self.root / path) as entries:
                for entry in entries:
                    (folders if _is_folder(entry) else files).append(entry.name)
        except OSError as error:
            return Folder(path, error=error.strerror or str(error))
        return Folder(path, tuple(sorted(files)), tuple(sorted(folders)))


def lister(root: Path, own_output: bool = False) -> Lister:
    """A lister of a dataset."""
    return Lister(root, own_output, any((root / name).exists() for name in _DATALAD))


def _is_folder(entry: os.DirEntry) -> bool:
    """Whether an entry is a folder; a link in a circle, or into a closed folder, is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _labels(names: Sequence[str], prefix: str) -> tuple[str, ...]:
    """Labels of the names ``prefix-<label>``."""
    labels = (name.removeprefix(f"{prefix}-") for name in names if name.startswith(f"{prefix}-"))
    return tuple(label for label in labels if LABEL.fullmatch(label))


def _renamed(better: str, taken: Sequence[str]) -> str:
    """Advice to rename a folder, unless there is one of that name."""
    free = "a name that is free" if better in taken else better
    return f"rename it to {free}, also in the names of its files"


def _files(names: Sequence[str], place: Place) -> list[Unused]:
    return [found for name in names if (found := why_unused(name, place))]


def _lonely_sidecars(anat: Folder, place: Place) -> list[Unused]:
    """Sidecars of T1w and FLAIR that no image in their folder can belong to."""
    sidecars = [name for name in anat.files if name.endswith(("_T1w.json", "_FLAIR.json"))]
    if not sidecars:
        return []
    images = [name for name in anat.files if not name.endswith(".json")]
    stems = {name.partition(".")[0].lower() for name in images}  # of one in another case, that is told
    lonely = [
        name
        for name in sidecars
        if name.removesuffix(".json").lower() not in stems and not _inherited(name, images)
    ]
    return [
        Unused(place.folder / name, Reason.NO_IMAGE, like=name.removesuffix(".json").rpartition("_")[2])
        for name in lonely
    ]


def _inherited(sidecar: str, images: Sequence[str]) -> bool:
    """Whether a sidecar may describe one of some images whose names have more entities."""
    *entities, suffix = sidecar.removesuffix(".json").split("_")
    parts = (name.partition(".")[0].split("_") for name in images)
    return any(suffix == other[-1] and set(entities) <= set(other[:-1]) for other in parts)
