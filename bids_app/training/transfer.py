"""Weights of one network for another that sees more contrasts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from bids_app.errors import ConfigError


def fitted_weights(
    weights: Mapping[str, Tensor], target: Mapping[str, Tensor], source: Path, groups: int = 1
) -> dict[str, Tensor]:
    """Weights for a network, their first convolution extended over further channels.

    A first convolution that takes ``n`` times the channels gets the weights repeated and divided by ``n``, so that
    the network begins by treating the channels alike (Di Matteo et al. 2026, as in their training code).

    Parameters
    ----------
    weights, target : mapping of str to torch.Tensor
        What there is, and what the network has, by name.
    source : Path
        Where the weights are from, for messages.
    groups : int
        As for `extend_channels`.

    Raises
    ------
    ConfigError
        If the weights do not fit.
    """
    if missing := sorted(set(target) ^ set(weights)):
        raise ConfigError(
            f"The weights in {source} are of another network: {missing[0]} is in one of the two only.",
            "Start from a model of the same architecture.",
        )
    return {key: _fitted(key, weights[key], value, groups, source) for key, value in target.items()}


def _fitted(key: str, given: Tensor, wanted: Tensor, groups: int, source: Path) -> Tensor:
    """A tensor as it is, or repeated over channels."""
    if given.shape == wanted.shape:
        return given.to(wanted.dtype)
    factor, rest = divmod(wanted.shape[1], given.shape[1]) if given.ndim == wanted.ndim == 5 else (0, 1)
    if rest or factor < 2 or given.shape[0] != wanted.shape[0] or given.shape[2:] != wanted.shape[2:]:
        shapes = " and ".join(str(tuple(tensor.shape)) for tensor in (given, wanted))
        raise ConfigError(
            f"The weights in {source} do not fit: {key} has the shapes {shapes}.",
            "Start from a model of the same architecture.",
        )
    return extend_channels(given.to(wanted.dtype), factor, groups)


def extend_channels(weight: Tensor, factor: int, groups: int = 1) -> Tensor:
    """Weights of a first convolution for `factor` times the contrasts: repeated, and divided by their number.

    Parameters
    ----------
    weight : torch.Tensor
        ``(out, in, z, y, x)`` of a network with one contrast.
    groups : int
        2 for `MirrorUNet`, whose channels are the voxel blocks of each contrast, then those of each mirrored contrast;
        1 for networks that see the contrasts themselves.
    """
    out, channels, *kernel = weight.shape
    apart = weight.reshape(out, groups, 1, channels // groups, *kernel)
    return apart.repeat(1, 1, factor, *([1] * (len(kernel) + 1))).reshape(out, factor * channels, *kernel) / factor
