"""The values that describe a study: scans, visits, what is reused, and problems.

These classes know nothing of pybids, of files' contents or of what will be done with them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from bids_app.derivatives.names import ScanName, visit_label
from bids_app.study.participants import ParticipantsTable
from bids_app.study.unused import Unused


class Severity(StrEnum):
    """How much a problem matters."""

    INFO = "info"  # repaired, or a choice the user should know of
    WARNING = "warning"  # the result may be worse for it
    ERROR = "error"  # the visit cannot be processed


@dataclass(frozen=True)
class Problem:
    """Something about a visit's data that its user should know.

    Attributes
    ----------
    code : str
        Stable lower-case word, as in ``several-t1w``; tables list the codes.
    severity : Severity
    message : str
        One sentence: what it is and what was or should be done.
    files : tuple of str
        File names concerned.
    """

    code: str
    severity: Severity
    message: str
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scan:
    """One image file of the dataset.

    Attributes
    ----------
    path : Path
        The file.
    name : ScanName
        Its BIDS entities, from which the names of its derivatives follow.
    suffix : str
        ``T1w`` or ``FLAIR``.
    """

    path: Path
    name: ScanName
    suffix: str


@dataclass(frozen=True)
class Reuse:
    """What earlier pipelines or a human already made of a visit; None where there is nothing.

    Attributes
    ----------
    preprocessed, brain_mask : Path or None
        The visit's reference scan, preprocessed in its native space, and its brain mask, on one grid (of a T1w:
        fMRIPrep's or sMRIPrep's).
    to_standard, from_standard : Path or None
        Transforms from the reference scan to standard space and back, ITK format.
    standard_space : str or None
        The space of those transforms.
    lesion_mask : Path or None
        Lesion mask drawn by hand, in the space of the reference scan.
    sources : tuple of str
        BIDS URIs of the files above, for sidecars.
    """

    preprocessed: Path | None = None
    brain_mask: Path | None = None
    to_standard: Path | None = None
    from_standard: Path | None = None
    standard_space: str | None = None
    lesion_mask: Path | None = None
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class Visit:
    """One subject in one session.

    Attributes
    ----------
    subject, session : str
        Labels without prefix; session is None in a dataset without sessions.
    t1w, flair : Scan or None
        The scans that were chosen.
    reuse : Reuse
    problems : tuple of Problem
        Found while choosing; one of severity ERROR means that the visit cannot be processed.
    """

    subject: str
    session: str | None
    t1w: Scan | None
    flair: Scan | None
    reuse: Reuse = field(default_factory=Reuse)
    problems: tuple[Problem, ...] = ()

    @property
    def label(self) -> str:
        """``sub-01_ses-1`` or ``sub-01``."""
        return visit_label(self.subject, self.session)

    @property
    def reference(self) -> Scan | None:
        """The scan in whose space the visit is processed: the T1w, else the FLAIR; None if there is neither."""
        return self.t1w or self.flair

    @property
    def flair_to_align(self) -> Scan | None:
        """The FLAIR that is to be brought onto the T1w; None if there is none, or if it is the reference itself."""
        return self.flair if self.t1w else None

    @property
    def contrasts(self) -> tuple[str, ...]:
        """What there is of ``T1w`` and ``FLAIR``."""
        return tuple(scan.suffix for scan in (self.t1w, self.flair) if scan)

    @property
    def usable(self) -> bool:
        """Whether nothing forbids to process the visit."""
        return not any(problem.severity is Severity.ERROR for problem in self.problems)


@dataclass(frozen=True)
class Study:
    """A dataset and the visits of it that were asked for.

    Attributes
    ----------
    root : Path
        The BIDS dataset.
    name : str
        Its name, from ``dataset_description.json``.
    participants : tuple of str
        Labels of all participants of the dataset, asked for or not.
    visits : tuple of Visit
        By subject and session.
    without_anatomy : tuple of str
        Labels of visits left out because they have no anat folder, as a session of fMRI alone.
    problems : tuple of Problem
        What is said of the run as a whole, as of a folder of derivatives that serves no visit.
    unused : tuple of Unused
        What looks like a scan, a mask, a participant, a session or their table, and is not used.
    table : ParticipantsTable
        Of the dataset.
    notes : tuple of str
        What was guessed or is odd in the dataset's own tables and description.
    datatypes : tuple of str
        Folders of other data than anatomy in the visits.
    """

    root: Path
    name: str
    participants: tuple[str, ...]
    visits: tuple[Visit, ...]
    without_anatomy: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()
    unused: tuple[Unused, ...] = ()
    table: ParticipantsTable = field(default_factory=ParticipantsTable)
    notes: tuple[str, ...] = ()
    datatypes: tuple[str, ...] = ()
