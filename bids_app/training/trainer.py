"""nnU-Net's trainer fed by synthesis instead of by preprocessed files."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from nnunetv2.training.loss.compound_losses import DC_and_topk_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from torch import Generator, Tensor

from bids_app.training import synthesis
from bids_app.training.alignment import to_ras_zyx
from bids_app.training.anatomy import LesionMask
from bids_app.training.synthesis import Recipe, Source, SynthScan

HARDEST_PERCENT = 2
"""2 % of the patch is 98 mL: cross-entropy is taken over as many voxels as a large lesion has."""


@dataclass(frozen=True)
class Schedule:
    """How long to train and how fast.

    The rate warms up, stays level, and falls to almost nothing over the last part of the time at hand, so that a
    training may be ended at any hour and taken up again from before the fall (``checkpoint_stable.pth``).

    Attributes
    ----------
    minutes : float
        Wall-clock time of this run.
    rate : float
        Level learning rate of AdamW.
    warmup_steps : int
        Steps of linear warm-up.
    cooldown : float
        Last share of ``minutes`` over which the rate falls linearly, 0-1.
    steps_per_epoch : int
        Steps between validations and checkpoints.
    ema : float
        Decay of the running average of the weights, which is what is validated and shipped.
    """

    minutes: float = 60.0
    rate: float = 1.5e-3
    warmup_steps: int = 100
    cooldown: float = 0.25
    steps_per_epoch: int = 50
    ema: float = 0.995

    def factor(self, step: int, elapsed: float) -> float:
        """Share of ``rate`` at a step, given the elapsed share of the time budget (0-1)."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        left = max(0.0, 1 - elapsed) / max(self.cooldown, 1e-6)
        return warm * min(1.0, max(0.01, left))


@dataclass(frozen=True)
class Material:
    """What a training run draws from.

    Attributes
    ----------
    sources : sequence of Source
        Heads.
    lesions, validation_lesions : sequence of LesionMask
        Masks to train with, and masks kept for validation.
    recipe : Recipe
    seed : int
        Every scan is drawn from a generator seeded by this and its number, so a resumed run continues the series.
    validation_scans : int
        Size of the fixed validation set.
    healthy_images : tuple of Path
        Real healthy brain-extracted T1w in the pose; the false-lesion volume on them is logged.
    """

    sources: Sequence[Source]
    lesions: Sequence[LesionMask]
    validation_lesions: Sequence[LesionMask]
    recipe: Recipe = field(default_factory=Recipe)
    seed: int = 0
    validation_scans: int = 16
    healthy_images: tuple[Path, ...] = ()


def pick_source(material: Material, rng: Generator) -> Source:
    """A head; those with real texture are few and come in a fixed share of the scans."""
    real = [source for source in material.sources if source.image is not None]
    drawn = [source for source in material.sources if source.image is None]
    use_real = bool(real) and (not drawn or synthesis.chance(material.recipe.real_texture, rng))
    return synthesis.pick(real if use_real else drawn, rng)


def scan_number(material: Material, number: int, validation: bool = False) -> SynthScan:
    """The scan with this number in the endless series of a run (or in its validation set)."""
    device = material.sources[0].labels.device
    rng = Generator(device=device).manual_seed((material.seed * 2 + validation) * 10**9 + number)
    lesions = material.validation_lesions if validation else material.lesions
    source = material.sources[number % len(material.sources)] if validation else pick_source(material, rng)
    return synthesis.synthesize(source, synthesis.stratify(lesions), material.recipe, rng)


def as_batch(scans: Sequence[SynthScan], scales: Sequence[Sequence[float]] | None) -> dict:
    """Batch as nnU-Net's trainer expects it, with one target per deep-supervision scale."""
    data = torch.stack([scan.image for scan in scans]).contiguous(memory_format=torch.channels_last_3d)
    target = torch.stack([scan.target for scan in scans]).to(torch.int16)
    if scales is None:
        return {"data": data, "target": target}
    shrink = DownsampleSegForDSTransform(scales)
    pairs = zip(scans, target, strict=True)
    per_scan = [shrink(image=scan.image, segmentation=seg)["segmentation"] for scan, seg in pairs]
    return {"data": data, "target": [torch.stack(level) for level in zip(*per_scan, strict=True)]}


def endless(material: Material, start: int, batch_size: int, scales: Sequence | None) -> Iterator[dict]:
    """Batches of fresh scans, beginning with scan number ``start``."""
    number = start
    while True:
        yield as_batch([scan_number(material, number + i) for i in range(batch_size)], scales)
        number += batch_size


def cycle(batches: Sequence[dict]) -> Iterator[dict]:
    """The same batches over and over."""
    while True:
        yield from batches


class SyntheticLesionTrainer(nnUNetTrainer):
    """nnU-Net's trainer with its network and deep supervision, but synthetic data and a CPU-sized schedule.

    Overridden: where batches come from (synthesis, a fixed validation set), the loss (Dice and nnU-Net's own top-k
    cross-entropy), the optimizer (AdamW: SGD with momentum
    0.99 needs far more steps than a CPU has time for), the schedule (by wall-clock), and a running average of the
    weights. ``attach`` must be called before ``run_training``.
    """

    def attach(self, material: Material, schedule: Schedule) -> None:
        """Give the trainer its data and its schedule (nnU-Net's constructor cannot take more arguments)."""
        self.material, self.schedule = material, schedule
        self.num_iterations_per_epoch = schedule.steps_per_epoch
        self.num_val_iterations_per_epoch = material.validation_scans
        self.num_epochs = 10**6  # the clock decides
        self.initial_lr, self.weight_decay = schedule.rate, 1e-2
        self.save_every = 1
        self.step = 0
        self.started = time.monotonic()

    def initialize(self) -> None:
        """Network, optimizer and loss; nothing that asks for preprocessed files."""
        self.batch_size = self.configuration_manager.batch_size
        self.num_input_channels = determine_num_input_channels(
            self.plans_manager, self.configuration_manager, self.dataset_json
        )
        torch.manual_seed(self.material.seed)
        network = self.build_network_architecture(
            self.plans_manager,
            self.configuration_manager,
            self.num_input_channels,
            self.label_manager.num_segmentation_heads,
            self.enable_deep_supervision,
        )
        # 15 % faster on a CPU
        self.network = network.to(self.device, memory_format=torch.channels_last_3d)
        self.average = [p.detach().clone() for p in self.network.parameters()]
        self.optimizer, self.lr_scheduler = self.configure_optimizers()
        self.loss = self._build_loss()
        self.was_initialized = True

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        """AdamW; the rate is set at every step, so nnU-Net's per-epoch scheduler gets nothing to do."""
        optimizer = torch.optim.AdamW(
            self.network.parameters(), self.initial_lr, betas=(0.9, 0.99), weight_decay=self.weight_decay
        )
        return optimizer, _LevelRate()

    def _build_loss(self) -> torch.nn.Module:
        """nnU-Net's Dice and top-k cross-entropy, which looks at the hardest 2 % of the voxels.

        At batch size 1 the Dice of a healthy scan has no gradient, and cross-entropy averaged over the whole patch
        hardly feels some millilitres missed or falsely marked. Smoothing the Dice was tried instead: the network then
        marked less and less.
        """
        loss = DC_and_topk_loss(
            {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}, {"k": HARDEST_PERCENT}
        )
        if not self.enable_deep_supervision:
            return loss
        weights = np.array([0.5**level for level in range(len(self._get_deep_supervision_scales()))])
        weights[-1] = 0.0  # as nnU-Net does: the coarsest output is not judged
        return DeepSupervisionWrapper(loss, weights / weights.sum())

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple:
        """No mirroring at inference: synthesis mirrors lesions, and one pass is fast."""
        self.inference_allowed_mirroring_axes = None
        return (0.0, 0.0), False, self.configuration_manager.patch_size, None

    def get_dataloaders(self) -> tuple[Iterator[dict], Iterator[dict]]:
        """An endless series of fresh scans, and the fixed validation set."""
        scales = self._get_deep_supervision_scales()
        numbers = range(self.material.validation_scans)
        fixed = [as_batch([scan_number(self.material, n, validation=True)], scales) for n in numbers]
        return endless(self.material, self.step * self.batch_size, self.batch_size, scales), cycle(fixed)

    def on_train_start(self) -> None:
        """Open the data and leave the plans beside the fold, as nnU-Net does."""
        if not self.was_initialized:
            self.initialize()
        self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        self.dataloader_train, self.dataloader_val = self.get_dataloaders()
        self.set_deep_supervision_enabled(self.enable_deep_supervision)
        self.healthy = [preprocess(path, self) for path in self.material.healthy_images]
        self.started = time.monotonic()
        self.stable_saved = False

    def elapsed(self) -> float:
        """Share of the time budget that has passed."""
        return (time.monotonic() - self.started) / (60 * self.schedule.minutes)

    def train_step(self, batch: dict) -> dict:
        """nnU-Net's step at the scheduled rate, followed by the running average of the weights."""
        self.optimizer.param_groups[0]["lr"] = self.schedule.rate * self.schedule.factor(self.step, self.elapsed())
        result = super().train_step(batch)
        decay = min(self.schedule.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.network.parameters()], 1 - decay)
        self.step += 1
        return result

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The averaged weights in the network for the length of a ``with`` block."""
        own = [p.detach().clone() for p in self.network.parameters()]
        self._set_weights(self.average)
        try:
            yield
        finally:
            self._set_weights(own)

    @torch.no_grad()
    def _set_weights(self, weights: Sequence[Tensor]) -> None:
        torch._foreach_copy_(list(self.network.parameters()), list(weights))

    def log_healthy(self) -> None:
        """Log the lesion volume found in real healthy heads: it should be none."""
        volumes = [float((lesion_probability(self.network, x) > 0.5).sum()) * 0.008 for x in self.healthy]
        names = [path.name.split("_")[0] for path in self.material.healthy_images]
        found = ", ".join(f"{name} {ml:.2f} mL" for name, ml in zip(names, volumes, strict=True))
        self.print_to_log_file(f"step {self.step}: lesion in healthy heads: {found or 'none given'}")

    def run_epoch(self) -> None:
        """Train until the next validation (or the end of the time), validate, save."""
        self.on_epoch_start()
        self.on_train_epoch_start()
        outputs = []
        while not outputs or (len(outputs) < self.num_iterations_per_epoch and self.elapsed() < 1):
            outputs.append(self.train_step(next(self.dataloader_train)))
        self.on_train_epoch_end(outputs)
        with torch.no_grad(), self.averaged():
            self.on_validation_epoch_start()
            steps = range(self.num_val_iterations_per_epoch)
            self.on_validation_epoch_end([self.validation_step(next(self.dataloader_val)) for _ in steps])
            self.log_healthy()
        self.on_epoch_end()

    def run_training(self) -> None:
        """Train until the time is used up; ``checkpoint_stable.pth`` is from just before the rate falls."""
        self.on_train_start()
        while self.elapsed() < 1:
            self.run_epoch()
            if not self.stable_saved and self.elapsed() > 1 - self.schedule.cooldown - 0.02:
                # a copy, since nnU-Net counts the epoch as the coming one while saving it
                folder = Path(self.output_folder)
                shutil.copyfile(folder / "checkpoint_latest.pth", folder / "checkpoint_stable.pth")
                self.stable_saved = True
        self.on_train_end()

    def save_checkpoint(self, filename: str) -> None:
        """nnU-Net's checkpoint plus the averaged weights and the step, under its name only when whole."""
        path, partial = Path(filename), Path(filename + ".partial")
        super().save_checkpoint(str(partial))
        state = torch.load(partial, map_location="cpu", weights_only=False)
        names = [name for name, _ in self.network.named_parameters()]
        state["averaged_weights"] = dict(zip(names, [p.cpu() for p in self.average], strict=True))
        state["step"] = self.step
        torch.save(state, partial)
        partial.replace(path)

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        """Resume: nnU-Net's part, then averaged weights and step."""
        super().load_checkpoint(filename_or_checkpoint)
        state = torch.load(filename_or_checkpoint, map_location=self.device, weights_only=False)
        names = [name for name, _ in self.network.named_parameters()]
        self.average = [state["averaged_weights"][name].to(self.device) for name in names]
        self.step = state["step"]


class _LevelRate:
    """Stands where nnU-Net expects a scheduler; the trainer sets the rate itself."""

    def step(self, epoch: int | None = None) -> None:
        """Nothing to do."""


def fit_patch(data: np.ndarray, patch: Sequence[int]) -> Tensor:
    """``(c, z, y, x)`` padded with zeros or cropped about its middle to the patch, with a batch axis."""
    for axis, goal in enumerate(patch, start=1):
        extra = goal - data.shape[axis]
        if extra > 0:
            widths = [(0, 0)] * 4
            widths[axis] = (extra // 2, extra - extra // 2)
            data = np.pad(data, widths)
        elif extra < 0:
            data = data.take(range(-extra // 2, -extra // 2 + goal), axis=axis)
    return torch.from_numpy(np.ascontiguousarray(data))[None]


def preprocess(path: Path, trainer: nnUNetTrainer) -> Tensor:
    """A real scan as the network sees it, by nnU-Net's own preprocessing; ``(1, 1, z, y, x)``."""
    image = nib.load(path)
    data, _ = to_ras_zyx(image)
    properties = {"spacing": [float(s) for s in image.header.get_zooms()[::-1]]}
    preprocessor = trainer.configuration_manager.preprocessor_class(verbose=False)
    ready, _, _ = preprocessor.run_case_npy(
        data[None].astype(np.float32), None, properties, trainer.plans_manager, trainer.configuration_manager,
        trainer.dataset_json,
    )
    return fit_patch(ready, trainer.configuration_manager.patch_size)


@torch.no_grad()
def lesion_probability(network: torch.nn.Module, image: Tensor) -> Tensor:
    """Lesion probability of ``(1, 1, z, y, x)``, as ``(z, y, x)`` from 0 to 1."""
    output = network(image)
    logits = output[0] if isinstance(output, list | tuple) else output
    return torch.softmax(logits, dim=1)[0, 1]
