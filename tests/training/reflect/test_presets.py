"""The presets: the authors' numbers, and how options change them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bids_app.errors import UsageError
from bids_app.settings import AnomalyTraining
from bids_app.training.reflect.presets import autoencoder_size, course_of, resolved, velocity_size


def asked(step: str, **options) -> AnomalyTraining:
    place = Path("nowhere")
    return AnomalyTraining(step, place, place, "m", device="cpu", **({"preset": "paper"} | options))


def test_where_the_user_says_nothing_the_preset_does():
    nothing = asked("reflect", preset=None)
    assert resolved(nothing) == replace(nothing, preset="small", morphology=True, focal=True)
    assert resolved(nothing, "paper") == replace(nothing, preset="paper", morphology=False, focal=False)
    assert resolved(nothing, "of another App").preset == "small"
    said = asked("reflect", preset="small", morphology=False)
    assert resolved(said, "paper") == replace(said, focal=True)


def test_the_schedule_of_the_authors():
    course = course_of(asked("reflect"), slices=192 * 100 + 5, processes=1)
    schedule = course.schedule
    assert (course.batch, schedule.accumulation, course.rate) == (96, 2, 5e-4)
    assert (schedule.steps, schedule.warmup, schedule.cosine, schedule.ema) == (200 * 100, 5 * 100, 0.5, 0.0)
    optimizer = course.optimizer([torch.nn.Parameter(torch.zeros(1))], course.rate)
    assert isinstance(optimizer, torch.optim.AdamW) and optimizer.defaults["weight_decay"] == 1e-4
    second = course_of(asked("reflect2"), slices=192 * 100, processes=1)
    assert (second.schedule.steps, second.rate) == (50 * 100, 1e-5)


def test_the_networks_of_the_authors():
    assert autoencoder_size(asked("autoencoder")).channels == (128, 256, 512, 512)
    assert autoencoder_size(asked("autoencoder", latent="f4")).latent_channels == 3
    size = velocity_size(asked("reflect", size="L", context=1))
    assert (size.channels, size.heads, size.dropout, size.context) == ((256, 512, 1024), 8, 0.4, 1)


def test_several_processes_take_fewer_steps():
    assert course_of(asked("reflect"), 192 * 100, 4).schedule.steps == 200 * 25


def test_options_go_before_the_preset():
    course = course_of(asked("reflect", epochs=3, batch=8, accumulation=1), 800, 1)
    assert (course.batch, course.schedule.steps) == (8, 300)
    assert course.schedule.warmup == 30  # of so short a training


def test_adapting_is_shorter_and_slower():
    whole, adapted = (course_of(asked("reflect", init=init), 192 * 100, 1) for init in (None, Path("model")))
    assert adapted.schedule.steps == whole.schedule.steps / 10 and adapted.rate == pytest.approx(whole.rate / 10)


def test_too_little_is_told():
    with pytest.raises(UsageError, match="fewer than the 192 of one step"):
        course_of(asked("reflect"), 100, 1)
    with pytest.raises(UsageError, match="no whole number of stacks"):
        course_of(asked("reflect", batch=12), 10**4, 1, stack=8)


def test_fewer_cpus_than_processes_draw_in_the_training_itself(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    course = course_of(replace(asked("reflect", nprocs=2), device="cuda"), 10000, processes=4)
    assert course.workers == 0
