"""Which scan of a visit is used where there are several: a stated rule, and the reasons in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bids_app.study.copies import rawness
from bids_app.study.models import Problem, Scan, Severity

#: The rule, as the plan and the documentation print it.
RULE = (
    "the filter file first; then a scan without contrast agent (ce-) that is no derived copy (space-, desc-), "
    "or at least in its native space; for FLAIR, the one with the acq- and run- of the T1w; then the finest voxels "
    "(longest side to 0.1 mm, then volume); then the last run; then the last name"
)

#: Parts of a complex image that show no anatomy.
_UNUSABLE_PARTS = ("phase", "real", "imag")


@dataclass(frozen=True)
class VoxelSize:
    """Size of a scan's voxels, from its header; infinite where the header cannot be read."""

    longest_mm: float = math.inf
    volume_mm3: float = math.inf

    def __str__(self) -> str:
        return "voxels of unknown size" if math.isinf(self.longest_mm) else f"{self.longest_mm:g} mm voxels"


def read_voxel_size(path: Path) -> VoxelSize:
    """Voxel size of a NIfTI file, reading the header only.

    Rounded to 0.1 mm and 0.01 mm3, so that two scans of one protocol count as equal. The longest side comes first: a
    clinical scan of 0.5 x 0.5 x 5 mm has smaller voxels than a 3-D scan of 1.1 mm, and is worse.
    """
    import nibabel as nib

    try:
        sides = [float(side) for side in nib.load(path).header.get_zooms()[:3]]
    except Exception:  # whatever is wrong with the file is told when it is processed
        return VoxelSize()
    usable = len(sides) == 3 and all(math.isfinite(side) and side > 0 for side in sides)
    return VoxelSize(round(max(sides), 1), round(math.prod(sides), 2)) if usable else VoxelSize()


def choose(
    scans: Sequence[Scan], partner: Scan | None = None, voxel_size: Callable[[Path], VoxelSize] = read_voxel_size
) -> tuple[Scan | None, tuple[Problem, ...]]:
    """Choose one scan of a visit by `RULE`.

    Parameters
    ----------
    scans : sequence of Scan
        Scans of one suffix that passed the filter file.
    partner : Scan, optional
        The T1w that a FLAIR will be registered to.
    voxel_size : callable
        Reads the voxel size; called only where there are several scans.

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
    sizes = {scan.path: voxel_size(scan.path) for scan in scans}
    ranked = sorted(scans, key=lambda scan: _rank(scan, partner, sizes[scan.path]), reverse=True)
    return ranked[0], (_several(ranked, partner, sizes),)


def _rank(scan: Scan, partner: Scan | None, size: VoxelSize) -> tuple:
    """Sorting key, best last; its items are in the order of `RULE`."""
    entities = dict(scan.name.entities)
    run = entities.get("run", "0")
    return (
        "ce" not in entities,
        rawness(scan.path.name),
        _shared(scan, partner),
        (-size.longest_mm, -size.volume_mm3),
        int(run) if run.isdigit() else 0,
        scan.path.name,
    )


def _shared(scan: Scan, partner: Scan | None) -> int:
    """How many of acq and run a scan has in common with the T1w it belongs to."""
    if partner is None:
        return 0
    mine, theirs = dict(scan.name.entities), dict(partner.name.entities)
    return sum(mine.get(key) == theirs.get(key) for key in ("acq", "run"))


def _several(ranked: Sequence[Scan], partner: Scan | None, sizes: dict[Path, VoxelSize]) -> Problem:
    best, *others = ranked
    reasons = [f"{scan.path.name} ({_why_not(scan, best, partner, sizes)})" for scan in others]
    return Problem(
        code=f"several-{best.suffix.lower()}",
        severity=Severity.INFO,
        message=f"{best.path.name} was chosen among {len(ranked)} {best.suffix}; not {', '.join(reasons)}.",
        files=tuple(scan.path.name for scan in ranked),
    )


def _why_not(scan: Scan, best: Scan, partner: Scan | None, sizes: dict[Path, VoxelSize]) -> str:
    """The first part of the rule by which `scan` lost against `best`."""
    mine, winner = sizes[scan.path], sizes[best.path]
    reasons = (
        "contrast agent",
        "derived copy",
        "other acq or run than the T1w",
        f"{mine}, not {winner}" if mine.longest_mm != winner.longest_mm else "larger voxels",
        "earlier run",
        "earlier name",
    )
    ranks = zip(_rank(scan, partner, mine), _rank(best, partner, winner), reasons, strict=True)
    return next(reason for rank, best_rank, reason in ranks if rank != best_rank)
