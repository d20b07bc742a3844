"""Sliding-window inference with Gaussian weights and mirroring, with the numbers of nnU-Net 2.8.

The window moves by half a patch (or a little less, so that the last window ends at the border), every window's logits
are averaged over all mirrored versions and weighted with a Gaussian of sigma = patch / 8, and the weighted mean over
the windows is returned (Isensee et al., Nature Methods 2021, supplement). Against nnU-Net, sums are kept in fp32
instead of fp16, and a linear reduction of the logits can be applied before they are summed, which for two classes
halves memory without changing the result.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from bids_app.errors import VisitError
from bids_app.networks.device import MEMORY_HINT, release_memory
from bids_app.networks.engine import Engine

#: A linear map of logits, shape (n, outputs, *spatial), to fewer channels.
Reduction = Callable[[torch.Tensor], torch.Tensor]

#: Slices of a 2-d network that run as one batch.
SLICES_AT_ONCE = 8

SIGMA_OF_PATCH = 1 / 8


@torch.inference_mode()
def predict_logits(
    engine: Engine,
    volume: np.ndarray | torch.Tensor,
    patch_size: Sequence[int],
    mirror_axes: Sequence[int] = (),
    reduce: Reduction | None = None,
    step: float = 0.5,
    multiple: int = 1,
) -> torch.Tensor:
    """Logits of a whole volume.

    Parameters
    ----------
    engine : Engine
    volume : ndarray or Tensor, shape (channels, x, y, z)
        Preprocessed scan. With a patch size of two entries every slice along x is predicted by itself.
    patch_size : sequence of int
        Two or three entries. A smaller volume is padded with zeros on both sides and cropped back.
    mirror_axes : sequence of int
        Spatial axes of the patch over whose flips, in every combination, the logits are averaged.
    reduce : callable, optional
        Linear map over the channels of the logits, for memory's sake.
    step : float
        Largest step between windows, in patches, in (0, 1].
    multiple : int
        The sides of a 3-d network's volume are padded likewise to whole multiples of this.

    Returns
    -------
    Tensor, shape (outputs or what `reduce` leaves, x, y, z), float32, on the CPU or the engine's device

    Raises
    ------
    VisitError
        If memory does not suffice even with the sums kept in main memory.
    """
    padded, inner = _pad(torch.as_tensor(volume, dtype=torch.float32), patch_size, multiple)
    reduce = reduce or (lambda logits: logits)
    sums_on = [engine.device] if engine.device.type == "cpu" else [engine.device, torch.device("cpu")]
    for place in sums_on:
        try:
            return _sum_windows(engine, padded, patch_size, mirror_axes, reduce, step, place)[(slice(None), *inner)]
        except RuntimeError as error:
            release_memory(error)
    raise VisitError(
        f"{engine.device} ran out of memory: patches of {_size(patch_size)} in a volume of {_size(padded.shape[1:])}.",
        MEMORY_HINT,
    )


def window_starts(size: int, patch: int, step: float = 0.5) -> list[int]:
    """Where the windows begin along one axis, evenly spaced from border to border.

    >>> window_starts(110, 64)
    [0, 23, 46]
    >>> window_starts(64, 64)
    [0]
    """
    room = size - patch
    count = math.ceil(room / (patch * step)) + 1
    return [round(room * index / max(count - 1, 1)) for index in range(count)]


def gaussian_weights(patch_size: Sequence[int]) -> torch.Tensor:
    """Weight of every voxel of a window: a Gaussian of sigma = patch / 8 around its centre, 1 at the centre."""
    weights = torch.ones((), dtype=torch.float64)
    for size in patch_size:
        distance = torch.arange(size, dtype=torch.float64) - size // 2
        weights = weights[..., None] * torch.exp(-0.5 * (distance / (size * SIGMA_OF_PATCH)) ** 2)
    return weights.float()


def _sum_windows(
    engine: Engine,
    volume: torch.Tensor,
    patch_size: Sequence[int],
    mirror_axes: Sequence[int],
    reduce: Reduction,
    step: float,
    place: torch.device,
) -> torch.Tensor:
    """Weighted mean of all windows' logits, with the sums kept at `place`."""
    windows = list(_windows(volume.shape[1:], patch_size, step))
    if len(windows) == 1:  # one window needs no weights
        return _mirrored(engine, volume[windows[0]][None].to(engine.device), mirror_axes, reduce)[0].to(place)
    weights = gaussian_weights(patch_size).to(engine.device)
    total = torch.zeros(volume.shape[1:], device=place)
    logits = None
    for batch in _batches(windows, SLICES_AT_ONCE if len(patch_size) == 2 else 1):
        patches = torch.stack([volume[window] for window in batch]).to(engine.device)
        results = (_mirrored(engine, patches, mirror_axes, reduce) * weights).to(place)
        if logits is None:
            logits = torch.zeros((results.shape[1], *volume.shape[1:]), device=place)
        for window, result in zip(batch, results, strict=True):
            logits[window] += result
            total[window[1:]] += weights.to(place)
    return logits.div_(total)


def _windows(shape: Sequence[int], patch_size: Sequence[int], step: float) -> Iterator[tuple]:
    """Indices into (channels, x, y, z) of every window; the first axis of a 2-d network is a plain index."""
    flat = len(shape) - len(patch_size)
    starts = [window_starts(size, patch, step) for size, patch in zip(shape[flat:], patch_size, strict=True)]
    for corner in itertools.product(*(range(size) for size in shape[:flat]), *starts):
        sides = [slice(start, start + patch) for start, patch in zip(corner[flat:], patch_size, strict=True)]
        yield (slice(None), *corner[:flat], *sides)


def _batches(windows: list[tuple], size: int) -> Iterator[list[tuple]]:
    for start in range(0, len(windows), size):
        yield windows[start : start + size]


def _mirrored(engine: Engine, patches: torch.Tensor, axes: Sequence[int], reduce: Reduction) -> torch.Tensor:
    """Reduced logits of a batch, averaged over every combination of flips along `axes`."""
    flips = [flip for count in range(len(axes) + 1) for flip in itertools.combinations([a + 2 for a in axes], count)]
    total = reduce(engine(patches))
    for flip in flips[1:]:
        total = total + reduce(engine(patches.flip(flip))).flip(flip)
    return total / len(flips)


def _pad(
    volume: torch.Tensor, patch_size: Sequence[int], multiple: int = 1
) -> tuple[torch.Tensor, tuple[slice, ...]]:
    """The volume with zeros around it up to the patch size and to multiples, and the slices that undo this."""
    wanted = [0] * (volume.ndim - 1 - len(patch_size)) + list(patch_size)
    least = [max(want, size) for want, size in zip(wanted, volume.shape[1:], strict=True)]
    missing = [-(-want // multiple) * multiple - size for want, size in zip(least, volume.shape[1:], strict=True)]
    before = [lack // 2 for lack in missing]
    sides = [(first, lack - first) for first, lack in zip(before, missing, strict=True)]
    padded = torch.nn.functional.pad(volume, [width for side in reversed(sides) for width in side])
    inner = tuple(slice(first, first + size) for first, size in zip(before, volume.shape[1:], strict=True))
    return padded, inner


def _size(shape: Sequence[int]) -> str:
    return "x".join(str(int(size)) for size in shape)
