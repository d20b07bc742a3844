"""How far synthetic scans look like real ones, in numbers and as a picture.

    python -m benchmarks.synthesis_fit --data DIR --cache DIR --figure PNG

compares what the networks see (intensities z-scored inside the brain, at 2 mm): synthetic FLAIR at MNI z = +18 mm with
the real stroke FLAIR slices of training patients at that height, and synthetic T1w with the real T1w heads that may
serve to fit intensities. Prints the 10th, 50th and 90th percentile over scans of each measure; a synthetic range should
hold the real one.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage
from torch import Generator

from bids_app.training.anatomy import split_of
from bids_app.training.series import Material, pick_source
from bids_app.training.store import prepare_split
from bids_app.training.synthesis.fields import PATCH, SPACING_MM
from bids_app.training.synthesis.lesions import stratify
from bids_app.training.synthesis.scan import SynthScan, synthesize
from bids_app.training.synthesis.tissue import FLAIR, T1W, Source, make_source

SLICES = Path("stroke_flair_slices", "soop_flair_axial_z18.npz")
HEIGHT_MM = 18.0
FITTED_HEADS = {
    "chris": "whole_head/chris_t1.nii.gz",
    "studyforrest": "whole_head/studyforrest_sub02_T1w_1mm.nii.gz",
}
MEASURES = {
    "dark": "5th percentile of healthy brain",
    "middle": "median of healthy brain",
    "bright": "95th percentile of healthy brain",
    "brightest": "99.5th percentile of healthy brain",
    "grain": "median step between neighbouring voxels",
    "lesion": "median inside the lesion",
    "lesion_low": "10th percentile inside the lesion",
    "lesion_high": "90th percentile inside the lesion",
}
_MIN_LESION_VOXELS = 40


@dataclass(frozen=True)
class Look:
    """One scan or slice as a network sees it.

    Attributes
    ----------
    image : ndarray
        ``(y, x)`` or ``(z, y, x)``, x growing to the right of the patient; z-scored in the brain, zero outside.
    lesion : ndarray
        The same shape, bool.
    head : str
        Where its anatomy is from.
    """

    image: np.ndarray
    lesion: np.ndarray
    head: str


@dataclass(frozen=True)
class Compared:
    """Real and synthetic looks at the same thing."""

    real: Sequence[Look]
    synthetic: Sequence[Look]


def measures(look: Look) -> dict[str, float]:
    """The values of ``MEASURES``; those of the lesion are nan without one."""
    brain = look.image != 0
    healthy = look.image[brain & ~ndimage.binary_dilation(look.lesion, iterations=2)]
    inside = look.image[look.lesion & brain]
    if inside.size < _MIN_LESION_VOXELS:
        inside = np.array([np.nan])
    steps = np.abs(np.diff(look.image, axis=-1))[brain[..., 1:] & brain[..., :-1]]
    dark, middle, bright, brightest = np.percentile(healthy, (5, 50, 95, 99.5))
    low, lesion, high = np.percentile(inside, (10, 50, 90))
    return dict(zip(MEASURES, (dark, middle, bright, brightest, np.median(steps), lesion, low, high), strict=True))


def zscored(image: np.ndarray) -> np.ndarray:
    """Zero mean and unit variance where the image is not zero."""
    brain = image != 0
    return np.where(brain, (image - image[brain].mean()) / image[brain].std(), 0)


def real_slices(data: Path) -> Iterator[Look]:
    """The real FLAIR slices of training patients, averaged to 2 mm."""
    with np.load(data / SLICES) as stored:
        ids, flair, lesion = stored["id"], stored["flair"], stored["lesion"]
    for name, image, mask in zip(ids, flair, lesion, strict=True):
        if split_of(f"sub-{name}") == "train":
            image, mask = (halved(upright(part).astype(float)) for part in (image, mask))
            yield Look(zscored(image), mask > 0.5, f"sub-{name}")


def upright(stored: np.ndarray) -> np.ndarray:
    """A stored slice ``(x, y)``, x growing to the left, as ``(y, x)`` with x growing to the right."""
    return stored[::-1].T


def halved(image: np.ndarray) -> np.ndarray:
    """Blocks of two voxels along each axis averaged; a block that is partly outside the brain is outside."""
    even = image[tuple(slice(n // 2 * 2) for n in image.shape)]
    blocks = even.reshape([size for n in even.shape for size in (n // 2, 2)])
    within = tuple(range(1, blocks.ndim, 2))
    return np.where(blocks.min(axis=within) > 0, blocks.mean(axis=within), 0)


def flair_slice(scan: SynthScan, source: Source) -> Look:
    """The slice of a synthetic FLAIR at about the height of the real ones."""
    z = round((PATCH[0] - 1) / 2 + (HEIGHT_MM - source.head.center[2]) / SPACING_MM)
    return Look(zscored(scan.image[FLAIR, z].numpy()), scan.target[FLAIR, z].numpy() > 0, scan.head)


def synthetic(data: Path, cache: Path, count: int) -> Iterator[tuple[SynthScan, Source]]:
    """Scans as training draws them, from other seeds."""
    heads, lesions = prepare_split(data, cache, "train")
    material = Material([make_source(head) for head in heads], lesions, (), ())
    strata = stratify(material.lesions)
    for number in range(count):
        rng = Generator().manual_seed(10**12 + number)
        source = pick_source(material, rng)
        yield synthesize(source, strata, material.recipe, rng), source


def real_heads(data: Path) -> Iterator[Look]:
    """The real T1w that may be fitted to, as the App prepares them, averaged to 2 mm."""
    from benchmarks.pose import pose_head
    from bids_app import images

    for name, path in FITTED_HEADS.items():
        coarse = halved(images.data(pose_head(data / path)).transpose(2, 1, 0).astype(float))
        yield Look(zscored(coarse), np.zeros(coarse.shape, bool), name)


def table(compared: Compared, name: str) -> Iterator[str]:
    """10th, 50th and 90th percentile of each measure over the scans."""
    yield f"| {name} | real ({len(compared.real)}) | synthetic ({len(compared.synthetic)}) |"
    yield "|---|---|---|"
    columns = [[measures(look) for look in looks] for looks in (compared.real, compared.synthetic)]
    for key, text in MEASURES.items():
        cells = [_range([row[key] for row in rows]) for rows in columns]
        if cells[0]:
            yield f"| {text} | {cells[0]} | {cells[1]} |"


def _range(values: Sequence[float]) -> str:
    known = [value for value in values if not np.isnan(value)]
    return " / ".join(f"{value:.2f}" for value in np.percentile(known, (10, 50, 90))) if known else ""


def draw(flair: Compared, t1w: Compared, path: Path) -> None:
    """FLAIR slices side by side; histograms of the brain and of the lesion in FLAIR, and of the brain in T1w."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(13, 8))
    grid = figure.add_gridspec(3, 24)
    for row, looks in enumerate((flair.real, flair.synthetic)):
        with_lesion = [look for look in looks if look.lesion.sum() > _MIN_LESION_VOXELS][:8]
        for column, look in enumerate(with_lesion):
            axes = figure.add_subplot(grid[row, 3 * column : 3 * column + 3])
            axes.imshow(look.image, cmap="gray", vmin=-2.5, vmax=3, origin="lower")
            axes.contour(look.lesion, [0.5], colors="tab:red", linewidths=0.6)
            axes.set_axis_off()
            axes.set_title(("" if column else ("real", "synthetic")[row]), loc="left", fontsize=9)
    edges = np.linspace(-4, 5, 91)
    parts = (("FLAIR, healthy brain", flair, False), ("FLAIR, lesion", flair, True), ("T1w, healthy brain", t1w, False))
    for column, (text, compared, pick) in enumerate(parts):
        axes = figure.add_subplot(grid[2, 8 * column : 8 * column + 8])
        for looks, title in ((compared.real, "real"), (compared.synthetic, "synthetic")):
            values = np.concatenate([look.image[(look.image != 0) & (look.lesion == pick)] for look in looks])
            axes.hist(values, edges, density=True, histtype="step", label=title)
        axes.set_xlabel(f"{text} (standard deviations of the brain)")
        axes.set_yticks([])
        axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=80)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables and draw the figure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.synthesis_fit", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the real data")
    parser.add_argument("--cache", type=Path, required=True, help="folder of the prepared data (OUT/cache of training)")
    parser.add_argument("--figure", type=Path, required=True, help="picture to write")
    parser.add_argument("--scans", type=int, default=150, help="synthetic scans to draw (default: %(default)s)")
    options = parser.parse_args(arguments)
    drawn = list(synthetic(options.data, options.cache, options.scans))
    slices = [flair_slice(scan, source) for scan, source in drawn]
    volumes = [
        Look(scan.image[T1W].numpy(), scan.target[T1W].numpy() > 0, scan.head)
        for scan, _ in drawn
        if scan.head not in FITTED_HEADS  # a scan made from a head would be compared with itself
    ]
    flair = Compared(list(real_slices(options.data)), slices)
    t1w = Compared(list(real_heads(options.data)), volumes)
    print("\n".join(table(flair, "FLAIR at z = +18 mm")), end="\n\n")
    print("\n".join(table(t1w, "T1w, whole brain")))
    draw(flair, t1w, options.figure)


if __name__ == "__main__":
    main()
