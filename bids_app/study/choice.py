"""Which scan of a visit is used where there are several: a stated rule, and the reasons in words."""

from __future__ import annotations

import filecmp
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bids_app.errors import VisitError
from bids_app.study.content import has_content
from bids_app.study.copies import rawness
from bids_app.study.models import Problem, Scan, Severity

#: The rule, as the plan and the documentation print it.
RULE = (
    "the filter file first; then a scan whose header can be used; then one without contrast agent (ce-) that is no "
    "derived copy (space-, desc-), or at least in its native space; then one whose field of view holds a whole brain; "
    "for FLAIR, the one with the acq- and run- of the T1w; then the finest voxels (longest side to 0.1 mm, then "
    "volume); then the last run; then the last name"
)

#: Parts of a complex image that show no anatomy.
_UNUSABLE_PARTS = ("phase", "real", "imag")


@dataclass(frozen=True)
class HeaderFacts:
    """What the header of a scan has to say on its use.

    Attributes
    ----------
    longest_mm, volume_mm3 : float
        Size of a voxel, to 0.1 mm and 0.01 mm3, so that two scans of one protocol count as equal; infinite where it is
        not known.
    whole : bool
        Whether a whole brain fits into the field of view.
    refused : str
        Why the scan cannot be processed, as a sentence; empty if nothing is known against it.
    """

    longest_mm: float = math.inf
    volume_mm3: float = math.inf
    whole: bool = True
    refused: str = ""

    def __str__(self) -> str:
        return "voxels of unknown size" if math.isinf(self.longest_mm) else f"{self.longest_mm:g} mm voxels"


def read_facts(path: Path) -> HeaderFacts:
    """What the header of a NIfTI file says, by the rules by which it is processed; no voxel is read.

    The longest side of a voxel is what counts: a clinical scan of 0.5 x 0.5 x 5 mm has smaller voxels than a 3-D scan
    of 1.1 mm, and is worse.
    """
    from bids_app.study.grid import check_size, read_grid  # brings NumPy, which --help does not need

    if not has_content(path):
        return HeaderFacts(refused="Its content is not downloaded.")
    try:
        grid = read_grid(path)
    except VisitError as error:
        return HeaderFacts(refused=error.message)
    sides = [float(side) for side in grid.voxel_mm]
    facts = HeaderFacts(round(max(sides), 1), round(math.prod(sides), 2), grid.covers_a_brain)
    try:
        check_size(grid, path.name)
    except VisitError as error:
        return replace(facts, refused=error.message)
    return facts


def choose(
    scans: Sequence[Scan], partner: Scan | None = None, facts: Callable[[Path], HeaderFacts] = read_facts
) -> tuple[Scan | None, tuple[Problem, ...]]:
    """Choose one scan of a visit by `RULE`.

    Parameters
    ----------
    scans : sequence of Scan
        Scans of one suffix that passed the filter file.
    partner : Scan, optional
        The T1w that a FLAIR will be registered to.
    facts : callable
        Reads a header; called only where there are several scans.

    Returns
    -------
    scan : Scan or None
        None if there is none.
    problems : tuple of Problem
        ``several-t1w`` or ``several-flair``, which names the chosen scan, the others, and why.
    """
    scans = [scan for scan in scans if dict(scan.name.entities).get("part") not in _UNUSABLE_PARTS]
    if len(scans) < 2:
        return (scans[0] if scans else None), ()
    known = {scan.path: facts(scan.path) for scan in scans}
    ranked = sorted(scans, key=lambda scan: _rank(scan, partner, known[scan.path]), reverse=True)
    return ranked[0], (_several(ranked, partner, known),)


def same_content(t1w: Scan | None, flair: Scan | None) -> tuple[Problem, ...]:
    """``same-scan`` if T1w and FLAIR are one file under two names; only files of one length are read."""
    if t1w is None or flair is None:
        return ()
    try:
        if not filecmp.cmp(t1w.path, flair.path, shallow=False):
            return ()
    except OSError:  # not downloaded, or not readable, which is told elsewhere
        return ()
    message = f"{t1w.path.name} and {flair.path.name} have the same content: one of them is a copy."
    return (Problem("same-scan", Severity.WARNING, message, (t1w.path.name, flair.path.name)),)


def _rank(scan: Scan, partner: Scan | None, facts: HeaderFacts) -> tuple:
    """Sorting key, best last; its items are in the order of `RULE`."""
    entities = dict(scan.name.entities)
    run = entities.get("run", "0")
    return (
        not facts.refused,
        "ce" not in entities,
        rawness(scan.path.name),
        facts.whole,
        _shared(scan, partner),
        (-facts.longest_mm, -facts.volume_mm3),
        int(run) if run.isdigit() else 0,
        scan.path.name,
    )


def _shared(scan: Scan, partner: Scan | None) -> int:
    """How many of acq and run a scan has in common with the T1w it belongs to."""
    if partner is None:
        return 0
    mine, theirs = dict(scan.name.entities), dict(partner.name.entities)
    return sum(mine.get(key) == theirs.get(key) for key in ("acq", "run"))


def _several(ranked: Sequence[Scan], partner: Scan | None, known: dict[Path, HeaderFacts]) -> Problem:
    best, *others = ranked
    reasons = [f"{scan.path.name} ({_why_not(scan, best, partner, known)})" for scan in others]
    refused = f" None of them can be used: {known[best.path].refused}" if known[best.path].refused else ""
    return Problem(
        code=f"several-{best.suffix.lower()}",
        severity=Severity.INFO,
        message=f"{best.path.name} was chosen among {len(ranked)} {best.suffix}; not {', '.join(reasons)}.{refused}",
        files=tuple(scan.path.name for scan in ranked),
    )


def _why_not(scan: Scan, best: Scan, partner: Scan | None, known: dict[Path, HeaderFacts]) -> str:
    """The first part of the rule by which `scan` lost against `best`."""
    mine, winner = known[scan.path], known[best.path]
    reasons = (
        f"cannot be used: {mine.refused.removeprefix(f'{scan.path.name} ').rstrip('.')}",
        "contrast agent",
        "derived copy",
        "part of the brain may be missing",
        "other acq or run than the T1w",
        f"{mine}, not {winner}" if mine.longest_mm != winner.longest_mm else "larger voxels",
        "earlier run",
        "earlier name",
    )
    ranks = zip(_rank(scan, partner, mine), _rank(best, partner, winner), reasons, strict=True)
    return next(reason for rank, best_rank, reason in ranks if rank != best_rank)
