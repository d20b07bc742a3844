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


def orthogonalized(matrices: Tensor) -> Tensor:
    """``(..., m, n)``: roughly the nearest matrices whose singular values are all 1 (they come out as 0.7 to 1.2).

    Every iteration multiplies from the left by a polynomial of the Gram matrix. The product of these is found first,
    which is two to three times as fast as iterating on the long kernels themselves.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    gram = x @ x.mT
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)

    def polynomial(gram: Tensor) -> Tensor:
        return a * identity + b * gram + c * gram @ gram

    product = factor = polynomial(gram)
    for _ in range(_ITERATIONS - 1):
        gram = factor @ gram @ factor
        factor = polynomial(gram)
        product = factor @ product
    x = product @ x
    return x.mT if tall else x


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
        """One step; ``closure`` is there for PyTorch's interface and is not used.

        Weights go through it together, not one by one: on a GPU the small operations would take longer than training.
        """
        for group in self.param_groups:
            learning = [weights for weights in group["params"] if weights.grad is not None]
            kernels = [weights for weights in learning if _is_kernel(weights)]
            others = [weights for weights in learning if not _is_kernel(weights)]
            if kernels:
                self._muon(kernels, group)
            if others:
                self._adam(others, group)

    def _muon(self, kernels: list[Tensor], group: dict) -> None:
        for weights in kernels:
            if not self.state[weights]:
                self.state[weights]["momentum"] = torch.zeros_like(weights)
        gradients, momenta = [w.grad for w in kernels], [self.state[w]["momentum"] for w in kernels]
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, gradients)
        ahead = torch._foreach_add(gradients, momenta, alpha=group["momentum"])  # Nesterov
        torch._foreach_mul_(kernels, 1 - group["lr"] * group["weight_decay"])
        for same in _by_shape(kernels):
            changes = orthogonalized(torch.stack([ahead[index].flatten(1) for index in same]))
            for index, change in zip(same, changes, strict=True):
                kernels[index].add_(change.view(kernels[index].shape), alpha=-group["lr"])

    def _adam(self, others: list[Tensor], group: dict) -> None:
        first, second = _ADAM_BETAS
        for weights in others:
            if not self.state[weights]:
                zeros = {name: torch.zeros_like(weights) for name in ("mean", "square")}
                self.state[weights].update(zeros, step=torch.zeros(()))
        gradients, states = [w.grad for w in others], [self.state[w] for w in others]
        means, squares, steps = ([state[name] for state in states] for name in ("mean", "square", "step"))
        torch._foreach_add_(steps, 1)
        torch._foreach_lerp_(means, gradients, 1 - first)
        torch._foreach_lerp_(squares, torch._foreach_mul(gradients, gradients), 1 - second)
        counts = [float(step) for step in steps]
        spread = torch._foreach_sqrt(torch._foreach_div(squares, [1 - second**count for count in counts]))
        torch._foreach_add_(spread, _ADAM_EPS)
        change = torch._foreach_div(torch._foreach_div(means, [1 - first**count for count in counts]), spread)
        torch._foreach_add_(others, change, alpha=-group["lr"] * group["adam_rate"])


def _by_shape(kernels: list[Tensor]) -> list[list[int]]:
    """Indices of the kernels, those of one shape together."""
    groups: dict[torch.Size, list[int]] = {}
    for index, weights in enumerate(kernels):
        groups.setdefault(weights.shape, []).append(index)
    return list(groups.values())


def _is_kernel(weights: Tensor) -> bool:
    """Whether this is a kernel of 3 x 3 (x 3) or more; transposed kernels of 2 x 2 x 2 are not."""
    return weights.ndim >= 4 and weights.shape[2] > 2
