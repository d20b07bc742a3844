"""A tiny anomaly model with random weights, in the App's format."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from bids_app.anomaly.autoencoder import Autoencoder, AutoencoderSize
from bids_app.anomaly.velocity import Velocity, VelocitySize

AUTOENCODER = AutoencoderSize((8,), latent_channels=2, patch=4, blocks=1, attention=False)
VELOCITY = VelocitySize((8, 8), heads=2, attention=(False, False), blocks=1, patch=2)


def write_anomaly_model(folder: Path, size: VelocitySize = VELOCITY, **card: object) -> Path:
    """Write a model folder; `card` changes what its card says."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(Autoencoder(AUTOENCODER).state_dict(), folder / "autoencoder.pth")
    torch.save(Velocity(size, AUTOENCODER.latent_channels).state_dict(), folder / "velocity.pth")
    content = {
        "name": "tiny",
        "version": "1",
        "contrast": "T1w",
        "steps": 2,
        "threshold": 0.2,
        "autoencoder": AUTOENCODER.to_card(),
        "velocity": size.to_card(),
    }
    (folder / "card.json").write_text(json.dumps(content | card))
    return folder
