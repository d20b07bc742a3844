"""Compare SimpleITK (as the App uses it), antspyx and picsl_greedy on real heads; prints Markdown tables.

    python -m benchmarks.registration DATA [--threads 2] [--libraries SimpleITK]
                                           [--only flair,pose,deform,known,lesion]

DATA is the folder of test data (``whole_head/``, ``paired_clinical/``, ``lesion_masks/``). ``lesion``
looks at the App alone. Times are CPU seconds of the process, so that a
busy machine does not matter. All libraries see the same images: brains at 2 mm for whatever ends in standard space,
heads at 2 mm for FLAIR to T1w, the same first guess. antspyx and picsl_greedy are no dependencies: absent, they are
left out.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bids_app.images import Image, data, like, load, masked, resample, world
from bids_app.measures.overlap import dice
from bids_app.preprocessing import coregistration, deformable, linear, normalization
from bids_app.preprocessing.bias import correct_bias
from bids_app.preprocessing.brain import BrainExtractor
from bids_app.preprocessing.comparison import Fit
from bids_app.preprocessing.headers import clean
from bids_app.preprocessing.itk import RAS_TO_LPS, from_itk, pull_transform, push_matrix, to_itk
from bids_app.preprocessing.templates import Template, load_template
from bids_app.preprocessing.transforms import apply_linear, apply_to_points, resample_itk
from bids_app.settings import DEFAULT_SPACE

HEADS = {"chris_t1": "whole_head/chris_t1.nii.gz", "studyforrest_sub02": "whole_head/studyforrest_sub02_T1w_1mm.nii.gz"}
CLINICAL = ("paired_clinical/TCGA-FG-6692_T1.nii.gz", "paired_clinical/TCGA-FG-6692_FLAIR.nii.gz")
LESIONS = ("lesion_masks/lesymap/Subject_037.nii.gz", "lesion_masks/lesymap/Subject_038.nii.gz")  # 172 and 308 mL
TRIALS = 4
MAX_DEGREES, MAX_MM = 18.0, 20.0
MM = 2.0


@dataclass(frozen=True)
class Head:
    """A bias-corrected head and its brain mask."""

    name: str
    t1w: Image
    mask: Image

    @property
    def brain(self) -> Image:
        return masked(self.t1w, self.mask)

    @property
    def points(self) -> np.ndarray:
        """Some two thousand world points of the brain."""
        voxels = np.argwhere(data(self.mask) > 0)
        return world(self.mask, voxels[:: len(voxels) // 2000])


@dataclass(frozen=True)
class Warp:
    """ITK transforms of both directions: forward pulls the moving image."""

    forward: sitk.Transform
    inverse: sitk.Transform


@dataclass(frozen=True)
class Library:
    """What is compared: rigid by mutual information, and affine plus deformable."""

    name: str
    rigid: Callable[[Image, Image, Image], np.ndarray]  # fixed, its brain mask, moving -> push matrix
    deform: Callable[[Head, Template, np.ndarray], Warp]  # brain, template, rigid guess


# ------------------------------------------------------------------------------------------------- the libraries


def app_rigid(fixed: Image, mask: Image, moving: Image) -> np.ndarray:
    return coregistration.register_flair(moving, fixed, mask).matrix


def app_deform(head: Head, template: Template, guess: np.ndarray) -> Warp:
    with tempfile.TemporaryDirectory() as folder:
        done = normalization.normalize(head.t1w, head.mask, None, template, guess, Path(folder))
        if done.forward is None:
            raise RuntimeError(done.check.sentence)
        return Warp(sitk.ReadTransform(str(done.forward)), sitk.ReadTransform(str(done.inverse)))


def _centres(fixed: Image, moving: Image) -> np.ndarray:
    return linear.translation(linear.centre_of_mass(fixed) - linear.centre_of_mass(moving))


def _small(image: Image) -> sitk.Image:
    return linear.downsample(to_itk(image), MM)


def _ants(image: sitk.Image):
    import ants

    values = np.ascontiguousarray(sitk.GetArrayFromImage(image).T, dtype=np.float32)
    direction = np.reshape(image.GetDirection(), (3, 3))
    return ants.from_numpy(values, list(image.GetOrigin()), list(image.GetSpacing()), direction)


def _around(mask: Image, grid: sitk.Image) -> sitk.Image:
    """The brain and 10 mm around it, on the grid of the registration."""
    inside = data(resample(mask, from_itk(grid), order=0)) > 0
    near = ndimage.distance_transform_edt(~inside) * MM <= coregistration.MARGIN_MM
    return to_itk(like(from_itk(grid), near), np.uint8)


def ants_rigid(fixed: Image, mask: Image, moving: Image) -> np.ndarray:
    import ants

    with tempfile.TemporaryDirectory() as folder:
        guess = f"{folder}/guess.txt"
        sitk.WriteTransform(pull_transform(_centres(fixed, moving)), guess)
        target = _small(fixed)
        done = ants.registration(
            _ants(target), _ants(_small(moving)), "Rigid", initial_transform=guess, mask=_ants(_around(mask, target)),
            aff_metric="mattes", outprefix=f"{folder}/", random_seed=1,
        )  # fmt: skip
        return push_matrix(sitk.ReadTransform(done["fwdtransforms"][0]))


def ants_deform(metric: str, radius: int) -> Callable[[Head, Template, np.ndarray], Warp]:
    def deform(head: Head, template: Template, guess: np.ndarray) -> Warp:
        import ants

        target, source = _ants(_small(template.t1w)), _ants(_small(head.brain))
        with tempfile.TemporaryDirectory() as folder:
            sitk.WriteTransform(pull_transform(guess), f"{folder}/guess.txt")
            affine = ants.registration(
                target,
                source,
                "Affine",
                initial_transform=f"{folder}/guess.txt",
                outprefix=f"{folder}/a",
                random_seed=1,
            )
            done = ants.registration(
                target, source, "SyNOnly", initial_transform=affine["fwdtransforms"][0], syn_metric=metric,
                syn_sampling=radius, reg_iterations=(40, 20, 10), outprefix=f"{folder}/w", random_seed=1,
            )  # fmt: skip
            linear_part = sitk.ReadTransform(next(name for name in done["fwdtransforms"] if name.endswith(".mat")))
            forward, inverse = (
                _field(sitk.ReadImage(next(name for name in done[way] if "Warp.nii" in name)))
                for way in ("fwdtransforms", "invtransforms")
            )
        return _warp(linear_part, forward, inverse)

    return deform


def _field(image: sitk.Image) -> sitk.Transform:
    return sitk.DisplacementFieldTransform(sitk.Cast(image, sitk.sitkVectorFloat64))


def _warp(affine: sitk.Transform, forward: sitk.Transform, inverse: sitk.Transform) -> Warp:
    return Warp(sitk.CompositeTransform([affine, forward]), sitk.CompositeTransform([inverse, affine.GetInverse()]))


def _greedy(command: str, folder: str, **images):
    """Run greedy; its matrices are RAS and pull."""
    from picsl_greedy import Greedy3D

    engine, silent = Greedy3D(), io.StringIO()
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    engine.execute(f"{command} -V 0 -seed 1 -threads {threads}", out=silent, err=silent, **images)
    return engine


def greedy_rigid(fixed: Image, mask: Image, moving: Image) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        np.savetxt(f"{folder}/guess.mat", np.linalg.inv(_centres(fixed, moving)))
        target = _small(fixed)
        engine = _greedy(
            f"-i fix mov -gm near -a -dof 6 -m NMI -n 100x50x20 -search 200 15 10 -ia {folder}/guess.mat -o found",
            folder, fix=target, mov=_small(moving), near=_around(mask, target), found=None,
        )  # fmt: skip
        return np.linalg.inv(np.array(engine["found"]))


def greedy_deform(head: Head, template: Template, guess: np.ndarray) -> Warp:
    with tempfile.TemporaryDirectory() as folder:
        np.savetxt(f"{folder}/guess.mat", np.linalg.inv(guess))
        images = {"fix": _small(template.t1w), "mov": _small(head.brain)}
        affine = _greedy(
            f"-i fix mov -a -dof 12 -m NCC 2x2x2 -n 100x60x10 -ia {folder}/guess.mat -o found",
            folder,
            **images,
            found=None,
        )
        matrix = np.array(affine["found"])
        np.savetxt(f"{folder}/affine.mat", matrix)
        done = _greedy(
            f"-i fix mov -it {folder}/affine.mat -m NCC 2x2x2 -n 100x60x20 -s 2.5vox 0.8vox -wp 0 -o warp -oinv back",
            folder, **images, warp=None, back=None,
        )  # fmt: skip
        return _warp(pull_transform(np.linalg.inv(matrix)), _field(done["warp"]), _field(done["back"]))


PACKAGES = {"SimpleITK": "SimpleITK", "antspyx": "ants", "greedy": "picsl_greedy"}
LIBRARIES = (
    Library("SimpleITK", app_rigid, app_deform),
    Library("antspyx, Mattes", ants_rigid, ants_deform("mattes", 32)),
    Library("antspyx, CC", ants_rigid, ants_deform("CC", 2)),
    Library("greedy", greedy_rigid, greedy_deform),
)


# ------------------------------------------------------------------------------------------------- the data


def load_heads(folder: Path) -> list[Head]:
    extract = BrainExtractor()
    out = []
    for name, path in {**HEADS, "clinical": CLINICAL[0]}.items():
        image = clean(folder / path).image
        mask = extract(image)
        out.append(Head(name, correct_bias(image, mask), mask))
    return out


def simulated_flair(head: Head) -> Image:
    """The head with the contrast of a FLAIR (fluid dark, grey brighter than white), 5 mm slices and noise."""
    values, inside = data(head.t1w), data(head.mask) > 0
    low, high = np.percentile(values[inside], [2, 98])
    flair = np.interp(
        (values - low) / (high - low), [0, 0.15, 0.3, 0.55, 0.9, 1.3, 3], [0, 0.05, 0.3, 1, 0.75, 0.7, 1.2]
    )
    flair += np.random.default_rng(0).normal(0, 0.05, flair.shape)
    step = 2 * round((5 / head.t1w.header.get_zooms()[2] - 1) / 2) + 1  # odd: an even window would move the slice
    return like(head.t1w, ndimage.uniform_filter1d(flair.astype(np.float32), step, axis=2)).slicer[:, :, ::step]


def random_rigid(rng: np.random.Generator, centre: np.ndarray) -> np.ndarray:
    turn = np.eye(4)
    angles = rng.uniform(-MAX_DEGREES, MAX_DEGREES, 3)
    turn[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    turn[:3, 3] = centre - turn[:3, :3] @ centre + rng.uniform(-MAX_MM, MAX_MM, 3)
    return turn


def moved_header(image: Image, matrix: np.ndarray) -> Image:
    """The scan of a patient who lay elsewhere: same voxels, another affine."""
    return type(image)(data(image), matrix @ image.affine)


def tissues(head: Head) -> Image:
    """1 fluid, 2 grey, 3 white: a Gaussian mixture of the brain's intensities."""
    from sklearn.mixture import GaussianMixture

    values, inside = data(head.t1w), data(head.mask) > 0
    sample = np.random.default_rng(0).choice(values[inside], 20000)[:, None]
    mixture = GaussianMixture(3, means_init=np.percentile(sample, [10, 45, 80])[:, None], random_state=0).fit(sample)
    rank = np.argsort(np.argsort(mixture.means_.ravel()))
    labels = np.zeros(values.shape, np.uint8)
    labels[inside] = rank[mixture.predict(values[inside][:, None])] + 1
    return like(head.t1w, labels)


def template_tissues() -> np.ndarray:
    from nilearn.datasets import load_mni152_gm_template, load_mni152_wm_template

    grey, white = data(load_mni152_gm_template(resolution=1)), data(load_mni152_wm_template(resolution=1))
    return np.select([(grey > 0.5) & (grey >= white), white > 0.5], [2, 3], 0)


def random_warp(template: Template, seed: int) -> sitk.Transform:
    """A smooth deformation of about 5 mm, at most 12 mm."""
    grid = linear.downsample(to_itk(template.t1w), 4.0)
    noise = np.random.default_rng(seed).normal(size=(*sitk.GetArrayFromImage(grid).shape, 3))
    smooth = np.stack([ndimage.gaussian_filter(noise[..., axis], 5.0) for axis in range(3)], axis=-1)
    return _field_of(smooth / np.linalg.norm(smooth, axis=-1).max() * 12.0, grid)


def _field_of(values: np.ndarray, grid: sitk.Image) -> sitk.Transform:
    field = sitk.GetImageFromArray(values, isVector=True)
    field.CopyInformation(grid)
    return sitk.DisplacementFieldTransform(field)


# ------------------------------------------------------------------------------------------------- the measures


def timed(work: Callable):
    """The result, and its CPU seconds; None where the library gave up."""
    start = time.process_time()
    try:
        result = work()
    except RuntimeError as error:
        print(f"<!-- {error} -->")
        result = None
    return result, time.process_time() - start


def distances(first: np.ndarray, second: np.ndarray, points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(apply_to_points(points, first) - apply_to_points(points, second), axis=1)


def carried(transform: sitk.Transform, points: np.ndarray) -> np.ndarray:
    lps = points @ RAS_TO_LPS[:3, :3]
    return np.array([transform.TransformPoint(point) for point in lps.tolist()]) @ RAS_TO_LPS[:3, :3]


def folded_percent(transform: sitk.Transform, template: Template) -> float:
    grid = to_itk(template.t1w)
    field = sitk.TransformToDisplacementField(
        transform, sitk.sitkVectorFloat64, grid.GetSize(), grid.GetOrigin(), grid.GetSpacing(), grid.GetDirection()
    )
    jacobian = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(field)).T
    return 100 * float(np.mean(jacobian[data(template.brain_mask) > 0] <= 0))


def row(*cells) -> None:
    print(
        "| " + " | ".join(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells) + " |", flush=True
    )


def table(title: str, *columns: str) -> None:
    print(f"\n**{title}**\n")
    row(*columns)
    row(*["---"] * len(columns))


# ------------------------------------------------------------------------------------------------- the experiments


def flair(libraries: list[Library], heads: list[Head], folder: Path) -> None:
    """Known misalignments of a FLAIR; error is the distance to the truth, for the real pair to the median answer."""
    table(
        "FLAIR to T1w, rigid: error over the brain, mm",
        "pair",
        "library",
        "median",
        "worst",
        "failed (> 3 mm)",
        "CPU s",
    )
    for head in heads:
        real = head.name == "clinical"
        moving = clean(folder / CLINICAL[1]).image if real else simulated_flair(head)
        for library in libraries:
            rng = np.random.default_rng(3)
            shifts = [random_rigid(rng, linear.centre_of_mass(moving)) for _ in range(TRIALS)]
            runs = [timed(lambda s=s: library.rigid(head.t1w, head.mask, moved_header(moving, s))) for s in shifts]  # noqa: B023
            found = [matrix @ shift for (matrix, _), shift in zip(runs, shifts, strict=True)]
            truth = np.median(found, axis=0) if real else np.eye(4)
            errors = np.array([distances(matrix, truth, head.points).mean() for matrix in found])
            cpu = float(np.mean([seconds for _, seconds in runs]))
            pair = head.name if real else f"{head.name}, simulated FLAIR"
            row(pair, library.name, float(np.median(errors)), float(errors.max()), int((errors > 3).sum()), cpu)


def pose(libraries: list[Library], heads: list[Head], folder: Path) -> None:
    """The same head lying differently must end in the same pose."""
    template = load_template(DEFAULT_SPACE)
    table(
        "T1w brain to MNI, rigid: spread of the answers, mm",
        "head",
        "library",
        "median",
        "worst",
        "brain Dice",
        "CPU s",
    )
    for head in heads:
        for library in libraries:
            rng = np.random.default_rng(5)
            shifts = [random_rigid(rng, linear.centre_of_mass(head.mask)) for _ in range(TRIALS)]
            runs = [
                timed(lambda s=s: library.rigid(template.t1w, template.brain_mask, moved_header(head.brain, s)))  # noqa: B023
                for s in shifts
            ]
            found = [matrix @ shift for (matrix, _), shift in zip(runs, shifts, strict=True)]
            errors = np.array([distances(matrix, np.median(found, axis=0), head.points).mean() for matrix in found])
            moved = apply_linear(head.mask, found[0], template.brain_mask, 0)
            overlap = dice(data(moved) > 0, data(template.brain_mask) > 0)
            cpu = float(np.mean([seconds for _, seconds in runs]))
            row(head.name, library.name, float(np.median(errors)), float(errors.max()), overlap, cpu)


def deform(libraries: list[Library], heads: list[Head], folder: Path) -> None:
    """Tissue overlap with the template after affine and deformation."""
    template, classes = load_template(DEFAULT_SPACE), template_tissues()
    columns = ("grey Dice", "white Dice", "brain Dice", "folded %", "inverse error mm: mean", "99 %", "CPU s")
    table("T1w to MNI, affine and deformable", "head", "library", *columns)
    for head in heads:
        guess = normalization.to_pose(head.t1w, head.mask, template).matrix
        labels = tissues(head)
        for library in libraries:
            warp, cpu = timed(lambda: library.deform(head, template, guess))  # noqa: B023
            if warp is None:
                row(head.name, library.name, *["failed"] * 6, cpu)
                continue
            moved = data(resample_itk(labels, warp.forward, template.t1w, "nearest"))
            overlaps = [dice(moved == label, classes == label) for label in (2, 3)]
            brain = dice(moved > 0, data(template.brain_mask) > 0)
            points = world(template.t1w, np.argwhere(data(template.brain_mask) > 0)[::997])
            error = np.linalg.norm(carried(warp.inverse, carried(warp.forward, points)) - points, axis=1)
            folded = folded_percent(warp.forward, template)
            row(head.name, library.name, *overlaps, brain, folded, error.mean(), np.percentile(error, 99), cpu)


def known(libraries: list[Library], heads: list[Head], folder: Path) -> None:
    """Recover a known deformation of a real brain, under noise."""
    mni = load_template(DEFAULT_SPACE)
    table("Known deformation of a brain: error, mm", "head", "library", "mean before", "mean", "95 %", "CPU s")
    for seed, head in enumerate(heads):
        guess = normalization.to_pose(head.t1w, head.mask, mni).matrix
        truth = sitk.CompositeTransform([pull_transform(guess), random_warp(mni, seed)])
        warped = data(resample_itk(head.brain, truth, mni.t1w, "linear"))
        noise = np.random.default_rng(seed).normal(0, 0.02 * np.percentile(warped, 99), warped.shape)
        mask = resample_itk(head.mask, truth, mni.t1w, "nearest")
        target = Template("known", like(mni.t1w, np.where(data(mask) > 0, warped + noise, 0).astype(np.float32)), mask)
        points = world(mask, np.argwhere(data(mask) > 0)[::997])
        goal = carried(truth, points)
        before = np.linalg.norm(carried(pull_transform(guess), points) - goal, axis=1).mean()
        for library in libraries:
            warp, cpu = timed(lambda: library.deform(head, target, guess))  # noqa: B023
            error = np.full(1, np.nan) if warp is None else np.linalg.norm(carried(warp.forward, points) - goal, axis=1)
            row(head.name, library.name, before, error.mean(), np.percentile(error, 95), cpu)


def pasted(head: Head, lesion: Image, free: Warp) -> tuple[Head, Image]:
    """The head with an old lesion, given in MNI, as dark as its fluid; and the lesion on its grid."""
    inside = (data(resample_itk(lesion, free.inverse, head.t1w, "linear")) > 0.5) & (data(head.mask) > 0)
    share = ndimage.gaussian_filter(inside.astype(np.float32), 1.0)
    values = data(head.t1w)
    fluid = np.percentile(values[data(head.mask) > 0], 3)
    return Head(head.name, like(head.t1w, values * (1 - share) + fluid * share), head.mask), like(head.t1w, inside)


def lesion(libraries: list[Library], heads: list[Head], folder: Path) -> None:
    """What a pasted lesion changes, in the App's way with the lesion given and not given."""
    template = load_template(DEFAULT_SPACE)
    around = {"inside": (-99, 0), "0-5 mm around": (0, 5), "5-15 mm": (5, 15), "over 30 mm": (30, 999)}
    columns = (*around, "lesion mL in MNI: true", "found", "overlap", "correlation", "correlation of the pose")
    table("T1w to MNI, lesion pasted: mm from the same head's registration without lesion", "head", "masked", *columns)
    for head in (head for head in heads if head.name in HEADS):
        guess = normalization.to_pose(head.brain, head.mask, template).matrix
        free = app_deform(head, template, guess)
        for path in LESIONS:
            sick, mask = pasted(head, load(folder / path), free)
            posed = normalization.to_pose(sick.brain, head.mask, template).check
            there = data(resample_itk(mask, free.forward, template.t1w, "nearest")) > 0
            depth = ndimage.distance_transform_edt(~there) - ndimage.distance_transform_edt(there)
            for given in (mask, None):
                scans = normalization._Scans.of(sick.brain, head.mask, given, template)
                warp, matched = app_way(scans, guess)
                moved = []
                for low, high in around.values():
                    zone = (data(template.brain_mask) > 0) & (depth > low) & (depth <= high)
                    points = world(template.t1w, np.argwhere(zone)[:: max(1, zone.sum() // 1000)])
                    shift = carried(warp.forward, points) - carried(free.forward, points)
                    moved.append(np.linalg.norm(shift, axis=1).mean())
                found = data(resample_itk(mask, warp.forward, template.t1w, "nearest")).sum() / 1000
                volumes = (there.sum() / 1000, float(found))
                agreement = (matched.overlap, matched.similarity, posed.similarity)
                row(head.name, given is not None, *moved, *volumes, *agreement)


def app_way(scans: normalization._Scans, guess: np.ndarray) -> tuple[Warp, Fit]:
    """The first way of `normalization.normalize`, whatever it reaches."""
    starts = [guess, normalization._scaled(guess, scans)]
    matrix = linear.register(scans.fixed, scans.moving, starts, "affine", "correlation", moving_mask=scans.healthy)
    pulls = normalization._pulls(matrix, deformable.register_field(scans.levels(matrix, normalization.SCHEDULE, True)))
    return Warp(pulls.forward, pulls.inverse), scans.fit(pulls.forward)


EXPERIMENTS = {"flair": flair, "pose": pose, "deform": deform, "known": known, "lesion": lesion}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default=",".join(EXPERIMENTS))
    parser.add_argument("--libraries", default="SimpleITK,antspyx,greedy")
    options = parser.parse_args()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(options.threads)
    packages = {name: find_spec(package) for name, package in PACKAGES.items() if name in options.libraries.split(",")}
    wanted = [library for library in LIBRARIES if packages.get(library.name.split(",")[0])]
    heads = load_heads(options.data)
    for name in options.only.split(","):
        # the two kinds of antspyx differ in the deformation only
        some = [library for library in wanted if name in ("deform", "known") or library.name != "antspyx, CC"]
        EXPERIMENTS[name](some, heads, options.data)


if __name__ == "__main__":
    main()
