"""Muon for convolutions, Adam for the rest: learns more in a step than AdamW alone, for a few per cent of its time.

Muon (Jordan et al. 2024) replaces the gradient's momentum by the nearest orthogonal matrix, found by a few
Newton-Schulz iterations. PyTorch's own takes matrices only; here a kernel ``(out, in, z, y, x)`` is one of ``out``.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_ADAM_BETAS, _ADAM_EPS = (0.9, 0.99), 1e-8


def orthogonalized(matrix: Tensor) -> Tensor:
    """Roughly the nearest matrix whose singular values are all 1 (they come out between 0.7 and 1.2)."""
    a, b, c = NEWTON_SCHULZ
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Muon for the kernels of convolutions; Adam for biases, norms, 1 x 1 x 1 kernels and transposed convolutions.

    Parameters
    ----------
    parameters : iterable of torch.nn.Parameter
    rate : float
        Learning rate of Muon.
    adam_rate : float
        Learning rate of Adam, as a share of that of Muon.
    momentum, weight_decay : float
        Of Muon.
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        rate: float = 0.05,
        adam_rate: float = 0.2,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ):
        defaults = {"lr": rate, "adam_rate": adam_rate, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """One step; ``closure`` is there for PyTorch's interface and is not used."""
        for group in self.param_groups:
            for weights in group["params"]:
                if weights.grad is None:
                    continue
                if _is_kernel(weights):
                    self._muon(weights, group)
                else:
                    self._adam(weights, group)

    def _muon(self, weights: Tensor, group: dict) -> None:
        state = self.state[weights]
        if not state:
            state["momentum"] = torch.zeros_like(weights)
        state["momentum"].mul_(group["momentum"]).add_(weights.grad)
        ahead = weights.grad.add(state["momentum"], alpha=group["momentum"])  # Nesterov
        change = orthogonalized(ahead.reshape(len(ahead), -1)).view_as(weights)
        weights.mul_(1 - group["lr"] * group["weight_decay"]).add_(change, alpha=-group["lr"])

    def _adam(self, weights: Tensor, group: dict) -> None:
        state, (first, second) = self.state[weights], _ADAM_BETAS
        if not state:
            state.update(mean=torch.zeros_like(weights), square=torch.zeros_like(weights), step=torch.zeros(()))
        state["step"] += 1
        state["mean"].lerp_(weights.grad, 1 - first)
        state["square"].lerp_(weights.grad.square(), 1 - second)
        count = float(state["step"])
        mean, square = state["mean"] / (1 - first**count), state["square"] / (1 - second**count)
        weights.addcdiv_(mean, square.sqrt().add_(_ADAM_EPS), value=-group["lr"] * group["adam_rate"])


def _is_kernel(weights: Tensor) -> bool:
    """Whether this is a kernel of 3 x 3 (x 3) or more; transposed kernels of 2 x 2 x 2 are not."""
    return weights.ndim >= 4 and weights.shape[2] > 2
