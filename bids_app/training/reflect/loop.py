"""The loop that trains all networks of REFLECT: schedule, mixed precision, running average, checkpoints, several GPUs.

Started by ``torchrun``, every process learns from batches of its own, and gradients are averaged between them.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from bids_app.derivatives.write import atomic
from bids_app.errors import AppError, ConfigError
from bids_app.networks.device import computes_bf16
from bids_app.networks.weights import load_checkpoint

Result = TypeVar("Result")
Report = Callable[[int, float, dict[str, float]], None]
Check = Callable[[Mapping[str, nn.Module]], dict[str, float]]
LATEST = "latest.pth"
PATIENCE = timedelta(days=3)
"""How long processes wait for the first one, which prepares scans."""
MOST_UNUSABLE = 10
"""Gradients one after the other that are no numbers and are passed over."""


@dataclass(frozen=True)
class Schedule:
    """How long to train, and how fast.

    Attributes
    ----------
    steps : int or None
        Optimizer steps; None goes by `minutes`.
    minutes : float or None
        Wall-clock time, over all runs that a training is made of; the first limit that is reached ends it.
    warmup : int
        Steps over which the rate rises.
    cosine : float
        Share of half a cosine that the rate has gone down at the end: 1 ends at zero, 0.5 at half the rate.
    ema : float
        Decay of the running average of the weights, which is what is validated and kept; 0 keeps the weights
        themselves.
    accumulation : int
        Batches of one step; their gradients are averaged.
    clip : float or None
        Largest norm of a gradient.
    save_minutes : float
        Time between checkpoints.
    """

    steps: int | None = None
    minutes: float | None = None
    warmup: int = 50
    cosine: float = 1.0
    ema: float = 0.999
    accumulation: int = 1
    clip: float | None = 1.0
    save_minutes: float = 5.0

    def progress(self, step: int, minutes: float) -> float:
        """How much of the training is done, 0 to 1."""
        parts = [step / self.steps] if self.steps else []
        parts += [minutes / self.minutes] if self.minutes else []
        return min(1.0, max(parts))

    def factor(self, step: int, progress: float) -> float:
        """Share of the rate."""
        falling = 0.5 * (1 + math.cos(math.pi * progress * self.cosine))
        return falling * min(1.0, (step + 1) / max(1, self.warmup))


@dataclass
class Learner:
    """A network, its optimizer, and what it minimises.

    Attributes
    ----------
    name : str
    network : torch.nn.Module
    optimizer : torch.optim.Optimizer
    loss : callable
        ``loss(network, batch, step)`` to a scalar, or None where there is nothing to learn yet. The network it is given
        may be wrapped: only calling it averages gradients between processes.
    averaged : bool
        Whether a running average of its weights is kept.
    """

    name: str
    network: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[nn.Module, Any, int], Tensor | None]
    averaged: bool = True


@dataclass(frozen=True)
class Processes:
    """The processes that ``torchrun`` has started; one if it has not.

    Attributes
    ----------
    rank, count : int
    device : torch.device
    """

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this one writes files and speaks."""
        return self.rank == 0

    def from_first(self, make: Callable[[], Result]) -> Result:
        """What the first process makes, in all of them; an error of the user's ends all, and the first one tells it."""
        made: list[tuple[Result | None, AppError | None]] = [(None, None)]
        if self.first:
            try:
                made = [(make(), None)]
            except AppError as error:
                made = [(None, error)]
        if self.count > 1:
            torch.distributed.broadcast_object_list(made, device=self.device)
        result, error = made[0]
        if error:
            raise error if self.first else SystemExit(int(error.exit_code))
        return result

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            torch.distributed.barrier()


def _count() -> int:
    """Processes that ``torchrun`` has started; one if it has not."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def own_device(request: str) -> str:
    """What a process of ``torchrun`` asks for: where there are GPUs, the one that is its own.

    Parameters
    ----------
    request : str
        See `networks.device.choose_device`; that of a single process stays as it is.
    """
    if _count() == 1 or request == "cpu" or (request == "auto" and not torch.cuda.is_available()):
        return request
    return f"cuda:{os.environ['LOCAL_RANK']}"


@contextmanager
def processes(device: str) -> Iterator[Processes]:
    """Join the other processes of ``torchrun``; `device` is the one of this process, see `own_device`."""
    count = _count()
    if count == 1:
        yield Processes(0, 1, torch.device(device))
        return
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(torch.device(device))  # what is not told where to be would meet on the first one
    torch.distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=PATIENCE)
    try:
        yield Processes(torch.distributed.get_rank(), count, torch.device(device))
    finally:
        torch.distributed.destroy_process_group()


class Batches(Dataset):
    """Batches by number, for PyTorch's loader: the same number gives the same batch, so a resumed run goes on.

    Parameters
    ----------
    draw : callable
        From a number to a batch of tensors (a tuple of them).
    start, rank, count : int
        Number of the first batch, and this process among all, which take turns.
    """

    def __init__(self, draw: Callable[[int], tuple[Tensor, ...]], start: int, rank: int = 0, count: int = 1):
        self.draw, self.start, self.rank, self.count = draw, start, rank, count

    def __len__(self) -> int:
        return 2**31

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return self.draw((self.start + index) * self.count + self.rank)


class _Counting(torch.utils.data.Sampler):
    def __iter__(self) -> Iterator[int]:
        yield from range(2**31)


def fit(
    learners: Sequence[Learner],
    draw: Callable[[int], tuple[Tensor, ...]],
    schedule: Schedule,
    folder: Path,
    group: Processes,
    workers: int = 0,
    say: Report = lambda step, progress, values: None,
    check: Check = lambda networks: {},
) -> dict[str, nn.Module]:
    """Train until the schedule ends; a checkpoint in `folder` lets the same call go on.

    Parameters
    ----------
    learners : sequence of Learner
        They take a step each, in turn, on the same batch.
    draw : callable
        See `Batches`.
    schedule : Schedule
    folder : Path
    group : Processes
    workers : int
        Processes that draw batches.
    say : callable
        Told step, progress, and by name the losses and what `check` found, at every checkpoint and at the end, in the
        first process alone.
    check : callable
        Asked for scores of the networks, by name, before that; those with a running average, which is what it sees.

    Returns
    -------
    dict of str to torch.nn.Module
        The networks by name, with averaged weights where there are any, ready for use.
    """
    training = _Training(learners, schedule, folder, group)
    start = Batches(draw, training.step * schedule.accumulation, group.rank, group.count)
    loader = DataLoader(start, batch_size=None, sampler=_Counting(), num_workers=workers)
    parts: list[tuple[Tensor, ...]] = []
    for batch in loader:
        if training.ended:
            break
        parts.append(tuple(tensor.to(group.device) for tensor in batch))
        if len(parts) == schedule.accumulation:
            training.take_step(parts)
            parts = []
            if training.due:
                training.save(say, check)
    training.save(say, check)
    return training.results()


def steps_taken(folder: Path) -> int:
    """Steps at the last checkpoint of a training; none without one."""
    path = folder / LATEST
    return load_checkpoint(path)["step"] if path.exists() else 0


class _Training:
    """The state of a run of `fit`."""

    def __init__(self, learners: Sequence[Learner], schedule: Schedule, folder: Path, group: Processes):
        self.learners, self.schedule, self.folder, self.group = learners, schedule, folder, group
        self.step, self._minutes_before, self._started = 0, 0.0, time.monotonic()
        self._saved, self._saved_step, self._told_step, self.losses = self._started, None, None, {}
        self._unusable = {learner.name: 0 for learner in learners}
        for learner in learners:
            learner.network.to(group.device)
        # wrapping gives all processes the weights of the first one, from which averages begin as well
        self._wrapped = {learner.name: _wrapped(learner.network, group) for learner in learners}
        self._averages = {learner.name: _copy(learner.network) for learner in learners if learner.averaged}
        self._rates = {learner.name: [g["lr"] for g in learner.optimizer.param_groups] for learner in learners}
        if (folder / LATEST).exists():
            self._load(load_checkpoint(folder / LATEST))  # networks and optimizers bring it to their device

    @property
    def minutes(self) -> float:
        return self._minutes_before + (time.monotonic() - self._started) / 60

    @property
    def progress(self) -> float:
        return self.schedule.progress(self.step, self.minutes)

    @property
    def ended(self) -> bool:
        return _agreed(self.progress >= 1, self.group)

    @property
    def due(self) -> bool:
        return (time.monotonic() - self._saved) / 60 >= self.schedule.save_minutes

    def take_step(self, parts: Sequence[tuple[Tensor, ...]]) -> None:
        """One step of every learner."""
        factor = self.schedule.factor(self.step, self.progress)
        for learner in self.learners:
            for rate, settings in zip(self._rates[learner.name], learner.optimizer.param_groups, strict=True):
                settings["lr"] = rate * factor
            learner.optimizer.zero_grad(set_to_none=True)
            if not self._backward(learner, parts):
                continue
            norm = nn.utils.clip_grad_norm_(learner.network.parameters(), self.schedule.clip or torch.inf)
            if not self._usable(learner, norm):
                continue
            learner.optimizer.step()
            if learner.averaged:
                self._average(learner)
        self.step += 1

    def _usable(self, learner: Learner, norm: Tensor) -> bool:
        """Whether a gradient may be followed; a few that may not, one after the other, end the training.

        Raises
        ------
        ConfigError
            The last checkpoint is then from before.
        """
        if torch.isfinite(norm):
            self._unusable[learner.name] = 0
            return True
        self._unusable[learner.name] += 1
        if self._unusable[learner.name] >= MOST_UNUSABLE:
            raise ConfigError(
                f"The training of the {learner.name} ran away: {MOST_UNUSABLE} gradients in a row are no numbers.",
                "The last checkpoint is kept. Take more slices a step (--batch, --accumulation), or begin with a "
                "trained model (--init).",
            )
        return False

    def _backward(self, learner: Learner, parts: Sequence[tuple[Tensor, ...]]) -> bool:
        """Mean gradient over the parts; whether there was anything to learn."""
        network, device = self._wrapped[learner.name], self.group.device
        for number, part in enumerate(parts, start=1):
            # gradients are exchanged once a step, with the last part
            hold = network.no_sync() if self.group.count > 1 and number < len(parts) else nullcontext()
            with hold:
                with torch.autocast(device.type, torch.bfloat16, enabled=computes_bf16(str(device))):
                    loss = learner.loss(network, part, self.step)
                if loss is None:
                    return False
                (loss / len(parts)).backward()
            value = loss.item()
            if math.isfinite(value):
                before = self.losses.get(learner.name, value)
                self.losses[learner.name] = before + 0.02 * (value - before)
        return True

    @torch.no_grad()
    def _average(self, learner: Learner) -> None:
        decay = min(self.schedule.ema, (1 + self.step) / (10 + self.step))
        averaged = list(self._averages[learner.name].parameters())
        torch._foreach_lerp_(averaged, list(learner.network.parameters()), 1 - decay)

    def save(self, say: Report, check: Check) -> None:
        """Write the checkpoint and report, each unless it was done at this step."""
        if self.group.first and self._saved_step != self.step:
            self._write()
        if self.group.first and self._told_step != self.step:
            losses = {f"{name}_loss": value for name, value in self.losses.items()}
            say(self.step, self.progress, losses | check(self._averages))
        self._saved, self._saved_step, self._told_step = time.monotonic(), self.step, self.step

    def _write(self) -> None:
        content = {"step": self.step, "minutes": self.minutes}
        for learner in self.learners:
            content[f"{learner.name}.network"] = learner.network.state_dict()
            content[f"{learner.name}.optimizer"] = learner.optimizer.state_dict()
        content |= {f"{name}.average": network.state_dict() for name, network in self._averages.items()}
        with atomic(self.folder / LATEST) as temporary:
            torch.save(content, temporary)

    def _load(self, content: dict[str, Any]) -> None:
        self.step, self._minutes_before = content["step"], content["minutes"]
        self._saved_step = self.step
        for learner in self.learners:
            learner.network.load_state_dict(content[f"{learner.name}.network"])
            learner.optimizer.load_state_dict(content[f"{learner.name}.optimizer"])
        for name, network in self._averages.items():
            network.load_state_dict(content[f"{name}.average"])
        torch.manual_seed(torch.initial_seed() + self.step)  # not the same draws again

    def results(self) -> dict[str, nn.Module]:
        """The networks to keep."""
        return {each.name: self._averages.get(each.name, each.network).eval() for each in self.learners}


def _copy(network: nn.Module) -> nn.Module:
    return copy.deepcopy(network).requires_grad_(False).eval()


def _wrapped(network: nn.Module, group: Processes) -> nn.Module:
    """The network as all processes train it together."""
    if group.count == 1:
        return network
    return nn.parallel.DistributedDataParallel(network, find_unused_parameters=True)


def _agreed(ended: bool, group: Processes) -> bool:
    """Whether any process is at the end: all must stop at the same step."""
    if group.count == 1:
        return ended
    flag = torch.tensor(float(ended), device=group.device)
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
    return bool(flag)
