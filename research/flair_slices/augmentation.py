"""Slices that nobody has scanned: other poses, shapes, scanners, and lesions of other patients.

All functions take and return batches ``(n, 1, rows, columns)`` and draw from a generator that is handed in.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

#: Half of the slices get each of these; the App's pose is rigid, not the MNI normalisation of the slices: heads differ
#: in size and shape from MNI by about a tenth.
SCALE = (0.85, 1.2)
ASPECT = 0.1
DEGREES = 12.0
SHIFT_PX = 8.0
ELASTIC_PX, ELASTIC_CELL = 4.0, 24
#: How far the mirror may be off the true midline, as in a pose that is not perfect.
MIRROR_SHIFT_PX = 2.0
PASTE = 0.25


@dataclass(frozen=True)
class Batch:
    """Slices and what is known of them.

    Attributes
    ----------
    image : torch.Tensor
        ``(n, 1, rows, columns)``, z-scored.
    lesion, ignored : torch.Tensor
        The same shape, 0 to 1.
    """

    image: Tensor
    lesion: Tensor
    ignored: Tensor

    def __len__(self) -> int:
        return len(self.image)


def augmented(batch: Batch, donors: Batch, mirrored: bool, rng: Generator) -> tuple[Tensor, Batch]:
    """Network input ``(n, 2, rows, columns)`` and the changed batch.

    Parameters
    ----------
    donors : Batch
        As many slices of the same plane whose visible lesions are pasted in.
    mirrored : bool
        Whether the plane has another side.
    """
    batch = _pasted(batch, donors, rng)
    if mirrored:
        batch = _flipped(batch, rng)
        other = _shifted(batch.image.flip(-1), MIRROR_SHIFT_PX, rng)
    else:
        other = torch.zeros_like(batch.image)
    grid = _grid(batch, rng)
    brain = (batch.image != 0).float()
    stack = torch.cat([batch.image, other, brain, batch.lesion, batch.ignored], dim=1)
    moved = F.grid_sample(stack, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    image, other, brain, lesion, ignored = (moved[:, channel : channel + 1] for channel in range(5))
    seen = _scanned(torch.cat([image, other], dim=1), brain > 0.5, rng)
    return seen, Batch(seen[:, :1], (lesion > 0.5).float(), (ignored > 0.5).float())


def plain(image: Tensor, mirrored: bool) -> Tensor:
    """Network input of slices as they are: ``(n, 1, rows, columns)`` to ``(n, 2, rows, columns)``."""
    return torch.cat([image, image.flip(-1) if mirrored else torch.zeros_like(image)], dim=1)


def _pasted(batch: Batch, donors: Batch, rng: Generator) -> Batch:
    """Some slices with the lesion of another patient at its place, seamlessly: what it adds to its own surroundings."""
    chosen = torch.rand(len(batch), 1, 1, 1, generator=rng) < PASTE
    soft = F.avg_pool2d(F.max_pool2d(donors.lesion, 3, 1, 1), 3, 1, 1)
    around = (F.max_pool2d(donors.lesion, 15, 1, 7) - F.max_pool2d(donors.lesion, 5, 1, 2)) * (donors.image != 0)
    level = (donors.image * around).sum((1, 2, 3), keepdim=True) / around.sum((1, 2, 3), keepdim=True).clamp_min(1)
    brain = (batch.image != 0).float()
    here = (batch.image * around * brain).sum((1, 2, 3), keepdim=True)
    here = here / (around * brain).sum((1, 2, 3), keepdim=True).clamp_min(1)
    strength = 0.5 + 0.7 * torch.rand(len(batch), 1, 1, 1, generator=rng)
    new = batch.image * (1 - soft) + soft * (here + strength * (donors.image - level))
    weight = chosen.float() * brain
    image = torch.where(weight > 0, new, batch.image)
    pasted = donors.lesion * weight
    lesion = torch.maximum(batch.lesion, pasted)
    return Batch(image, lesion, batch.ignored * (1 - pasted))


def _flipped(batch: Batch, rng: Generator) -> Batch:
    chosen = torch.rand(len(batch), 1, 1, 1, generator=rng) < 0.5

    def flip(values: Tensor) -> Tensor:
        return torch.where(chosen, values.flip(-1), values)

    return Batch(flip(batch.image), flip(batch.lesion), flip(batch.ignored))


def _shifted(image: Tensor, pixels: float, rng: Generator) -> Tensor:
    """Each slice moved along its rows by up to `pixels`."""
    n, _, rows, columns = image.shape
    theta = torch.eye(2, 3).repeat(n, 1, 1)
    theta[:, 0, 2] = _within(n, pixels, rng) * 2 / columns
    grid = F.affine_grid(theta, [n, 1, rows, columns], align_corners=False)
    return F.grid_sample(image, grid, mode="bilinear", align_corners=False)


def _grid(batch: Batch, rng: Generator) -> Tensor:
    """Sampling grid of a random affine and elastic change of each slice."""
    n, _, rows, columns = batch.image.shape
    angle = torch.deg2rad(_within(n, DEGREES, rng) * _half(n, rng))
    scale = torch.exp(torch.empty(n).uniform_(*torch.log(torch.tensor(SCALE)).tolist(), generator=rng) * _half(n, rng))
    aspect = torch.exp(_within(n, ASPECT, rng) * _half(n, rng))
    theta = torch.zeros(n, 2, 3)
    ratio = rows / columns  # grids reach from -1 to 1 along either side
    theta[:, 0, 0] = torch.cos(angle) * scale * aspect
    theta[:, 0, 1] = -torch.sin(angle) * scale * ratio
    theta[:, 1, 0] = torch.sin(angle) * scale / ratio
    theta[:, 1, 1] = torch.cos(angle) * scale / aspect
    theta[:, 0, 2] = _within(n, SHIFT_PX, rng) * 2 / columns
    theta[:, 1, 2] = _within(n, SHIFT_PX, rng) * 2 / rows
    grid = F.affine_grid(theta, [n, 1, rows, columns], align_corners=False)
    nodes = torch.randn(n, 2, rows // ELASTIC_CELL + 3, columns // ELASTIC_CELL + 3, generator=rng)
    bend = F.interpolate(nodes, (rows, columns), mode="bicubic", align_corners=True)
    size = ELASTIC_PX * torch.rand(n, 1, 1, 1, generator=rng) * _half(n, rng)[:, None, None, None] / 2
    return grid + (bend * size * torch.tensor([2 / columns, 2 / rows])[None, :, None, None]).permute(0, 2, 3, 1)


def _scanned(image: Tensor, brain: Tensor, rng: Generator) -> Tensor:
    """Other blur, thick slices, bias field, contrast and noise; both channels alike, z-scored anew, zero outside."""
    n, _, rows, columns = image.shape
    tissue = torch.cat([brain, image[:, 1:] != 0], dim=1).float()
    image = _blurred(image, rng)
    field = F.interpolate(torch.randn(n, 1, 4, 4, generator=rng), (rows, columns), mode="bicubic", align_corners=True)
    image = image + 0.25 * field * _half(n, rng)[:, None, None, None] * torch.rand(n, 1, 1, 1, generator=rng)
    power = torch.exp(_within(n, 0.35, rng) * _half(n, rng))[:, None, None, None]
    image = torch.sign(image) * torch.abs(image).clamp_min(1e-4) ** power
    noise = 0.25 * torch.rand(n, 1, 1, 1, generator=rng) * _half(n, rng)[:, None, None, None]
    image = image + noise * torch.randn(image.shape, generator=rng)
    inside = tissue[:, :1]
    count = inside.sum((1, 2, 3), keepdim=True).clamp_min(1)
    mean = (image[:, :1] * inside).sum((1, 2, 3), keepdim=True) / count
    spread = (((image[:, :1] - mean) ** 2 * inside).sum((1, 2, 3), keepdim=True) / count).sqrt().clamp_min(1e-3)
    shift = _within(n, 0.25, rng)[:, None, None, None]
    gain = torch.exp(_within(n, 0.2, rng))[:, None, None, None]
    return ((image - mean) / spread * gain + shift) * tissue


def _blurred(image: Tensor, rng: Generator) -> Tensor:
    """A third of the slices on coarser pixels, along rows or columns or both, as thick slices make them."""
    rows, columns = image.shape[2:]
    kind = torch.randint(9, (len(image),), generator=rng)
    factor = 1 + 4 * torch.rand(len(image), generator=rng)
    out = []
    for one, way, by in zip(image, kind.tolist(), factor.tolist(), strict=True):
        if way > 2:
            out.append(one)
            continue
        size = (rows if way == 1 else round(rows / by), columns if way == 0 else round(columns / by))
        coarse = F.interpolate(one[None], size, mode="area")
        out.append(F.interpolate(coarse, (rows, columns), mode="bilinear", align_corners=False)[0])
    return torch.stack(out)


def _within(count: int, limit: float, rng: Generator) -> Tensor:
    """``(count,)`` uniform draws between -limit and limit."""
    return (2 * torch.rand(count, generator=rng) - 1) * limit


def _half(count: int, rng: Generator) -> Tensor:
    """``(count,)``: 1 for about half, 0 for the others."""
    return (torch.rand(count, generator=rng) < 0.5).float()
