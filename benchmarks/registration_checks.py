"""Both kinds of error of the registration checks: right alignments that are doubted, wrong ones that are accepted.

    python -m benchmarks.registration_checks --data DATA --set fit|count [--only NAME ...] [--errors MM ...]

``fit``: scans on which the limits of `checks` may be set. ``count``: all others, to be counted once. Each is brought to
the pose as it is and in slices of 3 and 6 mm, with its mask 4 mm tighter and (where there is a skull) 5 mm wider; then
moved by 5, 10, 15 and 20 mm and degrees about each axis, and turned by 90 and 180 degrees. FLAIR are brought to the T1w
of the same visit, and to that of another. Prints one line per scan and a summary; ``--errors`` with nothing after it
measures right alignments alone.
"""

from __future__ import annotations

import argparse
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bids_app.errors import VisitError
from bids_app.images import Image, data, like, masked, on_affine
from bids_app.preprocessing import linear, normalization
from bids_app.preprocessing.bias import correct_bias
from bids_app.preprocessing.brain import BrainExtractor, is_skull_stripped, stripped_brain_mask
from bids_app.preprocessing.checks import POSE_LIMITS, Check
from bids_app.preprocessing.coregistration import register_flair
from bids_app.preprocessing.headers import clean
from bids_app.preprocessing.templates import load_template
from bids_app.settings import DEFAULT_SPACE

WHOLE, MS, CLINICAL = Path("whole_head"), Path("ms_pairs"), Path("paired_clinical")
#: T1w and FLAIR of a visit, either of which may be missing.
SETS: dict[str, dict[str, tuple[Path | None, Path | None]]] = {
    "fit": {
        "studyforrest": (WHOLE / "studyforrest_sub02_T1w_1mm.nii.gz", None),
        "colin27": (Path("templates/colin27_head_T1w.nii.gz"), None),
        "ms07": (MS / "mni_patient07_T1w.nii.gz", MS / "mni_patient07_FLAIR.nii.gz"),
        "ms26": (MS / "mni_patient26_T1w.nii.gz", MS / "mni_patient26_FLAIR.nii.gz"),
    },
    "count": {
        "chris": (WHOLE / "chris_t1.nii.gz", None),
        "pycortex": (WHOLE / "pycortex_S1_raw.nii.gz", None),
        "uih": (WHOLE / "uih_umr770_t1_gre_fsp_3d_1mm.nii.gz", None),
        "synthsr": (None, WHOLE / "synthsr_FLAIR.nii.gz"),
        "glioma": (CLINICAL / "TCGA-FG-6692_T1.nii.gz", CLINICAL / "TCGA-FG-6692_FLAIR.nii.gz"),
        **{
            f"ms{visit}": (MS / f"raw_patient{visit}_T1w.nii.gz", MS / f"raw_patient{visit}_FLAIR.nii.gz")
            for visit in ("01_study1", "01_study2", "03_study2", "04_study1")
        },
    },
}
THICK_MM = (3.0, 6.0)
TIGHTER_MM, WIDER_MM = 4.0, 5.0
ERRORS = (5, 10, 15, 20)
WRONG_DEGREES = (90, 180)


@dataclass(frozen=True)
class Brain:
    """A scan without what lies outside its mask, on one grid."""

    name: str
    image: Image
    mask: Image


@dataclass
class Counts:
    """Verdicts by kind of alignment: ``right``, ``10 mm``, ``90 degrees`` ..."""

    verdicts: dict[str, Counter] = field(default_factory=dict)

    def add(self, kind: str, status: str) -> None:
        self.verdicts.setdefault(kind, Counter())[status] += 1

    def print(self) -> None:
        print("\n| alignment | accepted | doubtful | failed |\n|---|---|---|---|")
        for kind, counts in self.verdicts.items():
            print(f"| {kind} | {counts['accepted']} | {counts['doubtful']} | {counts['failed']} |")


def prepared(path: Path, extractor: BrainExtractor) -> tuple[Image, Image, bool]:
    """A bias-corrected scan, its brain mask, and whether it came without skull."""
    scan = clean(path).image
    stripped = is_skull_stripped(scan)
    mask = stripped_brain_mask(scan) if stripped else extractor(scan)
    return correct_bias(scan, mask), mask, stripped


def variants(name: str, scan: Image, mask: Image, stripped: bool) -> Iterator[Brain]:
    """The scan as it is, in thick slices, and with a mask that follows the cortex or the skull."""
    yield Brain(f"{name}", masked(scan, mask), mask)
    for slice_mm in THICK_MM:
        coarse = thick(mask, slice_mm)
        yield Brain(f"{name}, {slice_mm:g} mm", thick(masked(scan, mask), slice_mm), like(coarse, data(coarse) > 0.5))
    sizes = mask.header.get_zooms()[:3]
    inside = data(mask) > 0
    tight = like(mask, ndimage.distance_transform_edt(inside, sampling=sizes) > TIGHTER_MM)
    yield Brain(f"{name}, tight", masked(scan, tight), tight)
    if not stripped:
        wide = like(mask, ndimage.distance_transform_edt(~inside, sampling=sizes) <= WIDER_MM)
        yield Brain(f"{name}, wide", masked(scan, wide), wide)


def thick(image: Image, slice_mm: float) -> Image:
    """Means over slabs of the axis whose slices are horizontal; as it is where slices are that thick already."""
    axis = int(np.argmax(np.abs(image.affine[2, :3])))
    count = round(slice_mm / float(image.header.get_zooms()[axis]))
    if count < 2:
        return image
    values = np.moveaxis(data(image), axis, 0)
    whole = len(values) // count * count
    slabs = values[:whole].reshape(-1, count, *values.shape[1:]).mean(axis=1)
    affine = image.affine.copy()
    affine[:3, 3] += affine[:3, axis] * (count - 1) / 2
    affine[:3, axis] *= count
    return on_affine(np.moveaxis(slabs, 0, axis).astype(np.float32), affine)


def moved(centre: np.ndarray, kind: str, vector: np.ndarray) -> np.ndarray:
    """A shift (mm) or a rotation about `centre` (degrees about its axis)."""
    if kind == "mm":
        return linear.translation(vector)
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(vector, degrees=True).as_matrix()
    matrix[:3, 3] = centre - matrix[:3, :3] @ centre
    return matrix


def measure_pose(brain: Brain, errors: Sequence[int], counts: Counts, suffix: str) -> None:
    """The pose of a brain, and the same off by known errors."""
    template = load_template(DEFAULT_SPACE)
    found = normalization.to_pose(brain.image, brain.mask, template)
    counts.add(f"{suffix} to MNI, right", found.check.status)
    scans = normalization._Scans.of(brain.image, brain.mask, None, template)
    scaled = linear.register(scans.fixed, scans.moving, [found.matrix], "similarity")
    least = {}
    for size, kind, axis, sign in itertools.product(errors, ("mm", "degrees"), np.eye(3), (1, -1)):
        off = scans.measure_linear(moved(scans.target.centre, kind, sign * size * axis) @ scaled)
        counts.add(f"{suffix} to MNI, {size} {kind} off", off.status(POSE_LIMITS))
        least[size] = min(least.get(size, np.inf), off.nearby)
    for degrees, axis in itertools.product(WRONG_DEGREES if errors else (), np.eye(3)):
        off = scans.measure_linear(moved(scans.target.centre, "degrees", degrees * axis) @ scaled)
        counts.add(f"{suffix} to MNI, {degrees} degrees off", off.status(POSE_LIMITS))
    told(f"{brain.name} {suffix}", found.check, " ".join(f"{size}: {least[size]:.2f}" for size in errors))


def told(name: str, check: Check, more: str = "") -> None:
    figures = f"overlap {check.overlap:.2f}, similarity {check.similarity:.2f}"
    shares = f"nearby {check.nearby:.2f}, elsewhere {check.elsewhere:.2f}"
    print(f"{name}: {check.status}, {figures}, {shares}{'; least nearby at ' + more if more else ''}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one of the sets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the real scans")
    parser.add_argument("--set", choices=SETS, required=True)
    parser.add_argument("--only", nargs="+", help="names of visits (default: all)")
    parser.add_argument("--errors", nargs="*", type=int, default=ERRORS, help="mm and degrees (default: 5 10 15 20)")
    options = parser.parse_args(arguments)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    visits = {name: pair for name, pair in SETS[options.set].items() if not options.only or name in options.only}
    extractor, counts = BrainExtractor(), Counts()
    flairs: list[tuple[str, Image]] = []
    t1ws: list[tuple[str, Image, Image]] = []
    for name, paths in visits.items():
        for contrast, path in zip(("T1w", "FLAIR"), paths, strict=True):
            if path is None:
                continue
            try:
                scan, mask, stripped = prepared(options.data / path, extractor)
            except VisitError as error:
                print(f"{name} {contrast}: {error}")
                continue
            for brain in variants(name, scan, mask, stripped):
                measure_pose(brain, options.errors, counts, contrast)
            if contrast == "T1w":
                t1ws.append((name, scan, mask))
            elif paths[0]:
                flairs.append((name, scan))
    for (name, t1w, mask), (other, flair) in itertools.product(t1ws, flairs):
        check = register_flair(flair, t1w, mask).check
        kind = "right" if name == other else "of another person"
        if name != other and name[:4] == other[:4]:
            continue  # two visits of one person agree, and should
        counts.add(f"FLAIR to T1w, {kind}", check.status)
        told(f"FLAIR of {other} to T1w of {name}", check)
    counts.print()


if __name__ == "__main__":
    main()
