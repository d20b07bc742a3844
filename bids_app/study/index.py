"""From a BIDS dataset to its visits: those that were asked for, the scans of each, and what is not used."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bids_app.derivatives.names import DESCRIPTION, PARTICIPANTS, ScanName
from bids_app.errors import NoInputError
from bids_app.settings import Settings
from bids_app.study.choice import choose, same_content
from bids_app.study.content import TO_BIDS, absence, holds_dicom
from bids_app.study.copies import told_of_copy
from bids_app.study.dataset import Dataset, open_dataset
from bids_app.study.filters import Filter, ScanFilters, read_filters
from bids_app.study.listing import Lister, Listing, Participant, Top, VisitKey, lister
from bids_app.study.models import Problem, Scan, Severity, Study, Visit
from bids_app.study.participants import compared, read_participants
from bids_app.study.reuse import check_derivatives, find_reuse
from bids_app.study.unused import ANAT, IMAGE_EXTENSIONS, Reason, Unused
from bids_app.study.unused_derivatives import masks_not_given, unused_folders
from bids_app.templateflow_cache import bridges
from bids_app.wording import counted, listed

#: Files that a sentence names.
_SHOWN = 3


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
    dataset = open_dataset(settings.bids_dir)
    check_derivatives(settings.derivatives)
    filters = read_filters(settings.bids_filter_file)
    folders = lister(dataset.root, dataset.own_output)
    top = folders.top()
    if not top.participants:
        raise _no_participant(dataset, top)
    people = [folders.participant(subject) for subject in _requested_participants(top, settings)]
    listings = _listings(folders, people, settings, filters)
    left_out = _without_anatomy(listings, settings)
    kept = {key: listing for key, listing in listings.items() if key not in left_out}
    if settings.bids_database_dir:
        from bids_app.study.database import check_database

        check_database(dataset.root, kept, settings.bids_database_dir)
    # only reuse asks for them, and large datasets are slow to list
    reusing = people if settings.derivatives else ()
    sessions = {person.subject: _imaged_sessions(dataset.root, person) for person in reusing}
    found = [_visit(dataset, key, kept[key], sessions.get(key.subject, ()), settings, filters) for key in kept]
    visits = tuple(visit for visit, _ in found)
    everyone = None if settings.participants else top.participants
    problems = unused_folders(dataset.root, settings.derivatives, visits, everyone)
    problems += masks_not_given(dataset.root, settings.derivatives, visits)
    beside = [person.itself for person in people if VisitKey(person.subject, None) not in listings]
    unused = [item for listing in (*beside, *(listings[key] for key in left_out)) for item in listing.unused]
    unused += [item for _, items in found for item in items]
    table = read_participants(dataset.root)
    return Study(
        root=dataset.root,
        name=dataset.name,
        participants=top.participants,
        visits=visits,
        without_anatomy=tuple(key.label for key in left_out),
        problems=problems,
        unused=_told((*(() if settings.participants else top.unused), *unused), settings, dataset.root),
        table=table,
        notes=(*dataset.notes, *_of_table((*table.notes, *compared(table, top.participants)))),
        datatypes=tuple(sorted({datatype for listing in listings.values() for datatype in listing.datatypes})),
    )


def _of_table(notes: Sequence[str]) -> tuple[str, ...]:
    """All notes on the table of the participants as one."""
    return (f"{PARTICIPANTS}: {'; '.join(notes)}",) if notes else ()


def _no_participant(dataset: Dataset, top: Top) -> NoInputError:
    """The error of a dataset without participants, with what looks like one."""
    message = f"{dataset.root} holds no participant."
    if top.unused:
        return NoInputError(message, f"{_sentences(top.unused)}.")
    inner = [path.parent for path in sorted(dataset.root.glob(f"*/{DESCRIPTION}")) if any(path.parent.glob("sub-*/"))]
    inner += [path.parent for path in sorted(dataset.root.glob(f"derivatives/*/{DESCRIPTION}"))]
    if inner:
        return NoInputError(message, f"There are some in {listed([str(path) for path in inner], limit=_SHOWN)}.")
    if holds_dicom(dataset.root):
        return NoInputError(f"{dataset.root} holds DICOM and no participant.", TO_BIDS)
    return NoInputError(message, "A BIDS dataset has a folder sub-<label> for each.")


def _sentences(items: Sequence[Unused]) -> str:
    """The first of what is not used, in words."""
    more = len(items) - _SHOWN
    return "; ".join(map(str, items[:_SHOWN])) + (f"; and {more} more" if more > 0 else "")


def _requested_participants(top: Top, settings: Settings) -> tuple[str, ...]:
    participants = top.participants
    if unknown := [label for label in settings.participants if label not in participants]:
        raise NoInputError(
            f"{settings.bids_dir} has no {listed(unknown, 'sub-')}.", _who_there_is(unknown, top)
        )
    wanted = settings.participants or participants
    kept = tuple(sorted(label for label in wanted if label not in settings.excluded))
    if not kept:
        raise NoInputError("Every requested participant is excluded.", "Change --exclude-participant-label.")
    return kept


def _who_there_is(unknown: Sequence[str], top: Top) -> str:
    """What to say to who asked for participants that are not there."""
    there_are = f"There are {len(top.participants)} participants: {listed(top.participants)}."
    if meant := _meant(unknown, top.participants):
        return f"Did you mean {listed(meant)}? {there_are}"
    names = {_plain(label) for label in unknown}
    odd = [item for item in top.unused if _plain(re.sub("^sub-", "", item.path.name)) in names]
    return f"{_sentences(odd)}. {there_are}" if odd else there_are


def _meant(unknown: Sequence[str], labels: Sequence[str]) -> list[str]:
    """The labels that are there under another spelling of those that are not."""
    plain = {_plain(label): label for label in labels}
    return [plain[_plain(label)] for label in unknown if _plain(label) in plain]


def _plain(label: str) -> str:
    """A label without what people vary: zeros in front, case, and other characters than letters and digits."""
    return re.sub("[^0-9a-z]", "", label.lower()).lstrip("0")


def _listings(
    folders: Lister, people: Iterable[Participant], settings: Settings, filters: ScanFilters
) -> dict[VisitKey, Listing]:
    """What the visits hold that sessions and filter file leave."""
    existing = {key: person for person in people for key in person.keys}
    sessions = sorted({key.session for key in existing if key.session})
    if unknown := [label for label in settings.sessions if label not in sessions]:
        there_are = f"there are {listed(sessions)}" if sessions else "these participants have no sessions"
        meant = _meant(unknown, sessions)
        raise NoInputError(
            f"{listed(unknown, 'ses-')} is no session of the requested participants: {there_are}.",
            f"Did you mean {listed(meant)}?" if meant else "Change --session-label.",
        )
    keys = [key for key in existing if not settings.sessions or key.session in settings.sessions]
    keys = [key for key in keys if filters.accept_visit(key.label)]
    if not keys:
        raise NoInputError(
            f"{settings.bids_filter_file} leaves no visit of the requested participants.",
            "Its t1w part names subjects or sessions that are not there.",
        )
    return {key: folders.visit(key) if key.session else existing[key].itself for key in keys}


def _without_anatomy(listings: Mapping[VisitKey, Listing], settings: Settings) -> list[VisitKey]:
    """Visits without an anat folder, which is no mistake; but it is one in what was asked for by its label."""
    empty = [key for key, listing in listings.items() if not listing.anat and not listing.error]
    imaged = {key.subject for key in listings if key not in empty}
    asked = [key for key in empty if key.subject in settings.participants and key.subject not in imaged]
    return [key for key in empty if key not in asked and key.session not in settings.sessions]


def _imaged_sessions(root: Path, person: Participant) -> tuple[str | None, ...]:
    """The sessions of a participant, asked for or not, that have an anat folder; None beside or instead of them."""
    return tuple(key.session for key in person.keys if (root / key.anat).is_dir())


def _visit(
    dataset: Dataset,
    key: VisitKey,
    listing: Listing,
    sessions: Sequence[str | None],
    settings: Settings,
    filters: ScanFilters,
) -> tuple[Visit, list[Unused]]:
    """A visit, its scans chosen, with everything that should be said of it; and what of it is not used."""
    files = [dataset.root / key.anat / name for name in listing.scans]
    t1w, t1w_problems = choose(_scans(files, "T1w", filters.t1w))
    flair, flair_problems = choose(_scans(files, "FLAIR", filters.flair), partner=t1w)
    visit, reuse_problems = Visit(key.subject, key.session, t1w, flair), ()
    if visit.reference:
        # fMRIPrep's transforms to another space serve as well, where its template is on this machine
        spaces = (*settings.standard_spaces, *bridges(settings.standard_spaces))
        reuse, reuse_problems = find_reuse(
            key.subject, key.session, visit.reference, settings.derivatives, spaces, sessions
        )
        visit = replace(visit, reuse=reuse)
    filtered = _filtered(key, listing, filters)
    unused = (*listing.unused, *filtered)
    copies = [problem for scan in (t1w, flair) if scan for problem in told_of_copy(scan)]
    twins = same_content(t1w, flair)
    problems = (*t1w_problems, *flair_problems, *copies, *twins, *_missing_scans(visit, listing, unused))
    return replace(visit, problems=(*problems, *_absent(visit), *reuse_problems)), list(unused)


def _scans(files: Iterable[Path], suffix: str, accepted: Filter) -> list[Scan]:
    """The scans of one suffix that pass the filter."""
    endings = tuple(f"_{suffix}{extension}" for extension in IMAGE_EXTENSIONS)
    return [
        Scan(path, ScanName.parse(path.name), suffix)
        for path in files
        if path.name.endswith(endings) and accepted.accepts(path.name)
    ]


def _filtered(key: VisitKey, listing: Listing, filters: ScanFilters) -> list[Unused]:
    """The scans that the filter file leaves out."""
    return [
        Unused(key.anat / name, Reason.FILTERED, like=suffix)
        for name in listing.scans
        for suffix, accepted in (("T1w", filters.t1w), ("FLAIR", filters.flair))
        if f"_{suffix}." in name and not accepted.accepts(name)
    ]


def _missing_scans(visit: Visit, listing: Listing, unused: Sequence[Unused]) -> tuple[Problem, ...]:
    """What to say of a visit without T1w, or of one whose FLAIR are not used."""
    if visit.t1w is None:
        return (_no_t1w(visit, listing, unused),)
    flairs = [item for item in unused if item.like == "FLAIR"]
    if visit.flair or not flairs:
        return ()
    files = tuple(item.path.name for item in flairs)
    message = f"There is no FLAIR: {_sentences(flairs)}. The T1w is used alone."
    return (Problem("no-flair", Severity.INFO, message, files),)


def _no_t1w(visit: Visit, listing: Listing, unused: Sequence[Unused]) -> Problem:
    """An error, unless there is a FLAIR to work on."""
    likely = [item for item in unused if item.like == "T1w"] or ([] if visit.flair else list(unused))
    files = tuple(item.path.name for item in likely)
    message = f"{visit.label} has no T1w: {_sentences(likely) if likely else _nothing_in(listing)}"
    if visit.flair is None:
        return Problem("no-t1w", Severity.ERROR, f"{message}.", files)
    message += "; its FLAIR takes its place, for models that can use it alone."
    return Problem("flair-alone", Severity.INFO, message, files)


def _nothing_in(listing: Listing) -> str:
    if listing.anat:
        return f"there is none in {ANAT}"
    others = f", only {listed(listing.datatypes)}" if listing.datatypes else ""
    return f"there is no folder {ANAT}{others}"


def _absent(visit: Visit) -> tuple[Problem, ...]:
    """One problem a file that is listed, but whose content is elsewhere."""
    reuse = visit.reuse
    files = [scan.path for scan in (visit.t1w, visit.flair) if scan]
    files += [reuse.preprocessed, reuse.brain_mask, reuse.to_standard, reuse.from_standard, reuse.lesion_mask]
    return tuple(problem for path in files if path and (problem := absence(path)))


def _told(unused: Sequence[Unused], settings: Settings, root: Path) -> tuple[Unused, ...]:
    """What the plan names: masks beside the scans only if the dataset is not given for reuse as well."""
    reused = any(folder.resolve() == root.resolve() for folder in settings.derivatives.values())
    return tuple(item for item in unused if not (reused and item.reason is Reason.MASK))


def nothing_to_process(study: Study, settings: Settings) -> NoInputError:
    """The error of a study in which no visit has a scan: what there is instead, or what leaves everything out."""
    message = "No requested visit has a T1w or FLAIR."
    chosen = [
        name
        for name, given in (
            ("labels", settings.participants or settings.sessions or settings.excluded),
            ("filter file", settings.bids_filter_file),
        )
        if given
    ]
    hints = [f"{_sentences(study.unused)}."] if study.unused else []
    if any(item.reason in (Reason.OWN, Reason.PSEUDOHEALTHY) for item in study.unused):
        hints.append("Give the raw dataset that these were made from.")
    if not hints and study.datatypes:
        hints.append(f"The dataset has {listed(study.datatypes)}, and no {ANAT} with a T1w or FLAIR.")
    if chosen:
        hints.append(f"Check the {' and the '.join(chosen)}.")
    if not hints:
        hints.append(f"There is {counted(len(study.participants), 'participant')}, none with a T1w or FLAIR in {ANAT}.")
    return NoInputError(message, " ".join(hints))


