"""From a head to the healthy tissue of one synthetic brain, in T1w and in FLAIR.

Intensities are drawn anew per label (Billot et al. 2023, Medical Image Analysis 86), but not independently: white
matter is the brightest tissue of a T1w, grey matter that of a FLAIR, and fluid is dark in both. The ranges of the
FLAIR hold those measured in real ones (`benchmarks.synthesis_fit` draws the comparison).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from bids_app.training import anatomy
from bids_app.training.anatomy import Head
from bids_app.training.synthesis.fields import sample, smooth_noise, uniform

CSF, GREY, WHITE, VENTRICLE, DEEP, BRAIN = range(6)
"""Channels of the fractions sampled beside the intensities."""

T1W, FLAIR = range(2)
"""Channels of the intensities."""

_HALF_VOXEL = np.array([[1, 0, 0, -0.5], [0, 1, 0, -0.5], [0, 0, 1, -0.5], [0, 0, 0, 1.0]])
"""Averaging pairs of voxels moves the grid by half a voxel."""

#: Left and right label, and the range in which the structure lies between grey (0) and white matter (1) in a T1w.
_BETWEEN_GREY_AND_WHITE = (
    (10, 49, 0.2, 0.75),  # thalamus
    (11, 50, 0.0, 0.35),  # caudate
    (12, 51, 0.1, 0.6),  # putamen
    (13, 52, 0.45, 1.0),  # pallidum
    (28, 60, 0.6, 1.0),  # ventral diencephalon
    (7, 46, 0.7, 1.02),  # cerebellar white matter
    (8, 47, -0.5, 0.2),  # cerebellar cortex, with dark folia too fine for the labels
    (16, 16, 0.6, 1.0),  # brain stem
)


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

    def to(self, device: str) -> Source:
        """The same on another device."""
        image = None if self.image is None else self.image.to(device)
        return replace(self, labels=self.labels.to(device), fractions=self.fractions.to(device), image=image)


@dataclass(frozen=True)
class Means:
    """Mean intensity of each tissue class in the contrasts, ``(1, contrasts, 1, 1, 1)`` each."""

    csf: Tensor
    grey: Tensor
    white: Tensor

    def of(self, contrast: int) -> tuple[float, float, float]:
        """CSF, grey and white matter in one contrast."""
        return tuple(float(tissue[0, contrast]) for tissue in (self.csf, self.grey, self.white))


@dataclass(frozen=True)
class Tissue:
    """What one warped head looks like on the patch, float32.

    Attributes
    ----------
    image : torch.Tensor
        ``(1, 2, z, y, x)``: T1w and FLAIR.
    fractions : torch.Tensor
        ``(1, 6, z, y, x)``, 0-1.
    points : torch.Tensor
        ``(1, z, y, x, 3)``, pose millimetres that each voxel shows.
    means : Means
    """

    image: Tensor
    fractions: Tensor
    points: Tensor
    means: Means

    def share(self, channel: int) -> Tensor:
        """One channel of the fractions, ``(1, 1, z, y, x)``."""
        return self.fractions[:, channel : channel + 1]


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


def draw_means(rng: Generator) -> Means:
    """Class means of a T1w and of a FLAIR; white matter is 1 in both.

    In the T1w the contrast between grey and white matter runs from that of an old brain at 1.5 T to that of MP2RAGE; in
    the FLAIR grey matter is the brighter one and fluid is suppressed, more or less.
    """
    dark = uniform(0.08, 0.42, rng)
    grey = dark + (1 - dark) * uniform(0.42, 0.82, rng)
    suppressed, bright = uniform(0.03, 0.35, rng), uniform(1.0, 1.4, rng)
    columns = zip((dark, suppressed), (grey, bright), (1.0, 1.0), strict=True)
    csf, grey, white = torch.tensor(list(columns), device=rng.device).T
    return Means(*(tissue.reshape(1, -1, 1, 1, 1) for tissue in (csf, grey, white)))


def _classes(means: tuple[float, float, float], rng: Generator) -> Tensor:
    """``(256,)`` intensities of fluid, grey and white matter, and of what lies between the two."""
    csf, grey, white = means
    table = torch.zeros(256, device=rng.device)
    table[list(anatomy.VENTRICLES)] = csf
    table[list(anatomy.WHITE_MATTER)] = white
    table[list(anatomy.CORTEX)] = grey
    table[list(anatomy.DEEP_GREY)] = grey + 0.15 * (white - grey)
    for left, right, low, high in _BETWEEN_GREY_AND_WHITE:
        table[[left, right]] = grey + (white - grey) * uniform(low, high, rng)
    return table


def t1w_table(means: tuple[float, float, float], rng: Generator) -> Tensor:
    """``(256,)`` T1w intensity of every compact label.

    Deep grey nuclei lie between grey and white matter, the pallidum and thalamus nearest to white;
    what is outside the brain (202-230) is anything from air to fat.
    """
    csf, grey, white = means
    table = _classes(means, rng)
    table[list(anatomy.EXTERNAL_CSF)] = csf * uniform(0.8, 1.5, rng)  # holds vessels and membranes as well
    table[[30, 62]] = uniform(csf, 1.2, rng)  # vessels
    table[list(anatomy.HYPOINTENSITIES)] = uniform(grey - 0.2 * (grey - csf), white, rng)
    table[31], table[63] = (uniform(csf, grey, rng) for _ in range(2))  # choroid plexus
    return _finish(table, means, rng)


def flair_table(means: tuple[float, float, float], rng: Generator) -> Tensor:
    """``(256,)`` FLAIR intensity of every compact label; the hypointensities of a T1w are bright here."""
    csf, grey, white = means
    table = _classes(means, rng)
    table[[13, 52]] = white * uniform(0.75, 1.0, rng)  # pallidum: iron makes it dark
    table[list(anatomy.EXTERNAL_CSF)] = csf * uniform(0.9, 2.2, rng)
    table[[30, 62]] = uniform(0.0, csf, rng)  # vessels: flow voids
    table[list(anatomy.HYPOINTENSITIES)] = white * uniform(1.0, 1.6, rng)
    table[31], table[63] = (uniform(csf, grey, rng) for _ in range(2))  # choroid plexus
    return _finish(table, means, rng)


def _finish(table: Tensor, means: tuple[float, float, float], rng: Generator) -> Tensor:
    """Far CSF, what is outside the brain, and a small difference between all labels."""
    table[anatomy.FAR_CSF] = means[0]
    outside = torch.rand(30, generator=rng, device=rng.device)
    table[anatomy.OUTSIDE_STORED : anatomy.OUTSIDE_STORED + 30] = outside * uniform(0.3, 1.4, rng)
    brain = table[1:200]
    spread = 0.02 * torch.randn(brain.shape, generator=rng, device=rng.device)
    table[1:200] = torch.where(brain > 0, (brain + spread).clamp_min(0.01), torch.full_like(brain, means[1]))
    return table


def real_curves(source: Source, means: Means) -> Tensor:
    """``(256, 2)`` curves that take a real T1w's own class means to the drawn ones of each contrast, piecewise linear.

    That of the FLAIR rises from fluid to grey matter and falls towards white matter: fine texture is that of the T1w.
    """
    knots = [0.0, *source.image_means, 255.0]
    t1w, flair = means.of(T1W), means.of(FLAIR)
    curves = [
        np.interp(np.arange(256), knots, [0.0, *t1w, t1w[2] * 1.3]),
        np.interp(np.arange(256), knots, [0.0, *flair, flair[2] * 0.9]),
    ]
    return torch.from_numpy(np.stack(curves, axis=1).astype(np.float32)).to(source.image.device)


def average_pairs(volume: Tensor) -> Tensor:
    """Mean of each 2 x 2 x 2 block at stride 1, one voxel shorter per axis (``avg_pool3d`` is five times slower)."""
    for axis in range(-3, 0):
        n = volume.shape[axis] - 1
        volume = volume.narrow(axis, 0, n) + volume.narrow(axis, 1, n)
    return volume.div_(8)


def render(source: Source, points: Tensor, means: Means, rng: Generator) -> Tensor:
    """T1w and FLAIR intensities at pose millimetres, averaged over each 2 mm voxel; ``(1, 2, z, y, x)``.

    Averaging 2 x 2 x 2 voxels of 1 mm before sampling is what nnU-Net's trilinear resampling from 1 to 2 mm does.
    """
    if source.image is None:
        index = source.labels
        tables = torch.stack([t1w_table(means.of(T1W), rng), flair_table(means.of(FLAIR), rng)])
    else:
        index, tables = source.image, real_curves(source, means).T
    volume = torch.empty((len(tables), index.numel()), device=index.device)
    for row, table in zip(volume, tables, strict=True):
        torch.index_select(table, 0, index.flatten(), out=row)  # seven times faster than table[index]
    mean = average_pairs(volume.view(-1, *index.shape))
    return sample(mean[None], points, _HALF_VOXEL @ source.head.pose_to_voxel)


def draw_tissue(source: Source, points: Tensor, rng: Generator) -> Tissue:
    """Give one warped head its T1w and FLAIR intensities."""
    means = draw_means(rng)
    image = render(source, points, means, rng)
    halved = np.diag([0.5, 0.5, 0.5, 1.0]) @ _HALF_VOXEL
    fractions = sample(source.fractions, points, halved @ source.head.pose_to_voxel)
    return Tissue(image, fractions, points, means)


def with_texture(tissue: Tissue, rng: Generator) -> Tensor:
    """Intensities with slow variation inside grey and white matter and fine texture everywhere, ``(1, 2, z, y, x)``."""
    textured = []
    for contrast, strongest in ((T1W, 0.09), (FLAIR, 0.12)):
        slow = smooth_noise(uniform(12, 40, rng), rng, 2) * uniform(0.0, strongest, rng)
        inside = torch.cat([tissue.share(GREY), tissue.share(WHITE)], dim=1)
        fine = smooth_noise(uniform(3, 7, rng), rng) * uniform(0.0, 0.05, rng)
        factor = 1 + (slow * inside).sum(dim=1, keepdim=True) + fine
        textured.append(tissue.image[:, contrast : contrast + 1] * factor)
    return torch.cat(textured, dim=1)
