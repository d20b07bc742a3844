"""The endless series of synthetic scans that a training run draws."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from bids_app.training.anatomy import LesionMask
from bids_app.training.synthesis.fields import chance, pick
from bids_app.training.synthesis.lesions import stratify
from bids_app.training.synthesis.recipe import Recipe
from bids_app.training.synthesis.scan import SynthScan, synthesize
from bids_app.training.synthesis.tissue import Source


@dataclass(frozen=True)
class Material:
    """What a training run draws from.

    Attributes
    ----------
    sources, validation_sources : sequence of Source
        Heads to train with, and heads kept for validation.
    lesions, validation_lesions : sequence of LesionMask
        Masks to train with, and masks kept for validation.
    recipe : Recipe
    seed : int
        Every scan is drawn from a generator seeded by this and its number, so a resumed run continues the series.
    validation_scans : int
        For each validation head and volume class, and as many healthy ones.
    """

    sources: Sequence[Source]
    lesions: Sequence[LesionMask]
    validation_sources: Sequence[Source]
    validation_lesions: Sequence[LesionMask]
    recipe: Recipe = field(default_factory=Recipe)
    seed: int = 0
    validation_scans: int = 2

    def to(self, device: str) -> Material:
        """The same with the training heads on another device."""
        return replace(self, sources=[source.to(device) for source in self.sources])


@dataclass(frozen=True)
class Workers:
    """Processes that make scans ahead of the training; none makes them in the training process.

    Attributes
    ----------
    count : int
    on_gpu : int
        So many of them use the GPU. More than one slow each other down, unless the GPU is shared by CUDA's MPS.
    """

    count: int = 0
    on_gpu: int = 0


NO_WORKERS = Workers()


def pick_source(material: Material, rng: Generator) -> Source:
    """A head; those with real texture are few and come in a fixed share of the scans."""
    real = [source for source in material.sources if source.image is not None]
    drawn = [source for source in material.sources if source.image is None]
    use_real = bool(real) and (not drawn or chance(material.recipe.real_texture, rng))
    return pick(real if use_real else drawn, rng)


def scan_number(material: Material, number: int) -> SynthScan:
    """The scan with this number in the endless series of a run."""
    device = material.sources[0].labels.device
    rng = Generator(device=device).manual_seed(material.seed * 2 * 10**9 + number)
    return synthesize(pick_source(material, rng), stratify(material.lesions), material.recipe, rng)


@dataclass(frozen=True)
class Batch:
    """Scans as the trainer wants them.

    Attributes
    ----------
    image : torch.Tensor
        ``(n, 2, z, y, x)``.
    targets : list of torch.Tensor
        ``(n, 3, z, y, x)`` int16 from full resolution down, one for each level of deep supervision.
    anatomy : torch.Tensor
        ``(n, 5, z/2, y/2, x/2)``.
    """

    image: Tensor
    targets: list[Tensor]
    anatomy: Tensor


def as_batch(scans: Sequence[SynthScan], levels: int) -> Batch:
    """Batch of scans, with targets at as many levels of deep supervision, each half as fine as the one before."""
    full = torch.stack([scan.target for scan in scans])
    coarser = [F.avg_pool3d(full.float(), 2**level) >= 0.5 for level in range(1, levels)]
    return Batch(
        torch.stack([scan.image for scan in scans]),
        [level.to(torch.int16) for level in (full, *coarser)],
        torch.stack([scan.anatomy for scan in scans]),
    )


@dataclass
class Series(Dataset):
    """The endless series of a run from some scan on, for PyTorch's loader."""

    material: Material
    start: int = 0

    def __len__(self) -> int:
        return 10**9

    def __getitem__(self, index: int) -> SynthScan:
        scan = scan_number(self.material, self.start + index)
        return scan.to("cpu") if get_worker_info() else scan


class _InOrder(torch.utils.data.Sampler):
    """0, 1, 2, ... without a list of them."""

    def __iter__(self) -> Iterator[int]:
        yield from range(10**9)

    def __len__(self) -> int:
        return 10**9


def endless(series: Series, workers: Workers = NO_WORKERS) -> Iterator[SynthScan]:
    """Fresh scans, made by worker processes if there are any.

    Always in the same order, unless some of the workers use the GPU: these are faster, and do not wait for the others.
    """
    yield from DataLoader(
        series,
        batch_size=None,
        sampler=_InOrder(),
        num_workers=workers.count,
        prefetch_factor=6 if workers.count else None,
        worker_init_fn=partial(_begin, workers.on_gpu) if workers.count else None,
        multiprocessing_context="spawn" if workers.on_gpu else None,
        in_order=not workers.on_gpu,
    )


def _begin(on_gpu: int, worker: int) -> None:
    """One thread to a worker; the first of them move to the GPU."""
    torch.set_num_threads(1)
    if worker < on_gpu:
        series = get_worker_info().dataset
        series.material = series.material.to("cuda")
