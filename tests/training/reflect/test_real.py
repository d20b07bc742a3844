"""The training of an anomaly model with the App's own preparation, in two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bids_app.anomaly.model import load_anomaly_model
from tests.training.own.study import make_study
from tests.training.reflect.conftest import brain

pytestmark = pytest.mark.slow


def torchrun(port: int, *arguments: str | Path) -> str:
    """The command in two processes; what it said."""
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    command = [*start, "-m", "bids_app.cli", "train", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_two_processes_make_one_model(tmp_path):
    make_study(tmp_path / "bids")
    place = ["--bids", tmp_path / "bids", "--out", tmp_path / "models", "-w", tmp_path / "work", "--device", "cpu"]
    short = ["--nprocs", "1", "--epochs", "1", "--batch", "16"]
    said = torchrun(29518, "autoencoder", *place, *short)
    assert said.count("prepared 7 of 7") == 1
    start = tmp_path / "models" / "autoencoder"
    torchrun(29519, "reflect", *place, *short, "--autoencoder", start)
    card = json.loads((tmp_path / "models" / "reflect" / "card.json").read_text())
    assert card["healthy_scans"]["scans"] >= 2 and -1 < card["scores"]["mended"] < 1
    assert load_anomaly_model(tmp_path / "models" / "reflect").explain(brain()).anomaly.any()
