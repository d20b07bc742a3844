"""How sure a mean is."""

from __future__ import annotations

import numpy as np


def interval(values: np.ndarray, draws: int = 2000) -> str:
    """Mean and 95 % bootstrap interval over independent values, in words."""
    drawn = np.random.default_rng(0).choice(values, (draws, len(values)))
    low, high = np.percentile(drawn.mean(axis=1), (2.5, 97.5))
    return f"{values.mean():.2f} ({low:.2f} to {high:.2f})"
