"""Muon finds orthogonal steps and gets down a slope."""

from __future__ import annotations

import pytest
import torch

from bids_app.training.optimizer import NEWTON_SCHULZ, Muon, orthogonalized


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (8, 8)])
def test_orthogonalized_has_singular_values_near_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 30
    values = torch.linalg.svdvals(orthogonalized(matrix))
    assert values.min() > 0.3 and values.max() < 1.3


def test_matrices_of_one_shape_are_orthogonalized_together_as_each_alone():
    stack = torch.randn((3, 6, 20), generator=torch.Generator().manual_seed(2))
    together = orthogonalized(stack)
    for alone, one in zip(stack, together, strict=True):
        assert torch.allclose(orthogonalized(alone), one, atol=1e-2)


@pytest.mark.parametrize("rank", [24, 3])
def test_it_is_muons_iteration(rank):
    generator = torch.Generator().manual_seed(3)
    matrix = torch.randn((24, rank), generator=generator) @ torch.randn((rank, 90), generator=generator)
    expected, (a, b, c) = matrix.double() / torch.linalg.matrix_norm(matrix.double()), NEWTON_SCHULZ
    for _ in range(5):
        gram = expected @ expected.T
        expected = a * expected + (b * gram + c * gram @ gram) @ expected
    assert torch.allclose(orthogonalized(matrix).double(), expected, atol=1e-4 * expected.abs().max())


def test_it_keeps_the_direction_of_a_well_conditioned_matrix():
    matrix = torch.linalg.qr(torch.randn(9, 5, generator=torch.Generator().manual_seed(1)))[0]
    assert torch.nn.functional.cosine_similarity(matrix.flatten(), orthogonalized(3 * matrix).flatten(), 0) > 0.99


def test_a_small_network_learns_and_can_be_resumed():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv3d(8, 1, 1))
    image = torch.randn(2, 1, 8, 8, 8)
    goal = torch.nn.functional.avg_pool3d(image, 3, 1, 1)
    optimizer, losses = Muon(network.parameters(), 0.02), []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (network(image) - goal).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]
    again = Muon(network.parameters(), 0.02)
    again.load_state_dict(optimizer.state_dict())
    momenta = [state.get("momentum") for state in again.state.values()]
    assert sum(momentum is not None for momentum in momenta) == 1, "one kernel of 3 x 3 x 3, the rest is Adam's"
