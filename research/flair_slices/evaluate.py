"""Scores of predicted slices: Dice by visibility, and how often a clean slice raises a false alarm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from research.flair_slices.augmentation import plain
from research.flair_slices.network import SliceUNet
from research.flair_slices.slices import VISIBLE, Slices

#: A clean slice on which more than this is marked has raised an alarm.
ALARM_MM2 = 20
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


@dataclass(frozen=True)
class SliceScores:
    """Scores of one plane at one operating point.

    Attributes
    ----------
    dice : ndarray
        ``(n,)``: of each slice with lesion; NaN of the others.
    marked_mm2 : ndarray
        ``(n,)``: what is marked.
    pooled, pooled_visible : float
        Dice of all slices with lesion or none, taken together; of those whose lesion is visible.
    alarmed : float
        Share of clean slices, of patients without an earlier stroke, with more than `ALARM_MM2` marked.
    """

    dice: np.ndarray
    marked_mm2: np.ndarray
    pooled: float
    pooled_visible: float
    alarmed: float

    def mean(self, chosen: np.ndarray) -> float:
        """Mean Dice of some slices."""
        return float(np.nanmean(self.dice[chosen])) if np.isfinite(self.dice[chosen]).any() else np.nan


@torch.no_grad()
def predict(network: SliceUNet, slices: Slices, batch: int = 16) -> np.ndarray:
    """Lesion probabilities ``(n, rows, columns)``, float32."""
    network.eval()
    mirrored = slices.plane != "sagittal"
    parts = []
    for start in range(0, len(slices), batch):
        image = torch.from_numpy(slices.image[start : start + batch].astype(np.float32))[:, None]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = network(plain(image, mirrored).contiguous(memory_format=torch.channels_last))[0]
        parts.append(torch.sigmoid(logits)[:, 0].numpy())
    return np.concatenate(parts)


def marked(probability: np.ndarray, low: float, high: float | None = None) -> np.ndarray:
    """Pixels of at least `low` in components that somewhere reach `high` (hysteresis; `low` alone without)."""
    mask = probability >= low
    if high is None or high <= low:
        return mask
    out = np.zeros_like(mask)
    for index, one in enumerate(mask):
        labels, count = ndimage.label(one, np.ones((3, 3)))
        if count:
            peaks = ndimage.maximum(probability[index], labels, np.arange(1, count + 1))
            out[index] = np.isin(labels, 1 + np.flatnonzero(np.asarray(peaks) >= high))
    return out


def score(mask: np.ndarray, slices: Slices) -> SliceScores:
    """Scores of masks ``(n, rows, columns)``."""
    truth, area = slices.lesion, mask.sum(axis=(1, 2))
    both, sizes = (mask & truth).sum(axis=(1, 2)), area + truth.sum(axis=(1, 2))
    dice = np.where(slices.has_lesion, 2 * both / np.maximum(sizes, 1), np.nan)
    counted = slices.has_lesion | slices.is_clean
    visible = slices.has_lesion & (np.nan_to_num(slices.contrast, nan=-9) >= VISIBLE)
    clean = slices.is_clean & ~slices.earlier_stroke
    return SliceScores(
        dice,
        area,
        float(2 * both[counted].sum() / max(1, sizes[counted].sum())),
        float(2 * both[visible].sum() / max(1, sizes[visible].sum())),
        float((area[clean] > ALARM_MM2).mean()),
    )


def best_point(probability: np.ndarray, slices: Slices, alarmed: float = 0.10) -> tuple[float, float, SliceScores]:
    """The two thresholds with the highest mean Dice whose false alarms are few enough."""
    visible = np.nan_to_num(slices.contrast, nan=-9) >= VISIBLE
    best: tuple[float, float, SliceScores] | None = None
    for low in THRESHOLDS[:-1]:
        for high in (value for value in (*THRESHOLDS, 0.9, 0.95, 0.98) if value >= low):
            scores = score(marked(probability, low, high), slices)
            if scores.alarmed <= alarmed and (best is None or scores.mean(visible) > best[2].mean(visible)):
                best = low, high, scores
    if best is None:
        raise ValueError("no pair of thresholds keeps clean slices clean")
    return best


def headline(probability: np.ndarray, slices: Slices) -> str:
    """The plane, the operating point with at most 0.10 alarmed, and its scores."""
    try:
        low, high, scores = best_point(probability, slices)
    except ValueError:
        return f"{slices.plane}: none"
    visible = np.nan_to_num(slices.contrast, nan=-9) >= VISIBLE
    everything = np.ones(len(slices), bool)
    return (
        f"{slices.plane} {low:g}/{high:g}: all {scores.mean(everything):.3f} visible {scores.mean(visible):.3f} "
        f"pooled {scores.pooled:.3f} visible {scores.pooled_visible:.3f} alarmed {scores.alarmed:.3f}"
    )


def mean_of(probabilities: Sequence[np.ndarray]) -> np.ndarray:
    """Mean of several networks' probabilities."""
    return np.mean(probabilities, axis=0)
