"""Training on synthetic scans: a short loop around nnU-Net's network and losses.

nnU-Net's own trainer reads preprocessed files, counts epochs and knows one output; here scans are made on the way, the
schedule goes by the clock, and one run trains both branches of a late fusion and the fusion at once, and several folds
on the scans that each of them may see. What it leaves is turned into nnU-Net's format by `bids_app.training.embed`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import Tensor

from bids_app.derivatives.write import atomic
from bids_app.errors import ConfigError
from bids_app.measures.overlap import dice
from bids_app.networks.device import computes_bf16
from bids_app.training import anatomy, plans
from bids_app.training.cases import CLASSES, HEALTHY, Case, make_cases
from bids_app.training.losses import judged_outputs, total_loss
from bids_app.training.optimizer import Muon
from bids_app.training.plans import Fusion
from bids_app.training.series import NO_WORKERS, Batch, Material, Series, Workers, as_batch, endless
from bids_app.training.synthesis.fields import SPACING_MM
from bids_app.training.synthesis.scan import SynthScan
from bids_app.training.warm_start import WarmStart

VALIDATION_SEED = 0
LATEST, STABLE, FINAL = "latest.pth", "stable.pth", "final.pth"
ALL = "all"
"""Name of the training that no fold is left out of."""


@dataclass(frozen=True)
class Schedule:
    """How long to train and how fast.

    The rate warms up, stays level, and falls to almost nothing over the last part of the time at hand, so that a
    training may be ended at any hour and taken up again from before the fall (``stable.pth``).

    Attributes
    ----------
    minutes : float
        Wall-clock time of this run.
    rate : float
        Level learning rate of Muon.
    warmup_steps : int
        Steps of linear warm-up.
    cooldown : float
        Last share of ``minutes`` over which the rate falls linearly, 0-1; 0 keeps it level.
    validate_every : int
        Steps between validations.
    save_every : int
        Steps between checkpoints.
    ema : float
        Decay of the running average of the weights, which is what is validated and shipped.
    """

    minutes: float = 60.0
    rate: float = 0.05
    warmup_steps: int = 100
    cooldown: float = 0.25
    validate_every: int = 250
    save_every: int = 50
    ema: float = 0.998

    def factor(self, step: int, elapsed: float) -> float:
        """Share of ``rate`` at a step, given the elapsed share of the time budget (0-1)."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        left = max(0.0, 1 - elapsed) / max(self.cooldown, 1e-6)
        return warm * min(1.0, max(0.01, left))


@dataclass(frozen=True)
class Validation:
    """Scores of one output on the validation set.

    Attributes
    ----------
    dice : dict of str to float
        Mean Dice by volume class.
    false_ml : float
        Mean volume marked in healthy scans.
    """

    dice: dict[str, float]
    false_ml: float

    def __str__(self) -> str:
        dice = ", ".join(f"{value:.2f} {name}" for name, value in self.dice.items())
        return f"Dice {dice}, healthy {self.false_ml:.2f} mL"


def build_network(fusion: Fusion, extra_outputs: int = plans.ANATOMY_OUTPUTS) -> torch.nn.Module:
    """The network of a fusion, built and initialised by nnU-Net; by default with the outputs that training adds."""
    described = plans.architecture(fusion, extra_outputs)
    network = get_network_from_plans(
        described["network_class_name"],
        described["arch_kwargs"],
        described["_kw_requires_import"],
        input_channels=len(fusion.contrasts),
        output_channels=2,
        deep_supervision=True,
    )
    for branch in getattr(network, "branches", [network]):
        for outputs in branch.decoder.seg_layers:
            torch.nn.init.zeros_(outputs.weight)  # He's start makes logits of some hundreds here
    return network


@dataclass(frozen=True)
class Plan:
    """One network to be trained.

    Attributes
    ----------
    fusion : Fusion
    fold : str
        What it must not see: a number, or ``all`` for nothing.
    heads, lesions : frozenset of str
        Names of those that it may be trained on.
    """

    fusion: Fusion
    fold: str
    heads: frozenset[str]
    lesions: frozenset[str]

    def takes(self, scan: SynthScan) -> bool:
        """Whether it may be trained on a scan."""
        return scan.head in self.heads and self.lesions.issuperset(scan.lesions)


class Trainer:
    """One network in training.

    Parameters
    ----------
    plan : Plan
    schedule : Schedule
    folder : Path
        Checkpoints and log go here.
    device : str
        ``cpu`` or ``cuda``.
    batch_size : int
    """

    def __init__(self, plan: Plan, schedule: Schedule, folder: Path, device: str = "cpu", batch_size: int = 2):
        self.plan, self.fusion, self.schedule, self.folder = plan, plan.fusion, schedule, folder
        self.device, self.batch_size = torch.device(device), batch_size
        self.bf16 = computes_bf16(device)
        torch.manual_seed(anatomy.FOLDS if plan.fold == ALL else int(plan.fold))
        # 15 % faster on a CPU
        self.network = build_network(self.fusion).to(self.device, memory_format=torch.channels_last_3d)
        self.average = [p.detach().clone() for p in self.network.parameters()]
        self.optimizer = Muon(self.network.parameters(), schedule.rate)
        self.step, self.steps_before = 0, 0
        self.waiting: list[SynthScan] = []
        self.losses: list[Tensor] = []

    @property
    def name(self) -> str:
        """Fusion and fold."""
        return f"{self.fusion.name} {self.plan.fold}"

    @property
    def levels(self) -> int:
        """Number of resolutions at which the network is judged."""
        return len(self.fusion.size.features) - 1

    def offer(self, scan: SynthScan, elapsed: float) -> bool:
        """Take a scan if it may be seen, and do a step as soon as there are enough; whether there was one."""
        if self.plan.takes(scan):
            self.waiting.append(scan)
        if len(self.waiting) < self.batch_size:
            return False
        batch, self.waiting = as_batch(self.waiting, self.levels), []
        self.losses.append(self.train_step(batch, elapsed))
        return True

    def train_step(self, batch: Batch, elapsed: float) -> Tensor:
        """One step of the optimizer at the scheduled rate, and of the running average; returns the loss."""
        self.network.train()
        self.optimizer.param_groups[0]["lr"] = self.schedule.rate * self.schedule.factor(self.step, elapsed)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            loss = total_loss(self.network, batch, self.fusion.contrasts, self.step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 12)
        self.optimizer.step()
        decay = min(self.schedule.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.network.parameters()], 1 - decay)
        self.step += 1
        return loss.detach()

    def mean_loss(self) -> float:
        """Mean over the steps since it was last asked for; a GPU is waited for here alone, not at every step."""
        mean, self.losses = float(torch.stack(self.losses).mean()) if self.losses else float("nan"), []
        return mean

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

    @torch.no_grad()
    def validate(self, cases: Sequence[Case]) -> list[Validation]:
        """Scores of every output with the averaged weights, at a threshold of one half."""
        self.network.eval()
        with self.averaged():
            found = [self._marked(case) for case in cases]
        return [_summary(cases, masks) for masks in zip(*found, strict=True)]

    def _marked(self, case: Case) -> list[np.ndarray]:
        """What every output marks in one case, ``(z, y, x)`` bool."""
        outputs = judged_outputs(self.network, case.image[None].to(self.device), self.fusion.contrasts)
        return [output.logits[0][0].argmax(dim=0).cpu().numpy() > 0 for output in outputs]

    def save(self, name: str, scans: int) -> None:
        """Write a checkpoint, under its name only when whole; ``scans`` is how far the series has gone."""
        names = [name for name, _ in self.network.named_parameters()]
        state = {
            "weights": self.network.state_dict(),
            "averaged_weights": dict(zip(names, [p.cpu() for p in self.average], strict=True)),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "steps_before": self.steps_before,
            "scans": scans,
            "batch_size": self.batch_size,
            "heads": sorted(self.plan.heads),
            "lesions": sorted(self.plan.lesions),
            "fusion": self.fusion.name,
        }
        with atomic(self.folder / name) as whole:
            torch.save(state, whole)

    def load(self, path: Path) -> int:
        """Go on from a checkpoint; returns how far the series had gone.

        Raises
        ------
        ConfigError
            If it was trained on other heads or lesions: with more or fewer of them, every fold is another one.
        """
        state = torch.load(path, map_location=self.device, weights_only=True)
        seen = (sorted(self.plan.heads), sorted(self.plan.lesions))
        if (state["heads"], state.get("lesions", seen[1])) != seen:  # checkpoints of version 0.1.0 name no lesions
            raise ConfigError(
                f"{path} was trained on other heads or lesions than --data has for this fold.",
                "Use the data it was trained on, or train anew with another --out.",
            )
        self.network.load_state_dict(state["weights"])
        self.average = [state["averaged_weights"][name].to(self.device) for name, _ in self.network.named_parameters()]
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.steps_before = state["step"], state["steps_before"]
        return state["scans"]

    def start_from(self, start: WarmStart) -> None:
        """Begin with the weights of another training; step and optimizer start anew."""
        self._set_weights(list(start.fitted(self.fusion.name, self.network).values()))
        self.average = [p.detach().clone() for p in self.network.parameters()]
        self.steps_before = start.steps

    def report(self, scores: Sequence[Validation]) -> str:
        """Keep in ``validation.jsonl`` what validation found, and say it in words."""
        with (self.folder / "validation.jsonl").open("a") as log:
            log.write(json.dumps({"step": self.step, "outputs": [asdict(score) for score in scores]}) + "\n")
        return f"{self.name}, step {self.step}: validation: {'; '.join(map(str, scores))}"


def train(
    trainers: Sequence[Trainer],
    material: Material,
    schedule: Schedule,
    workers: Workers = NO_WORKERS,
    first: int = 0,
    say: Callable[[str], None] = print,
) -> None:
    """Train networks side by side on one series of scans until the time is used up.

    A scan takes longer to make than to learn from, so every network that may see it does. ``stable.pth`` is from just
    before the rate falls.

    Parameters
    ----------
    trainers : sequence of Trainer
    material : Material
    schedule : Schedule
    workers : Workers
    first : int
        Number of the first scan.
    say : callable
        Gets one line at a time.
    """
    heads, lesions = material.validation_sources, material.validation_lesions
    fixed = list(make_cases(heads, lesions, material.validation_scans, VALIDATION_SEED))
    device, falling, started = trainers[0].device, False, time.monotonic()
    for count, scan in enumerate(endless(Series(material, first), workers), start=first + 1):
        elapsed = (time.monotonic() - started) / (60 * schedule.minutes)
        if not falling and elapsed > 1 - schedule.cooldown:
            falling = True
            for trainer in trainers:
                trainer.save(STABLE, count - 1)
        scan, over = scan.to(device), elapsed >= 1
        for trainer in trainers:
            stepped = trainer.offer(scan, elapsed)
            if over or (stepped and trainer.step % schedule.save_every == 0):
                trainer.save(FINAL if over else LATEST, count)
                pace = (count - first) / (time.monotonic() - started)
                say(f"{trainer.name}, step {trainer.step}: loss {trainer.mean_loss():.4f}, {pace:.2f} scans a second")
            if over or (stepped and trainer.step % schedule.validate_every == 0):
                say(trainer.report(trainer.validate(fixed)))
        if over:
            break
    for trainer in trainers:
        (trainer.folder / LATEST).unlink(missing_ok=True)


def _summary(cases: Sequence[Case], masks: Sequence[np.ndarray]) -> Validation:
    """Means by volume class over what one output marked."""
    pairs = list(zip(cases, masks, strict=True))
    each = {name: [dice(case.truth, mask) for case, mask in pairs if case.group == name] for name in CLASSES}
    false_ml = [mask.sum() * SPACING_MM**3 / 1000 for case, mask in pairs if case.group == HEALTHY]
    means = {name: float(np.mean(values)) for name, values in each.items() if values}
    return Validation(means, float(np.mean(false_ml)))
