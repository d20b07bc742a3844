"""Synthetic T1w scans with and without stroke lesions, from head label maps and lesion masks.

Everything works on the network's own grid (2 mm, ``(z, y, x)``), in float32, on any torch device, and draws every
random number from one explicit ``torch.Generator``. The idea of drawing intensities per label follows SynthSeg
(Billot et al. 2023, Medical Image Analysis 86); lesions are real masks carried from one brain to another.

The result equals what nnU-Net's preprocessing makes of a brain-extracted scan in the pose: z-scored inside the
brain, zero outside, bounding box in the middle of the patch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from bids_app.training import anatomy
from bids_app.training.anatomy import Head, LesionMask

PATCH = (80, 96, 80)
SPACING_MM = 2.0
CSF, GREY, WHITE, VENTRICLE, DEEP, BRAIN = range(6)
"""Channels of the fractions sampled beside the intensities."""

MIN_CONTRAST = 0.08
"""Smallest mean darkening of a visible lesion, as a share of the contrast between CSF and white matter."""

_HALF_VOXEL = np.array([[1, 0, 0, -0.5], [0, 1, 0, -0.5], [0, 0, 1, -0.5], [0, 0, 0, 1.0]])
"""Averaging pairs of voxels moves the grid by half a voxel."""


@dataclass(frozen=True)
class Recipe:
    """What synthesis draws from; ranges are (low, high) of a uniform draw unless said otherwise.

    Attributes
    ----------
    healthy : float
        Share of scans without a lesion, 0-1.
    several : float
        Chance of each further lesion (at most three in all).
    scale, axis_scale : tuple of float
        Size of the brain, overall and per axis.
    shear : float
        Standard deviation.
    rotation_deg : float
        Standard deviation of what the rigid alignment leaves over, degrees.
    warp_mm : tuple of float
        Root mean square of the smooth deformation's velocity, mm.
    thick_slices : float
        Chance of thick slices in one direction.
    slice_mm : tuple of float
        Their thickness, mm.
    noise : tuple of float
        Standard deviation of Rician noise as a share of the white-matter signal; small values come more often.
    real_texture : float
        Share of scans made from heads that keep the texture of a real T1w.
    jitter_voxels : int
        Largest shift of the bounding box from the middle of the patch.
    """

    healthy: float = 0.3
    several: float = 0.25
    scale: tuple[float, float] = (0.92, 1.08)
    axis_scale: tuple[float, float] = (0.96, 1.05)
    shear: float = 0.015
    rotation_deg: float = 3.0
    warp_mm: tuple[float, float] = (0.5, 4.0)
    thick_slices: float = 0.25
    slice_mm: tuple[float, float] = (3.0, 7.0)
    noise: tuple[float, float] = (0.0, 0.07)
    real_texture: float = 0.45
    jitter_voxels: int = 2


@dataclass(frozen=True)
class SynthScan:
    """A synthetic scan ready for the network.

    Attributes
    ----------
    image : torch.Tensor
        ``(1, z, y, x)`` float32, z-scored inside the brain, zero outside.
    target : torch.Tensor
        ``(1, z, y, x)`` uint8, 1 where lesion.
    head, lesions : str
        Name of the head, and of the lesion masks joined by "+" (empty: healthy).
    """

    image: Tensor
    target: Tensor
    head: str
    lesions: str

    @property
    def lesion_ml(self) -> float:
        """Lesion volume, mL."""
        return float(self.target.sum()) * SPACING_MM**3 / 1000


@dataclass(frozen=True)
class Source:
    """A head turned into tensors: labels for sharp intensities, coarse fractions for everything smooth.

    ``image`` and its own mean CSF, grey-matter and white-matter intensities are there if its texture is real.
    """

    head: Head
    labels: Tensor
    fractions: Tensor
    image: Tensor | None = None
    image_means: tuple[float, ...] = ()


@dataclass(frozen=True)
class Tissue:
    """What one warped head looks like on the patch, all ``(1, 1, z, y, x)`` float32.

    ``image`` holds intensities, ``fractions`` (6 channels) values from 0 to 1; ``points`` are ``(1, z, y, x, 3)``
    pose millimetres. ``csf``, ``grey`` and ``white`` are the drawn class means.
    """

    image: Tensor
    fractions: Tensor
    points: Tensor
    csf: float
    grey: float
    white: float

    def share(self, channel: int) -> Tensor:
        """One channel of the fractions, ``(1, 1, z, y, x)``."""
        return self.fractions[:, channel : channel + 1]


# --- random numbers and smooth fields -------------------------------------------------------------------------------


def uniform(low: float, high: float, rng: Generator) -> float:
    """One uniform draw from [low, high)."""
    return low + (high - low) * torch.rand((), generator=rng, device=rng.device).item()


def chance(probability: float, rng: Generator) -> bool:
    """True with this probability."""
    return uniform(0, 1, rng) < probability


def normal(spread: float, rng: Generator) -> float:
    """One draw from a normal distribution with mean 0."""
    return spread * torch.randn((), generator=rng, device=rng.device).item()


def pick(items: Sequence, rng: Generator):
    """One element, all alike likely."""
    return items[int(torch.randint(len(items), (), generator=rng, device=rng.device))]


def smooth_noise(cell_mm: float, rng: Generator, channels: int = 1, shape: Sequence[int] = PATCH) -> Tensor:
    """Smooth noise of unit standard deviation: white noise on a coarse grid, interpolated.

    Parameters
    ----------
    cell_mm : float
        Distance of the grid's nodes, mm.
    rng : torch.Generator
    channels : int
    shape : sequence of int
        ``(z, y, x)`` at 2 mm.

    Returns
    -------
    torch.Tensor
        ``(1, channels, z, y, x)``.
    """
    coarse = [max(2, round(n * SPACING_MM / cell_mm) + 1) for n in shape]
    noise = torch.randn((1, channels, *coarse), generator=rng, device=rng.device)
    field = resize(noise, shape, corners=True)
    return field / field.std().clamp_min(1e-3)


def weights_along(short: int, long: int, corners: bool, device: torch.device) -> Tensor:
    """``(long, short)`` matrix that interpolates ``short`` samples linearly to ``long``."""
    unit = torch.eye(short, device=device)[None]
    return F.interpolate(unit, long, mode="linear", align_corners=corners)[0].T.contiguous()


def resize(volume: Tensor, shape: Sequence[int], corners: bool = False) -> Tensor:
    """Trilinear interpolation of ``(1, c, z, y, x)`` to another ``(z, y, x)``.

    Three small matrix products: several times faster on a CPU than ``F.interpolate``, with the same result.
    """
    depth, height, width = (
        weights_along(n, goal, corners, volume.device) for n, goal in zip(volume.shape[2:], shape, strict=True)
    )
    volume = height @ (volume @ width.T)
    return (depth @ volume.flatten(3)).unflatten(3, volume.shape[3:])


def blur(volume: Tensor, sigma: float | Sequence[float]) -> Tensor:
    """Gaussian blur of ``(1, c, z, y, x)``, zero beyond the edges; ``sigma`` in voxels, one or (z, y, x)."""
    sigmas = (sigma,) * 3 if isinstance(sigma, float | int) else sigma
    for axis, width in enumerate(sigmas, start=2):
        if width < 0.2:
            continue
        taps = [math.exp(-0.5 * (step / width) ** 2) for step in range(max(1, math.ceil(2.5 * width)) + 1)]
        total, n = 2 * sum(taps) - 1, volume.shape[axis]
        blurred = volume * (1 / total)
        for step, tap in enumerate(taps[1:n], start=1):  # shifted sums: three times faster than conv3d on a CPU
            blurred.narrow(axis, step, n - step).add_(volume.narrow(axis, 0, n - step), alpha=tap / total)
            blurred.narrow(axis, 0, n - step).add_(volume.narrow(axis, step, n - step), alpha=tap / total)
        volume = blurred
    return volume


def coarse_blur(volume: Tensor, sigma_mm: float) -> Tensor:
    """Wide Gaussian blur at half resolution: the same to the eye, an eighth of the time."""
    half = F.avg_pool3d(volume, 2)
    return resize(blur(half, sigma_mm / SPACING_MM / 2), volume.shape[2:])


def soft_step(values: Tensor, threshold: float, softness: float) -> Tensor:
    """Smooth step from 0 to 1 around ``threshold``."""
    return torch.sigmoid((values - threshold) / softness)


# --- geometry -------------------------------------------------------------------------------------------------------


def rotation_matrix(degrees: Sequence[float]) -> np.ndarray:
    """``(3, 3)`` rotation about x, then y, then z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        turn, (a, b) = np.eye(3), [i for i in range(3) if i != axis]
        turn[[a, b], [a, b]] = math.cos(angle)
        turn[a, b], turn[b, a] = -math.sin(angle), math.sin(angle)
        matrix = turn @ matrix
    return matrix


def random_affine(recipe: Recipe, rng: Generator) -> np.ndarray:
    """``(3, 3)`` matrix from patch millimetres to pose millimetres about the brain's centre."""
    rotation = rotation_matrix([normal(recipe.rotation_deg, rng) for _ in range(3)])
    size = uniform(*recipe.scale, rng)
    scale = np.diag([1 / (size * uniform(*recipe.axis_scale, rng)) for _ in range(3)])
    shear = np.eye(3)
    shear[np.triu_indices(3, 1)] = [normal(recipe.shear, rng) for _ in range(3)]
    return rotation @ shear @ scale


def patch_points(shape: Sequence[int] = PATCH, device: torch.device | str = "cpu") -> Tensor:
    """``(1, z, y, x, 3)`` millimetres (x, y, z) of the patch's voxels about its middle."""
    axes = [(torch.arange(n, device=device, dtype=torch.float32) - (n - 1) / 2) * SPACING_MM for n in shape]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    return torch.stack([x, y, z], dim=-1)[None]


def sample(volume: Tensor, points: Tensor, to_voxel: np.ndarray | None = None) -> Tensor:
    """Trilinear values of ``volume`` at points; zero outside.

    Parameters
    ----------
    volume : torch.Tensor
        ``(1, c, z, y, x)``.
    points : torch.Tensor
        ``(1, Z, Y, X, 3)`` coordinates (x, y, z).
    to_voxel : numpy.ndarray, optional
        ``(4, 4)``, from those coordinates to voxel indices (x, y, z) of ``volume``; else points are voxel indices.

    Returns
    -------
    torch.Tensor
        ``(1, c, Z, Y, X)``.
    """
    size = np.array(volume.shape[:1:-1])
    unit = np.diag([*(2 / size), 1.0])  # grid_sample wants -1 to 1 over the outer faces of the volume
    unit[:3, 3] = 1 / size - 1
    grid = apply_matrix(unit if to_voxel is None else unit @ to_voxel, points)
    return F.grid_sample(volume, grid, "bilinear", "zeros", align_corners=False)


def apply_matrix(matrix: np.ndarray, points: Tensor) -> Tensor:
    """Points ``(..., 3)`` through a ``(4, 4)`` matrix."""
    tensor = torch.as_tensor(matrix, dtype=torch.float32, device=points.device)
    return torch.addmm(tensor[:3, 3], points.reshape(-1, 3), tensor[:3, :3].T).view(points.shape)


def random_warp(rms_mm: float, rng: Generator, shape: Sequence[int] = PATCH, steps: int = 4) -> Tensor:
    """Diffeomorphic displacement by scaling and squaring a smooth random velocity.

    Parameters
    ----------
    rms_mm : float
        Root mean square of the velocity, mm.
    rng : torch.Generator
    shape : sequence of int
        ``(z, y, x)`` of the patch.
    steps : int
        Number of squarings.

    Returns
    -------
    torch.Tensor
        ``(1, z, y, x, 3)`` displacement (x, y, z), mm.
    """
    coarse = [n // 4 for n in shape]  # 8 mm suffices for so smooth a field
    velocity = smooth_noise(pick((24.0, 36.0, 50.0), rng) / 4, rng, 3, coarse) * (rms_mm / 2**steps)
    points = 4 * patch_points(coarse, rng.device)
    to_voxel = np.diag([*(1 / (4 * SPACING_MM),) * 3, 1.0])
    to_voxel[:3, 3] = [(n - 1) / 2 for n in reversed(coarse)]
    for _ in range(steps):
        velocity = velocity + sample(velocity, points + velocity.permute(0, 2, 3, 4, 1), to_voxel)
    return resize(velocity, shape).permute(0, 2, 3, 4, 1)


def random_points(head: Head, recipe: Recipe, rng: Generator) -> Tensor:
    """Pose millimetres that each voxel of the patch shows, ``(1, z, y, x, 3)``."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = random_affine(recipe, rng), head.center
    straight = apply_matrix(matrix, patch_points(device=rng.device))
    return straight + random_warp(uniform(*recipe.warp_mm, rng), rng)


# --- heads ----------------------------------------------------------------------------------------------------------


def make_source(head: Head, device: torch.device | str = "cpu") -> Source:
    """Tensors of a head, made once: labels at 1 mm, tissue fractions at 2 mm."""
    labels = torch.from_numpy(head.labels).to(device, torch.int32)
    brain = range(1, anatomy.LAST_BRAIN_LABEL + 1)
    white = anatomy.WHITE_MATTER + anatomy.HYPOINTENSITIES
    groups = (anatomy.EXTERNAL_CSF, anatomy.CORTEX, white, anatomy.VENTRICLES, anatomy.DEEP_GREY, brain)
    table = torch.zeros((len(groups), 256), device=device)
    for channel, group in enumerate(groups):
        table[channel, list(group)] = 1
    fractions = [F.avg_pool3d(row[labels][None, None], 2, ceil_mode=True) for row in table]
    source = Source(head, labels, torch.cat(fractions, dim=1))
    if head.image is None:
        return source
    means = tuple(float(head.image[head.labels == label].mean()) for label in (24, 3, 2))
    return replace(source, image=torch.from_numpy(head.image).to(device, torch.int32), image_means=means)


def class_means(rng: Generator) -> tuple[float, float, float]:
    """CSF, grey-matter and white-matter means of a T1w; white matter is the brightest and near 1.

    The contrast between grey and white matter runs from that of an old brain at 1.5 T to that of MP2RAGE.
    """
    white = 1.0
    csf = uniform(0.08, 0.42, rng)
    grey = csf + (white - csf) * uniform(0.42, 0.82, rng)
    return csf, grey, white


def intensity_table(means: tuple[float, float, float], rng: Generator) -> Tensor:
    """``(256,)`` intensity of every compact label.

    Deep grey nuclei lie between grey and white matter, the pallidum and thalamus nearest to white;
    what is outside the brain (202-230) is anything from air to fat.
    """
    csf, grey, white = means
    table = torch.zeros(256, device=rng.device)
    span = white - grey
    table[list(anatomy.VENTRICLES + anatomy.EXTERNAL_CSF)] = csf
    table[list(anatomy.WHITE_MATTER)] = white
    table[list(anatomy.CORTEX)] = grey
    table[list(anatomy.DEEP_GREY)] = grey + 0.15 * span
    for left, right, low, high in (
        (10, 49, 0.2, 0.75),  # thalamus
        (11, 50, 0.0, 0.35),  # caudate
        (12, 51, 0.1, 0.6),  # putamen
        (13, 52, 0.45, 1.0),  # pallidum
        (28, 60, 0.6, 1.0),  # ventral diencephalon
        (7, 46, 0.7, 1.02),  # cerebellar white matter
        (8, 47, -0.5, 0.2),  # cerebellar cortex, with dark folia too fine for the labels
    ):
        table[[left, right]] = grey + span * uniform(low, high, rng)
    table[16] = grey + span * uniform(0.6, 1.0, rng)  # brain stem
    table[list(anatomy.EXTERNAL_CSF)] = csf * uniform(0.8, 1.5, rng)  # holds vessels and membranes as well
    table[[30, 62]] = uniform(csf, 1.2, rng)  # vessels
    table[list(anatomy.HYPOINTENSITIES)] = uniform(grey - 0.2 * (grey - csf), white, rng)
    table[31], table[63] = (uniform(csf, grey, rng) for _ in range(2))  # choroid plexus
    outside = torch.rand(30, generator=rng, device=rng.device)
    table[anatomy.OUTSIDE_STORED : anatomy.OUTSIDE_STORED + 30] = outside * uniform(0.3, 1.4, rng)
    table[anatomy.FAR_CSF] = csf
    brain = table[1:200]
    spread = 0.02 * torch.randn(brain.shape, generator=rng, device=rng.device)
    table[1:200] = torch.where(brain > 0, (brain + spread).clamp_min(0.01), torch.full_like(brain, grey))
    return table


def real_curve(source: Source, means: tuple[float, float, float]) -> Tensor:
    """``(256,)`` curve that takes a real T1w's own class means to the drawn ones, piecewise linear."""
    curve = np.interp(np.arange(256), [0.0, *source.image_means, 255.0], [0.0, *means, means[2] * 1.3])
    return torch.from_numpy(curve.astype(np.float32)).to(source.image.device)


def average_pairs(volume: Tensor) -> Tensor:
    """Mean of each 2 x 2 x 2 block at stride 1, one voxel shorter per axis (``avg_pool3d`` is five times slower)."""
    for axis in range(3):
        n = volume.shape[axis] - 1
        volume = volume.narrow(axis, 0, n) + volume.narrow(axis, 1, n)
    return volume / 8


def render(source: Source, points: Tensor, means: tuple[float, float, float], rng: Generator) -> Tensor:
    """Intensities at pose millimetres, averaged over each 2 mm voxel; ``(1, 1, z, y, x)``.

    Averaging 2 x 2 x 2 voxels of 1 mm before sampling is what nnU-Net's trilinear resampling from 1 to 2 mm does.
    """
    if source.image is None:
        index, table = source.labels, intensity_table(means, rng)
    else:
        index, table = source.image, real_curve(source, means)
    volume = table.index_select(0, index.flatten()).view(index.shape)  # seven times faster than table[index]
    return sample(average_pairs(volume)[None, None], points, _HALF_VOXEL @ source.head.pose_to_voxel)


def draw_tissue(source: Source, recipe: Recipe, rng: Generator) -> Tissue:
    """Warp one head onto the patch and give it T1w intensities."""
    points = random_points(source.head, recipe, rng)
    means = class_means(rng)
    image = render(source, points, means, rng)
    halved = np.diag([0.5, 0.5, 0.5, 1.0]) @ _HALF_VOXEL
    fractions = sample(source.fractions, points, halved @ source.head.pose_to_voxel)
    return Tissue(image, fractions, points, *means)


def with_texture(tissue: Tissue, rng: Generator) -> Tensor:
    """Intensities with slow variation inside grey and white matter and fine texture everywhere."""
    slow = smooth_noise(uniform(12, 40, rng), rng, 2) * uniform(0.0, 0.09, rng)
    inside = torch.cat([tissue.share(GREY), tissue.share(WHITE)], dim=1)
    fine = smooth_noise(uniform(3, 7, rng), rng) * uniform(0.0, 0.05, rng)
    return tissue.image * (1 + (slow * inside).sum(dim=1, keepdim=True) + fine)


# --- what is not a lesion -------------------------------------------------------------------------------------------


def atrophy(image: Tensor, tissue: Tissue, rng: Generator) -> Tensor:
    """Wide sulci and large ventricles: brain next to CSF becomes CSF, unevenly over the brain."""
    uneven = 1 + 0.3 * smooth_noise(35.0, rng)
    for channel, reach_mm in ((CSF, uniform(2.0, 3.5, rng)), (VENTRICLE, uniform(2.5, 5.0, rng))):
        near = coarse_blur(tissue.share(channel), reach_mm) * uneven
        share = soft_step(near, uniform(0.3, 0.6, rng), 0.03)
        image = image + share * (tissue.csf - image).clamp(max=0) * 0.9
    return image


def leukoaraiosis(image: Tensor, tissue: Tissue, rng: Generator) -> Tensor:
    """Dark white matter around the ventricles and in spots, as in small vessel disease."""
    white = tissue.share(WHITE)
    ventricle = coarse_blur(tissue.share(VENTRICLE), uniform(4.0, 9.0, rng))
    caps = soft_step(ventricle + 0.06 * smooth_noise(12.0, rng), uniform(0.12, 0.4, rng), 0.03)
    spots = soft_step(smooth_noise(uniform(6.0, 12.0, rng), rng), uniform(2.2, 3.5, rng), 0.15)
    amount = torch.maximum(caps, spots) * white.clamp(0, 1) * uniform(0.1, 1.0, rng)
    floor = tissue.grey - 0.25 * (tissue.grey - tissue.csf)
    return image + amount * (floor - image).clamp(max=0)


def perivascular_spaces(image: Tensor, tissue: Tissue, rng: Generator) -> Tensor:
    """CSF-like points up to about 4 mm in white matter and nuclei."""
    where = (tissue.share(WHITE) + tissue.share(DEEP)).clamp(0, 1)
    points = torch.rand(image.shape, generator=rng, device=rng.device) < uniform(1e-5, 4e-4, rng)
    size = uniform(0.4, 0.75, rng)
    dots = (blur(points.float(), size) * (size * 2.5) ** 3).clamp(0, 1) * where
    return image + dots * (tissue.csf - image) * uniform(0.2, 0.8, rng)


def vessels(image: Tensor, tissue: Tissue, rng: Generator) -> Tensor:
    """Bright or dark vessels and membranes in the CSF around the brain."""
    ridge = smooth_noise(uniform(5.0, 10.0, rng), rng).abs()
    lines = soft_step(-ridge, -0.12, 0.04) * tissue.share(CSF)
    return image + lines * (uniform(0.05, 1.2, rng) - image) * uniform(0.0, 0.9, rng)


def add_distractors(image: Tensor, tissue: Tissue, rng: Generator) -> Tensor:
    """What a healthy or merely old brain shows and the model must leave alone."""
    for effect, probability in ((vessels, 0.6), (leukoaraiosis, 0.5), (atrophy, 0.6), (perivascular_spaces, 0.35)):
        if chance(probability, rng):
            image = effect(image, tissue, rng)
    return image


# --- lesions --------------------------------------------------------------------------------------------------------


def stratify(lesions: Sequence[LesionMask]) -> tuple[list[LesionMask], ...]:
    """Lesions in four strata by volume: up to 5, 15, 70 mL, and above. Empty strata are left out."""
    edges = (0.0, 5.0, 15.0, 70.0, math.inf)
    strata = [[m for m in lesions if low < m.volume_ml <= high] for low, high in pairwise(edges)]
    return tuple(stratum for stratum in strata if stratum)


def pick_lesion(strata: Sequence[Sequence[LesionMask]], rng: Generator) -> LesionMask:
    """A lesion from a random stratum; large ones come more often than in the cohort they stem from."""
    weights = np.cumsum((0.12, 0.23, 0.35, 0.30)[-len(strata) :])
    index = np.searchsorted(weights, uniform(0, weights[-1], rng), side="right")
    return pick(strata[min(int(index), len(strata) - 1)], rng)


def lesion_matrix(lesion: LesionMask, flip: bool, rng: Generator) -> np.ndarray:
    """``(4, 4)`` from MNI millimetres of the head at hand to voxels of the lesion mask.

    The lesion is turned, scaled and shifted about its own middle; ``flip`` puts it into the other hemisphere.
    """
    center = lesion.center * [-1 if flip else 1, 1, 1]
    turn = rotation_matrix([normal(8, rng) for _ in range(3)])
    linear = turn @ np.diag([1 / uniform(0.85, 1.15, rng) for _ in range(3)])
    moved = np.eye(4)
    moved[:3, :3] = linear
    moved[:3, 3] = center - linear @ (center + [normal(4, rng) for _ in range(3)])
    mirror = np.diag([-1.0 if flip else 1.0, 1, 1, 1])
    return lesion.mni_to_voxel @ mirror @ moved


def place_lesion(lesion: LesionMask, head: Head, tissue: Tissue, rng: Generator, flip: bool | None = None) -> Tensor:
    """Lesion mask on the patch, ``(1, 1, z, y, x)`` from 0 to 1, clipped to brain tissue.

    Parameters
    ----------
    lesion : LesionMask
    head : Head
    tissue : Tissue
        The warped head.
    rng : torch.Generator
    flip : bool, optional
        Whether to mirror the lesion into the other hemisphere; drawn if not given.
    """
    flip = chance(0.5, rng) if flip is None else flip
    matrix = lesion_matrix(lesion, flip, rng) @ head.pose_to_mni
    wobble = smooth_noise(uniform(10, 25, rng), rng, 3).permute(0, 2, 3, 4, 1) * uniform(0.3, 2.0, rng)
    mask = torch.from_numpy(lesion.mask).to(rng.device, torch.float32)[None, None]
    placed = sample(blur(mask, 0.7), tissue.points + wobble, matrix)
    cistern = coarse_blur(tissue.share(CSF), 2.5) > 0.6
    keep = (tissue.share(BRAIN) > 0.9) & (tissue.share(VENTRICLE) < 0.5) & ~cistern
    return placed * keep


def chronic(image: Tensor, mask: Tensor, tissue: Tissue, rng: Generator) -> Tensor:
    """A cavity of nearly CSF with a gliotic rim; strands of tissue may survive inside."""
    inner = blur(mask, uniform(0.6, 2.0, rng)) + uniform(0.02, 0.12, rng) * smooth_noise(uniform(6, 14, rng), rng)
    core = soft_step(inner, uniform(0.35, 0.75, rng), 0.06) * mask
    fluid = tissue.csf + uniform(-0.03, 0.25, rng) * (tissue.grey - tissue.csf)
    glial = tissue.csf + uniform(0.45, 0.95, rng) * (tissue.grey - tissue.csf)
    rim_strength = uniform(0.4, 1.0, rng)
    rimmed = image + mask * rim_strength * (glial - image).clamp(max=0)
    return rimmed + core * (fluid - rimmed)


def darkened(image: Tensor, mask: Tensor, tissue: Tissue, amount: float, rng: Generator) -> Tensor:
    """Tissue moved towards CSF by ``amount`` (0-1) with uneven texture, as in subacute infarcts and gliosis."""
    texture = (1 + 0.25 * smooth_noise(uniform(5, 16, rng), rng)).clamp(0.3, 1.7)
    return image + mask * amount * texture * (tissue.csf - image).clamp(max=0)


def paint_lesion(image: Tensor, mask: Tensor, tissue: Tissue, rng: Generator) -> Tensor:
    """Draw one lesion of a random age and return the image with it."""
    soft = blur(mask, uniform(0.3, 1.0, rng))
    kind = uniform(0, 1, rng)
    if kind < 0.5:
        return chronic(image, soft, tissue, rng)
    amount = uniform(0.35, 0.85, rng) if kind < 0.85 else uniform(0.2, 0.35, rng)
    return darkened(image, soft, tissue, amount, rng)


def add_lesions(
    image: Tensor, tissue: Tissue, head: Head, lesions: Sequence[LesionMask], rng: Generator
) -> tuple[Tensor, Tensor]:
    """Place and paint lesions; returns the image and the joint mask from 0 to 1.

    A lesion that changes next to nothing (in a wide sulcus, say) is left out: nobody could mark it.
    """
    joint = torch.zeros_like(image)
    for lesion in lesions:
        mask = place_lesion(lesion, head, tissue, rng)
        painted = paint_lesion(image, mask, tissue, rng)
        darkening = ((image - painted) * mask).sum() / mask.sum().clamp_min(1.0)
        if darkening > MIN_CONTRAST * (tissue.white - tissue.csf):
            image, joint = painted, torch.maximum(joint, mask)
    return image, joint


def draw_lesions(strata: Sequence[Sequence[LesionMask]], recipe: Recipe, rng: Generator) -> list[LesionMask]:
    """No lesion for a healthy scan, else one to three."""
    if chance(recipe.healthy, rng):
        return []
    count = 1 + chance(recipe.several, rng) + chance(recipe.several, rng)
    return [pick_lesion(strata, rng) for _ in range(count)]


# --- the scanner and what comes after it ----------------------------------------------------------------------------


def extraction_mask(tissue: Tissue, rng: Generator) -> Tensor:
    """Brain mask as a tool would draw it: too wide here, too tight there; from 0 to 1 with soft edges."""
    wide = coarse_blur(tissue.share(BRAIN), 4.0)
    uneven = smooth_noise(uniform(20, 60, rng), rng) * uniform(0.0, 0.1, rng)
    # 0.5 is the edge itself; below it the mask takes dura and skull in, above it cuts cortex off
    threshold = uniform(0.3, 0.68, rng)
    return F.hardtanh((wide + uneven - threshold) / 0.12 + 0.5, 0.0, 1.0)  # exactly 0 outside, as a mask leaves it


def thick_slices(image: Tensor, recipe: Recipe, rng: Generator) -> Tensor:
    """Average over thick slices in one random direction and interpolate back."""
    axis = pick((0, 1, 2), rng)
    thickness = uniform(*recipe.slice_mm, rng)
    shape = list(image.shape[2:])
    coarse = list(shape)
    coarse[axis] = max(2, round(shape[axis] * SPACING_MM / thickness))
    slices = F.interpolate(image, coarse, mode="area")
    return resize(slices, shape)


def acquire(image: Tensor, recipe: Recipe, rng: Generator) -> Tensor:
    """Resolution, bias field, ringing and Rician noise."""
    if chance(recipe.thick_slices, rng):
        image = thick_slices(image, recipe, rng)
    elif chance(0.5, rng):
        image = blur(image, [uniform(0.0, 0.7, rng) for _ in range(3)])
    elif chance(0.3, rng):
        image = image + uniform(0.2, 0.8, rng) * (image - blur(image, 0.7))  # sharpening and ringing
    image = image * torch.exp(smooth_noise(uniform(50, 120, rng), rng) * uniform(0.0, 0.12, rng))
    low, high = recipe.noise
    spread = low + (high - low) * uniform(0, 1, rng) ** 2
    noise = spread * torch.randn((2, *image.shape), generator=rng, device=rng.device)
    if chance(0.5, rng):  # denoised or resampled scans have correlated noise
        noise = torch.stack([blur(part, 0.5) for part in noise])
    return torch.sqrt((image + noise[0]) ** 2 + noise[1] ** 2)


def zscore(image: Tensor, mask: Tensor) -> Tensor:
    """Zero mean and unit variance inside the mask, faded to zero at its soft edge, as nnU-Net sees a scan."""
    inside = image[mask > 0.5]
    return (image - inside.mean()) / inside.std().clamp_min(1e-6) * mask


def recenter(volumes: Tensor, mask: Tensor, jitter: Sequence[int]) -> Tensor:
    """Shift ``(n, c, z, y, x)`` so that the mask's bounding box sits in the middle, ``jitter`` voxels off."""
    shifts = []
    for axis in (2, 3, 4):
        hit = torch.nonzero((mask > 0.5).any(dim=[a for a in (0, 1, 2, 3, 4) if a != axis]))
        shifts.append(round((volumes.shape[axis] - 1 - int(hit.min()) - int(hit.max())) / 2) + jitter[axis - 2])
    return torch.roll(volumes, shifts, (2, 3, 4))


def synthesize(
    source: Source, strata: Sequence[Sequence[LesionMask]], recipe: Recipe, rng: Generator
) -> SynthScan:
    """One synthetic scan.

    Parameters
    ----------
    source : Source
        The head.
    strata : sequence of sequences of LesionMask
        Lesions to draw from, by volume (see ``stratify``).
    recipe : Recipe
    rng : torch.Generator
        The only source of randomness: the same state gives the same scan.

    Returns
    -------
    SynthScan
    """
    lesions = draw_lesions(strata, recipe, rng)
    return synthesize_with(source, lesions, recipe, rng)


def synthesize_with(source: Source, lesions: Sequence[LesionMask], recipe: Recipe, rng: Generator) -> SynthScan:
    """One synthetic scan with exactly these lesions (none: healthy); see ``synthesize``."""
    tissue = draw_tissue(source, recipe, rng)
    image = add_distractors(with_texture(tissue, rng), tissue, rng)
    image, lesion = add_lesions(image, tissue, source.head, lesions, rng)
    image = acquire(image, recipe, rng)
    image = image.clamp_min(1e-4) ** math.exp(normal(0.2, rng))
    mask = extraction_mask(tissue, rng)
    target = ((lesion > 0.5) & (mask > 0.5)).float()
    jitter = [pick(range(-recipe.jitter_voxels, recipe.jitter_voxels + 1), rng) for _ in range(3)]
    scan, target = recenter(torch.cat([zscore(image, mask), target]), mask, jitter)
    return SynthScan(scan, target.to(torch.uint8), source.head.name, "+".join(m.name for m in lesions))
