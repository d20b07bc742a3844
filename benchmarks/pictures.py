"""Pictures of visits, to be looked at: brain mask, FLAIR on T1w, T1w on MNI, lesions; what is anomalous.

``python -m benchmarks.pictures OUT PICTURE`` draws what is anomalous in the visits of an output folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np

from bids_app import images
from bids_app.derivatives import names
from bids_app.derivatives.names import ScanName
from bids_app.preprocessing.templates import load_template
from bids_app.settings import DEFAULT_SPACE

PLANES = ((0, "sagittal"), (1, "coronal"), (2, "axial"))


def slices_of(image: nib.Nifti1Image, count: int, within: np.ndarray) -> list[tuple[int, int]]:
    """(axis, index) of `count` slices along each axis, spread over the voxels of `within`."""
    chosen = []
    for axis, _ in PLANES:
        used = np.flatnonzero(within.any(axis=tuple(a for a in range(3) if a != axis)))
        low, high = (used[0], used[-1]) if used.size else (0, within.shape[axis] - 1)
        chosen += [(axis, int(low + (high - low) * share)) for share in np.linspace(0.2, 0.8, count)]
    return chosen


def draw(axes, image: nib.Nifti1Image, contours: list[tuple[np.ndarray, str]], axis: int, index: int) -> None:
    """One slice with contours; left of the patient is left of the picture, anterior and superior are up."""
    values = images.data(image)
    top = np.percentile(values[values > 0], 99.5) if (values > 0).any() else 1
    spacing = np.delete(np.array(nib.affines.voxel_sizes(image.affine)), axis)
    plane, aspect = values.take(index, axis).T, spacing[1] / spacing[0]
    axes.imshow(plane, cmap="gray", origin="lower", vmin=0, vmax=top, aspect=aspect)
    for mask, colour in contours:
        plane = mask.take(index, axis).T
        if plane.any() and not plane.all():
            axes.contour(plane, levels=[0.5], colors=colour, linewidths=0.7)
    axes.axis("off")


def picture(rows: list[tuple[str, nib.Nifti1Image, list[tuple[np.ndarray, str]], np.ndarray]], path: Path) -> Path:
    """Rows of nine slices: (title, background, contours, where to look)."""
    figure, grid = plt.subplots(len(rows), 9, figsize=(18, 2.4 * len(rows)), squeeze=False)
    for line, (title, image, contours, within) in zip(grid, rows, strict=True):
        for axes, (axis, index) in zip(line, slices_of(image, 3, within), strict=True):
            draw(axes, image, contours, axis, index)
        line[0].set_title(title, fontsize=9, loc="left")
    return saved(figure, path)


def saved(figure: plt.Figure, path: Path) -> Path:
    """Write a figure, and close it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=75, bbox_inches="tight")
    plt.close(figure)
    return path


def edges(template: nib.Nifti1Image) -> np.ndarray:
    """Border of white matter in the template: where a registration can be judged by eye."""
    values = images.data(template)
    return values > np.percentile(values[values > 0], 62)


def picture_visit(out: Path, subject: str, path: Path, session: str | None = None) -> Path:
    """One picture of a finished visit."""
    scan = ScanName.parse(f"{names.visit_label(subject, session)}_T1w.nii.gz")
    reference = "T1w" if (out / names.preprocessed(scan, "T1w")).is_file() else "FLAIR"
    image = nib.load(out / names.preprocessed(scan, reference, reference))
    brain = images.data(nib.load(out / names.brain_mask(scan, reference))) > 0
    lesion = images.data(nib.load(out / names.lesion_mask(scan, reference))) > 0
    rows = [(f"{reference}, brain mask", image, [(brain, "yellow")], brain)]
    if (flair := out / names.preprocessed(scan, "FLAIR")).is_file():
        rows.append(("FLAIR on T1w, brain mask of the T1w", nib.load(flair), [(brain, "yellow")], brain))
    rows.append(("lesion", image, [(lesion, "red")], lesion if lesion.any() else brain))
    if (normal := out / names.preprocessed(scan, reference, DEFAULT_SPACE)).is_file():
        template = load_template(DEFAULT_SPACE)
        white, inside = edges(template.t1w), images.data(template.brain_mask) > 0
        title = f"{reference} in MNI, white matter border of the template"
        rows.append((title, nib.load(normal), [(white, "cyan")], inside))
    return picture(rows, path)


def picture_anomalies(out: Path, path: Path) -> Path:
    """T1w, healthy twin and anomaly map of every visit with a T1w, findings in red, where most of them are."""
    maps = sorted(out.rglob(f"*_space-T1w_desc-{names.ANOMALY_DESC}_anomalymap.nii.gz"))
    scans = [ScanName.parse(file.name) for file in maps]
    figure, grid = plt.subplots(len(scans), 3, figsize=(7.5, 2.7 * len(scans)), squeeze=False)
    for line, scan in zip(grid, scans, strict=True):
        t1w, twin, anomaly = (
            nib.load(out / name)
            for name in (names.preprocessed(scan, "T1w"), names.healthy_twin(scan, "T1w"), names.anomaly_map(scan))
        )
        masks = names.findings(scan), names.brain_mask(scan)
        found, brain = (images.data(nib.load(out / name)) > 0 for name in masks)
        index = int((found if found.any() else brain).sum(axis=(0, 1)).argmax())
        for axes, image in zip(line, (images.masked(t1w, images.like(t1w, brain)), twin, anomaly), strict=True):
            draw(axes, image, [] if image is twin else [(found, "red")], 2, index)
        line[0].set_title(names.visit_label(scan.subject, scan.session), fontsize=9, loc="left")
    return saved(figure, path)


if __name__ == "__main__":
    picture_anomalies(*map(Path, sys.argv[1:3]))
