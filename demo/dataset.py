"""Writes the demo dataset: three synthetic stroke patients in BIDS, with their true lesion masks kept aside.

``python -m demo.dataset DIR`` deforms the MNI152NLin2009aSym T1, grey and white matter maps that nilearn ships into
three brains, draws a lesion of a plausible place and outline into each, and scans them (T1w, FLAIR) with noise, bias
field, head motion and different storage orders. The maps hold no skull, so the scans are brain-only.

The dataset is frozen, so that scores on it stay comparable: a test holds the checksum of its voxels. To give
every CPU the same voxels all arithmetic is in double precision, no random draw depends on a computed
value, and scans are rounded to whole numbers at the end.

This file stands alone on purpose: it shares no code with `bids_app`, least of all with its training synthesis.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

SEED = 20251
BRAIN_CENTRE = np.array([0.0, -17.0, 3.0])  # of the template, MNI mm: heads turn and grow around it
BRAIN_EDGE = 30.0  # T1 template value at the rim of the brain
TRUTH = Path("sourcedata") / "truth"


@dataclass(frozen=True)
class Stage:
    """Look of a lesion at one time: how far its border moved in, its T1w darkness, and how much is cavity."""

    shrunk_mm: float
    t1w_core: float
    cavity: float
    rim_mm: float = 4.0


@dataclass(frozen=True)
class Acquisition:
    """One scan: voxel size in mm, storage order, tilt of the slices, brightness, noise relative to white matter."""

    suffix: str
    voxel_mm: tuple[float, float, float]
    order: str
    tilt_degrees: float
    gain: float
    noise: float


@dataclass(frozen=True)
class Session:
    """One visit; `label` is None for a patient without sessions."""

    label: str | None
    stage: Stage
    scans: tuple[Acquisition, ...]


@dataclass(frozen=True)
class Patient:
    """A brain (size relative to MNI along x, y, z) with a lesion made of ellipsoids (centre and radii in MNI mm).

    `row` holds what participants.tsv says: side, territory, scans.
    """

    subject: str
    size: tuple[float, float, float]
    lesion: tuple[tuple[tuple[float, float, float], tuple[float, float, float]], ...]
    row: tuple[str, str, str]
    sessions: tuple[Session, ...]


PATIENTS = (
    Patient(
        subject="01",
        size=(0.97, 1.02, 1.0),
        lesion=(((-40, 4, 4), (13, 22, 17)), ((-30, -8, 22), (9, 20, 11))),
        row=("left", "middle cerebral artery", "T1w and FLAIR, two sessions"),
        sessions=(
            Session(
                "1",
                Stage(shrunk_mm=0.0, t1w_core=95.0, cavity=0.0),
                (
                    Acquisition("T1w", (1.0, 1.0, 1.0), "RAS", 0.0, 2.6, 0.025),
                    Acquisition("FLAIR", (1.0, 1.0, 3.0), "LAS", 9.0, 3.1, 0.035),
                ),
            ),
            Session(
                "2",
                Stage(shrunk_mm=1.0, t1w_core=62.0, cavity=0.9, rim_mm=2.0),
                (
                    Acquisition("T1w", (1.0, 1.0, 1.0), "LAS", 0.0, 2.2, 0.03),
                    Acquisition("FLAIR", (1.0, 1.0, 3.0), "RAS", 5.0, 2.4, 0.035),
                ),
            ),
        ),
    ),
    Patient(
        subject="02",
        size=(1.03, 0.98, 0.97),
        lesion=(((17, -82, 2), (11, 17, 13)), ((14, -22, 8), (8, 10, 8))),
        row=("right", "posterior cerebral artery", "T1w"),
        sessions=(
            Session(
                None,
                Stage(shrunk_mm=0.0, t1w_core=60.0, cavity=1.0, rim_mm=3.0),
                (Acquisition("T1w", (1.2, 1.2, 1.2), "LIA", 4.0, 1.3, 0.03),),
            ),
        ),
    ),
    Patient(
        subject="03",
        size=(0.99, 0.95, 1.03),
        lesion=(((46, -16, 20), (22, 42, 30)), ((34, 2, 0), (15, 24, 15))),
        row=("right", "middle cerebral artery", "T1w and FLAIR"),
        sessions=(
            Session(
                None,
                Stage(shrunk_mm=0.0, t1w_core=58.0, cavity=0.9, rim_mm=6.0),
                (
                    Acquisition("T1w", (1.0, 1.0, 1.2), "RAS", 6.0, 3.4, 0.03),
                    Acquisition("FLAIR", (1.0, 1.0, 3.0), "LAS", 6.0, 2.0, 0.04),
                ),
            ),
        ),
    ),
)


@dataclass(frozen=True)
class Map:
    """Values on a grid of MNI space whose axes run along x, y and z.

    Attributes
    ----------
    values : array, shape (x, y, z)
    origin : array, shape (3,)
        World position of the first voxel, mm.
    spacing : float
        Voxel size, mm.
    """

    values: np.ndarray
    origin: np.ndarray
    spacing: float

    def at(self, points: np.ndarray, order: int = 1) -> np.ndarray:
        """Values at world positions in mm, shape (3, n); zero outside the grid."""
        voxels = (points - self.origin[:, None]) / self.spacing
        return ndimage.map_coordinates(self.values, voxels, order=order, output=np.float64)


@dataclass(frozen=True)
class Head:
    """One patient, ready to be scanned: template maps (0 to 255), and what is the patient's own.

    Attributes
    ----------
    t1, grey, white : Map
        The template.
    near : Map
        One in the brain and about 4 mm around it: the voxels worth computing.
    shift : tuple of three Map
        Displacement along x, y and z, mm.
    depth : Map
        Distance into the lesion, mm, roughly; positive inside.
    patches : Map
        Smooth texture of the lesion, around zero.
    lesion_box : tuple of two arrays, shape (3,)
        Corners of a box around the lesion, MNI mm.
    """

    t1: Map
    grey: Map
    white: Map
    near: Map
    shift: tuple[Map, Map, Map]
    depth: Map
    patches: Map
    lesion_box: tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Grid:
    """Shape and affine of a scan."""

    shape: tuple[int, int, int]
    affine: np.ndarray


def template(name: str) -> Map:
    """The packaged MNI152NLin2009aSym map `name` (``t1``, ``gm`` or ``wm``), uint8, 1 mm."""
    folder = Path(find_spec("nilearn").origin).parent / "datasets" / "data"  # nilearn itself is slow to import
    image = nib.load(folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz")
    return Map(np.asarray(image.dataobj), image.affine[:3, 3], 1.0)


def thinned(full: Map, step: int) -> Map:
    """Every `step`-th voxel of a map, as float64."""
    return Map(full.values[::step, ::step, ::step].astype(np.float64), full.origin, full.spacing * step)


def smooth_noise(rng: np.random.Generator, grid: Map, scale_mm: float) -> np.ndarray:
    """Random values on the grid of `grid` that change over about `scale_mm`; standard deviation near 1.

    Cubic splines through normal draws a scale apart.
    """
    step = scale_mm / grid.spacing
    knots = rng.normal(size=[int(np.ceil(n / step)) + 3 for n in grid.values.shape])
    return ndimage.affine_transform(knots, np.eye(3) / step, offset=1.0, output_shape=grid.values.shape, order=3)


def make_head(patient: Patient, t1: Map, grey: Map, white: Map) -> Head:
    """The maps of one patient."""
    rng = np.random.default_rng([SEED, int(patient.subject)])
    coarse, fine = thinned(t1, 4), thinned(t1, 3)
    shift = tuple(
        Map(4.0 * smooth_noise(rng, coarse, 45.0) + 1.3 * smooth_noise(rng, coarse, 18.0), t1.origin, 4.0)
        for _ in range(3)
    )
    near = Map(ndimage.binary_dilation(coarse.values > 0).astype(np.uint8), t1.origin, 4.0)
    tissue = ndimage.gaussian_filter(thinned(grey, 3).values + thinned(white, 3).values, 0.6) / 255
    depth = lesion_depth(rng, patient, fine, tissue)
    patches = Map(smooth_noise(rng, coarse, 14.0), t1.origin, 4.0)
    return Head(t1, grey, white, near, shift, depth, patches, box_around(depth))


def lesion_depth(rng: np.random.Generator, patient: Patient, grid: Map, tissue: np.ndarray) -> Map:
    """Distance into the lesion in mm: ellipsoids with a ragged border, held to tissue of one hemisphere."""
    x, y, z = (o + grid.spacing * np.arange(n) for o, n in zip(grid.origin, grid.values.shape, strict=True))
    depth = np.full(grid.values.shape, -np.inf)
    for centre, radii in patient.lesion:
        parts = [((p - c) / r) ** 2 for p, c, r in zip((x, y, z), centre, radii, strict=True)]
        norm = np.sqrt(parts[0][:, None, None] + parts[1][None, :, None] + parts[2][None, None, :])
        depth = np.maximum(depth, (1 - norm) * min(radii))
    depth += 2.4 * smooth_noise(rng, grid, 22.0) + 1.6 * smooth_noise(rng, grid, 9.0)
    side = np.sign(patient.lesion[0][0][0])
    depth = np.minimum(depth, (side * x - 4.0)[:, None, None])  # arteries do not cross the midline
    return Map(np.minimum(depth, 14 * (tissue - 0.5)), grid.origin, grid.spacing)


def box_around(depth: Map) -> tuple[np.ndarray, np.ndarray]:
    """Corners in MNI mm of a box that holds all places less than 5 mm outside the lesion."""
    places = np.argwhere(depth.values > -5) * depth.spacing + depth.origin
    return places.min(axis=0), places.max(axis=0)


def rigid(rng: np.random.Generator, degrees: float, millimetres: float) -> np.ndarray:
    """A random small rotation and shift, shape (4, 4)."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", rng.uniform(-degrees, degrees, 3), degrees=True).as_matrix()
    matrix[:3, 3] = rng.uniform(-millimetres, millimetres, 3)
    return matrix


def make_grid(voxel_mm: tuple[float, float, float], tilt_degrees: float) -> Grid:
    """A RAS grid of 176 x 210 x 186 mm around the isocentre, its slices tilted nose up or down."""
    shape = tuple(round(extent / size) for extent, size in zip((176, 210, 186), voxel_mm, strict=True))
    affine = np.eye(4)
    tilt = Rotation.from_euler("x", tilt_degrees, degrees=True).as_matrix()
    affine[:3, :3] = tilt * np.array(voxel_mm)
    affine[:3, 3] = affine[:3, :3] @ (-(np.array(shape) - 1) / 2)
    return Grid(shape, affine)


def template_points(grid: Grid, pose: np.ndarray, patient: Patient, head: Head) -> tuple[np.ndarray, np.ndarray]:
    """Where the voxels of a scan lie in the template.

    Every fourth voxel is taken through pose, size and deformation; those between are interpolated (three times
    faster, and exact but for the deformation, which is smooth).

    Returns
    -------
    wanted : bool array, shape of the grid
        Voxels near the brain.
    points : array, shape (3, n)
        Their places in MNI mm.
    """
    matrix = np.linalg.inv(pose) @ grid.affine
    i, j, k = 4 * np.indices([(n - 1) // 4 + 2 for n in grid.shape])
    coarse = np.stack(
        [
            (m[0] * i + m[1] * j + m[2] * k + m[3]) / size + centre
            for m, size, centre in zip(matrix, patient.size, BRAIN_CENTRE, strict=False)
        ]
    )
    flat = coarse.reshape(3, -1)
    coarse = (flat + np.stack([part.at(flat) for part in head.shift])).reshape(coarse.shape)
    wanted = between(head.near.at(coarse.reshape(3, -1)).reshape(i.shape), grid.shape) > 0
    return wanted, np.stack([between(part, grid.shape)[wanted] for part in coarse])


def between(coarse: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Values known at every fourth voxel, interpolated linearly to a grid of `shape`."""
    for axis, n in enumerate(shape):
        low, step = np.divmod(np.arange(n), 4)
        weight = (step / 4).reshape([-1 if a == axis else 1 for a in range(3)])
        coarse = coarse.take(low, axis) * (1 - weight) + coarse.take(low + 1, axis) * weight
    return coarse


def ramp(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below `low`, 1 above `high`, linear between."""
    return np.clip((values - low) / (high - low), 0, 1)


def healthy_signal(head: Head, suffix: str, points: np.ndarray) -> np.ndarray:
    """Brightness at MNI positions without lesion (T1w: the template with more contrast); zero outside the brain."""
    t1 = head.t1.at(points)
    signal = np.zeros(t1.shape)
    brain = np.nonzero(t1 > BRAIN_EDGE)[0]
    t1, points = t1[brain], points[:, brain]
    grey, white = head.grey.at(points) / 255, head.white.at(points) / 255
    fluid = np.clip(1 - grey - white, 0, 1)
    if suffix == "T1w":
        signal[brain] = 0.5 * t1 + 0.5 * (228 * white + 158 * grey + 45 * fluid)
    else:
        signal[brain] = 112 * white + 140 * grey + 32 * fluid
    return signal


def t1w_lesion(healthy: np.ndarray, depth: np.ndarray, patches: np.ndarray, stage: Stage) -> np.ndarray:
    """T1w brightness in and around a lesion: a grey rim and a dark core."""
    core = stage.t1w_core * (1 + 0.18 * patches)
    lesion = 130 + (core - 130) * ramp(depth, 0, stage.rim_mm)
    return healthy + (np.minimum(lesion, healthy) - healthy) * ramp(depth, -0.8, 0.8)


def flair_lesion(healthy: np.ndarray, depth: np.ndarray, patches: np.ndarray, stage: Stage) -> np.ndarray:
    """FLAIR brightness in and around a lesion: bright, dark again where it has become a cavity."""
    hollow = stage.cavity * ramp(depth + patches, stage.rim_mm, stage.rim_mm + 4)
    lesion = (225 + 14 * patches) * (1 - hollow) + 48 * hollow
    return healthy + (lesion - healthy) * ramp(depth, -1.5, 1.5)


def brain_signal(head: Head, stage: Stage, suffix: str, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Brightness, and whether it is lesion, at MNI positions, shape (3, n)."""
    signal = healthy_signal(head, suffix, points)
    low, high = (limit[:, None] for limit in head.lesion_box)
    concerned = np.nonzero(((points > low) & (points < high)).all(axis=0) & (signal > 0))[0]
    depth = head.depth.at(points[:, concerned]) - stage.shrunk_mm
    patches = head.patches.at(points[:, concerned])
    paint = t1w_lesion if suffix == "T1w" else flair_lesion
    signal[concerned] = paint(signal[concerned], depth, patches, stage)
    lesion = np.zeros(signal.shape, dtype=bool)
    lesion[concerned] = depth > 0
    return signal, lesion


def bias_field(rng: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    """A smooth gain around 1, about 15 % up and down: the exponential of a random quadratic."""
    x, y, z = (np.linspace(-1, 1, n) for n in shape)
    x, y, z = x[:, None, None], y[None, :, None], z[None, None, :]
    terms = (x, y, z, x * x - 1 / 3, y * y - 1 / 3, z * z - 1 / 3, x * y, y * z, x * z)
    return np.exp(sum(weight * term for weight, term in zip(rng.normal(0, 0.1, len(terms)), terms, strict=True)))


def render(
    acquisition: Acquisition, head: Head, patient: Patient, stage: Stage, pose: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Brightness without noise, and the true lesion, both on the RAS grid of a scan.

    A FLAIR slice is the mean of two thin ones, a quarter of its thickness off its middle.
    """
    x, y, z = acquisition.voxel_mm
    thin = 2 if acquisition.suffix == "FLAIR" else 1
    grid = make_grid((x, y, z / thin), acquisition.tilt_degrees)
    wanted, points = template_points(grid, pose, patient, head)
    signal, lesion = np.zeros(grid.shape), np.zeros(grid.shape, dtype=bool)
    signal[wanted], lesion[wanted] = brain_signal(head, stage, acquisition.suffix, points)
    return signal.reshape(*grid.shape[:2], -1, thin).mean(axis=-1), lesion[:, :, ::thin]


def scanned(signal: np.ndarray, acquisition: Acquisition, rng: np.random.Generator) -> np.ndarray:
    """What a scanner makes of `signal`: bias field, Rician noise, whole numbers; zero outside the brain."""
    sigma = acquisition.noise * 225
    noise = rng.normal(0, sigma, (2, *signal.shape))
    inside = np.nonzero(signal)
    real = (signal * bias_field(rng, signal.shape))[inside] + noise[0][inside]
    values = np.zeros(signal.shape, dtype=np.int16)
    values[inside] = np.rint(np.hypot(real, noise[1][inside]) * acquisition.gain)
    return values


def stored(values: np.ndarray, acquisition: Acquisition) -> nib.Nifti1Image:
    """A NIfTI image of a RAS array, its voxels in the storage order of the acquisition."""
    affine = make_grid(acquisition.voxel_mm, acquisition.tilt_degrees).affine
    image = nib.Nifti1Image(values, affine)
    start, end = nib.io_orientation(affine), nib.orientations.axcodes2ornt(tuple(acquisition.order))
    image = image.as_reoriented(nib.orientations.ornt_transform(start, end))
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(image.affine, code="scanner")
    image.set_qform(image.affine, code="scanner")
    return image


def write_patient(folder: Path, patient: Patient, head: Head) -> None:
    """All scans and true masks of one patient."""
    for number, session in enumerate(patient.sessions, start=1):
        rng = np.random.default_rng([SEED, int(patient.subject), number])
        pose = rigid(rng, degrees=5, millimetres=4)
        place = Path(f"sub-{patient.subject}") / (f"ses-{session.label}" if session.label else "") / "anat"
        stem = "_".join(place.parts[:-1])
        for acquisition in session.scans:
            signal, lesion = render(acquisition, head, patient, session.stage, pose)
            image = stored(scanned(signal, acquisition, rng), acquisition)
            save(image, folder / place / f"{stem}_{acquisition.suffix}.nii.gz")
            if acquisition.suffix == "T1w":
                mask = stored(lesion.astype(np.uint8), acquisition)
                save(mask, folder / TRUTH / place / f"{stem}_label-L_desc-truth_mask.nii.gz")
            pose = rigid(rng, degrees=1.5, millimetres=1.5) @ pose  # the patient moves before the next scan


def save(image: nib.Nifti1Image, path: Path) -> None:
    """Write an image, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)


TEXTS = {
    "dataset_description.json": {
        "Name": "Synthetic stroke patients (afterstroke demo)",
        "BIDSVersion": "1.11.1",
        "DatasetType": "raw",
        "License": "CC0",
        "Authors": ["The afterstroke developers", "The nilearn developers"],
        "Acknowledgements": "Made from the MNI152NLin2009aSym template that the Python package nilearn ships.",
        "HowToAcknowledge": "Cite the template: Fonov et al., NeuroImage 2011, doi:10.1016/j.neuroimage.2010.07.033.",
        "ReferencesAndLinks": ["https://doi.org/10.1016/j.neuroimage.2010.07.033", "https://nilearn.github.io"],
        "SourceDatasets": [{"URL": "https://www.bic.mni.mcgill.ca/ServicesAtlases/ICBM152NLin2009"}],
        "GeneratedBy": [{"Name": "demo.dataset", "Description": "Deformed template brains with drawn lesions"}],
    },
    "participants.json": {
        "participant_id": {"Description": "Label of a synthetic patient; nobody was scanned"},
        "lesion_side": {
            "Description": "Side of the brain that holds the drawn lesion",
            "Levels": {"left": "left hemisphere", "right": "right hemisphere"},
        },
        "lesion_territory": {"Description": "Artery in whose territory the lesion was drawn"},
        "scans": {"Description": "What was simulated"},
    },
    "README": """# Synthetic stroke patients

Nobody was scanned for this dataset. It was computed by `python -m demo.dataset`, which deforms the MNI152NLin2009aSym
template (1 mm, brain only) into three brains, draws a lesion into each and simulates T1w and FLAIR scans with noise,
bias field, head motion, several voxel sizes and storage orders. Good for trying software out, and for nothing else.

* sub-01: two sessions of T1w and FLAIR (3 mm slices); a left middle cerebral artery lesion, fresh and then older
* sub-02: T1w only; two right posterior cerebral artery lesions
* sub-03: T1w and FLAIR; a large right middle cerebral artery lesion

The scans hold no skull: the template has none. `sourcedata/truth` holds the true lesion masks, on the grid of each T1w.

The template is Copyright (C) 1993-2009 Louis Collins, McConnell Brain Imaging Centre, Montreal Neurological Institute,
McGill University: permission to use, copy, modify, and distribute it without fee is granted, provided that this notice
appears in all copies. It is provided "as is" without express or implied warranty.
""",
}


#: What holds for every scan of a kind; BIDS recommends names of scanners and coils as well, but there was no scanner.
SIDECARS = {
    name: {
        "PulseSequenceDetails": "No scanner was used: simulated from the MNI152NLin2009aSym template",
        "SkullStripped": True,
    }
    for name in ("T1w.json", "FLAIR.json")
}


def write_texts(folder: Path) -> None:
    """Description, README, table of participants and sidecars."""
    rows = [(f"sub-{patient.subject}", *patient.row) for patient in PATIENTS]
    table = "\n".join("\t".join(row) for row in [tuple(TEXTS["participants.json"]), *rows]) + "\n"
    (folder / "participants.tsv").write_text(table)
    for name, content in (TEXTS | SIDECARS).items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content, indent=2) + "\n")


def write_dataset(folder: Path) -> None:
    """Write the whole demo dataset into `folder`, which is made; files of the same names are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    write_texts(folder)
    maps = [template(name) for name in ("t1", "gm", "wm")]
    with ThreadPoolExecutor(2) as pool:  # most of the time is spent in code that lets other threads run
        heads = pool.map(lambda patient: make_head(patient, *maps), PATIENTS)
        list(pool.map(lambda patient, head: write_patient(folder, patient, head), PATIENTS, heads))


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: python -m demo.dataset DIR")
    write_dataset(Path(sys.argv[1]))
