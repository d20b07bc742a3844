"""The training loop: schedule, accumulation, running average, checkpoints, several processes."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bids_app.errors import ConfigError
from bids_app.training.reflect import loop
from bids_app.training.reflect.loop import LATEST, Learner, Processes, Schedule, fit, own_device

ALONE = Processes(0, 1, torch.device("cpu"))
SHARED = Path(__file__).with_name("two_processes.py")


def draw(number: int) -> tuple[torch.Tensor, ...]:
    """Two rows of a line to be fitted."""
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(number))
    return x, x.sum(dim=1, keepdim=True)


def loss(network: nn.Module, batch: tuple[torch.Tensor, ...], step: int) -> torch.Tensor:
    return F.mse_loss(network(batch[0]), batch[1])


def learner(rate: float = 0.02, averaged: bool = True) -> Learner:
    torch.manual_seed(0)
    network = nn.Linear(3, 1)
    return Learner("line", network, torch.optim.SGD(network.parameters(), rate, momentum=0.9), loss, averaged)


def trained(folder: Path, steps: int, **options) -> nn.Linear:
    options = {"warmup": 1, "cosine": 0.0, "ema": 0.0, "clip": None} | options
    return fit([learner()], draw, Schedule(steps=steps, **options), folder, ALONE)["line"]


def test_it_learns(tmp_path):
    torch.testing.assert_close(trained(tmp_path, 200).weight, torch.ones(1, 3), atol=0.05, rtol=0)


@pytest.mark.parametrize(("ema", "accumulation"), [(0.0, 1), (0.9, 1), (0.9, 2)])
def test_a_resumed_training_ends_where_an_unbroken_one_does(tmp_path, ema, accumulation):
    whole = trained(tmp_path / "whole", 8, ema=ema, accumulation=accumulation)
    trained(tmp_path / "broken", 5, ema=ema, accumulation=accumulation)
    resumed = trained(tmp_path / "broken", 8, ema=ema, accumulation=accumulation)
    torch.testing.assert_close(resumed.weight, whole.weight)
    assert torch.load(tmp_path / "broken" / LATEST, weights_only=True)["step"] == 8


def test_a_finished_training_is_not_done_again(tmp_path):
    first = trained(tmp_path, 4)
    torch.testing.assert_close(trained(tmp_path, 4).weight, first.weight)


def test_accumulated_batches_are_averaged(tmp_path, monkeypatch):
    """Two batches a step learn what one batch of both would: the authors' code adds the gradients up."""
    monkeypatch.setattr(loop, "computes_bf16", lambda _: False)  # rounded to bf16, halves and the whole differ

    def both(number: int) -> tuple[torch.Tensor, ...]:
        parts = draw(2 * number), draw(2 * number + 1)
        return tuple(map(torch.cat, zip(*parts, strict=True)))

    schedule = Schedule(steps=5, warmup=1, cosine=0.0, ema=0.0, clip=None)
    whole = fit([learner()], both, schedule, tmp_path / "whole", ALONE)["line"]
    parts = trained(tmp_path / "parts", 5, accumulation=2)
    torch.testing.assert_close(parts.weight, whole.weight)


def test_the_running_average_lags_behind(tmp_path):
    last, averaged = trained(tmp_path / "last", 6), trained(tmp_path / "averaged", 6, ema=0.9)
    start = learner().network.weight
    assert torch.dist(averaged.weight, start) < torch.dist(last.weight, start)


def test_what_is_kept_is_what_is_scored_at_every_checkpoint(tmp_path):
    schedule = Schedule(steps=4, warmup=1, ema=0.9, save_minutes=0)
    told = []
    made = fit(
        [learner()], draw, schedule, tmp_path, ALONE, say=lambda *what: told.append(what),
        check=lambda networks: {"mean": networks["line"].weight.mean().item()},
    )  # fmt: skip
    means = [values["mean"] for _, _, values in told]
    assert [step for step, _, _ in told] == [1, 2, 3, 4] and len(set(means)) == 4
    assert means[-1] == made["line"].weight.mean().item()


@pytest.mark.parametrize("able", [False, True])
def test_bf16_where_the_device_has_instructions_for_it(tmp_path, monkeypatch, able):
    monkeypatch.setattr(loop, "computes_bf16", lambda device: able)
    seen = set()

    def loss(network, batch, step):
        made = network(batch[0])
        seen.add(made.dtype)
        return (made.float() - batch[1]).square().mean()

    made = fit([replace(learner(), loss=loss)], draw, Schedule(steps=2, warmup=1), tmp_path, ALONE)["line"]
    assert seen == {torch.bfloat16 if able else torch.float32}
    assert made.weight.dtype == torch.float32


def test_the_rate_rises_then_falls():
    schedule = Schedule(steps=100, warmup=10)
    assert schedule.factor(0, 0.0) == pytest.approx(0.1)
    assert schedule.factor(50, 0.5) == pytest.approx(0.5)
    assert schedule.factor(99, 1.0) == pytest.approx(0.0)
    assert Schedule(steps=100, cosine=0.5).factor(99, 1.0) == pytest.approx(0.5)  # the authors'


def test_the_first_limit_ends_it():
    assert Schedule(steps=10, minutes=60).progress(5, 6.0) == pytest.approx(0.5)
    assert Schedule(minutes=60).progress(10**6, 30.0) == pytest.approx(0.5)


def test_an_error_of_the_first_process_is_told_once_and_ends_all(monkeypatch):
    error = ConfigError("The scans differ.", "Give the same.")

    def refuse():
        raise error

    sent = []
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", lambda made, device: sent.append(made[0]))
    with pytest.raises(ConfigError, match="scans differ"):
        Processes(0, 2, torch.device("cpu")).from_first(refuse)
    assert sent == [(None, error)]

    def receive(made, device):
        made[0] = (None, error)

    monkeypatch.setattr(torch.distributed, "broadcast_object_list", receive)
    with pytest.raises(SystemExit) as ended:
        Processes(1, 2, torch.device("cpu")).from_first(refuse)
    assert ended.value.code == 78


def test_every_process_asks_for_a_gpu_of_its_own(monkeypatch):
    assert own_device("cuda") == "cuda"
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert own_device("cpu") == "cpu" and own_device("cuda") == "cuda:2"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert own_device("auto") == "auto"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert own_device("auto") == "cuda:2"


def test_two_processes_learn_what_one_would(tmp_path):
    """Started by torchrun, each has a batch of its own, and gradients are averaged."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29517"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run([*command, SHARED, tmp_path], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    one, other = (torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in range(2))
    torch.testing.assert_close(one, other)
    alone = trained(tmp_path / "alone", 5, accumulation=2)
    torch.testing.assert_close(one, alone.weight.detach())
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [LATEST]
    judged, other = (torch.load(tmp_path / f"judged_{rank}.pth", weights_only=True) for rank in range(2))
    assert any(name.startswith("critic.") for name in judged)
    for name, value in judged.items():
        torch.testing.assert_close(value, other[name])


def broken_at(numbers: set[int]):
    """Batches of which some are no numbers."""

    def drawn(number: int) -> tuple[torch.Tensor, ...]:
        x, y = draw(number)
        return x, y * torch.nan if number in numbers else y

    return drawn


def test_a_gradient_that_is_no_number_is_passed_over(tmp_path):
    schedule = Schedule(steps=200, warmup=1, cosine=0.0, ema=0.9)
    said = []
    made = fit([learner()], broken_at({3, 4, 90}), schedule, tmp_path, ALONE, say=lambda *told: said.append(told))
    torch.testing.assert_close(made["line"].weight, torch.ones(1, 3), atol=0.05, rtol=0)
    assert said[-1][2]["line_loss"] < 1


def test_a_training_that_ran_away_leaves_the_checkpoint_from_before(tmp_path):
    trained(tmp_path, 5)
    before = (tmp_path / LATEST).read_bytes()
    schedule = Schedule(steps=99, warmup=1, cosine=0.0, ema=0.0, save_minutes=0)
    with pytest.raises(ConfigError, match="line ran away"):
        fit([learner()], broken_at(set(range(5, 99))), schedule, tmp_path / "other", ALONE)
    with pytest.raises(ConfigError, match="line ran away"):
        fit([learner()], broken_at(set(range(99))), Schedule(steps=99, warmup=1), tmp_path, ALONE)
    assert (tmp_path / LATEST).read_bytes() == before
    kept = torch.load(tmp_path / "other" / LATEST, weights_only=True)
    assert torch.isfinite(kept["line.network"]["weight"]).all()
