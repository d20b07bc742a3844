"""What autoencoders minimise, and their critic."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from bids_app.anomaly.autoencoder import Autoencoder, Posterior
from bids_app.training.reflect.losses import Critic, critic_loss, kl_loss, structural_loss
from bids_app.training.reflect.tasks import Reconstruction
from tests.anomaly.models import AUTOENCODER


def test_divergence_is_that_of_torch():
    mean, deviation, scale = torch.randn(3, 2, 4, 4), torch.rand(3, 2, 4, 4) + 0.1, 0.18215
    known = kl_divergence(Normal(mean / scale, deviation / scale), Normal(0.0, 1.0)).flatten(1).sum(dim=1).mean()
    torch.testing.assert_close(kl_loss(Posterior(mean, deviation), scale), known)


def test_structure_is_all_of_it_or_none():
    torch.manual_seed(0)
    image = torch.rand(2, 1, 32, 32)
    assert structural_loss(image, image) == pytest.approx(0, abs=1e-6)
    assert structural_loss(image, 1 - image) > 1.5
    assert 0 < structural_loss(image, image + 0.1) < structural_loss(image, torch.rand(2, 1, 32, 32))


def test_the_critic_learns_to_tell():
    torch.manual_seed(0)
    critic, real, made = Critic(8, 1), torch.ones(4, 1, 32, 32), -torch.ones(4, 1, 32, 32)
    optimizer = torch.optim.Adam(critic.parameters(), 1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        critic_loss(critic, real, made).backward()
        optimizer.step()
    assert critic(real).mean() > critic(made).mean() + 1


def test_the_critic_of_latent_diffusion_judges_patches_of_70_pixels():
    """30 x 30 of them in 256 x 256 (Isola et al. 2017)."""
    assert Critic(64, 3, dense=True)(torch.zeros(1, 1, 256, 256)).shape == (1, 1, 30, 30)


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_critic_judges_from_its_step_on_what_was_made_of_each_batch(adaptive):
    torch.manual_seed(0)
    losses = Reconstruction(Critic(8, 1), critic_from=1, adaptive=adaptive)
    network, parts = Autoencoder(AUTOENCODER), [(torch.rand(2, 1, 64, 48),), (torch.rand(2, 1, 64, 48),)]
    for part in parts:
        losses.autoencoder_loss(network, part, 0)
    assert losses.critic_loss(losses.critic, parts[0], 0) is None
    for part in parts:
        losses.autoencoder_loss(network, part, 1).backward()
    first, second = losses.made
    assert not torch.equal(first, second)
    assert float(losses.critic_loss(losses.critic, parts[0], 1)) == pytest.approx(
        float(critic_loss(losses.critic, parts[0][0], first))
    )
    assert len(losses.made) == 1 and torch.equal(losses.made[0], second)


def test_the_critics_gradient_is_as_large_as_that_of_the_difference():
    torch.manual_seed(0)
    network, batch = Autoencoder(AUTOENCODER), (torch.rand(2, 1, 64, 48),)
    last = network.core.decoder.conv_out.weight

    def gradient(**options) -> torch.Tensor:
        torch.manual_seed(1)
        losses = Reconstruction(critic, critic_from=0, **options)
        return torch.autograd.grad(losses.autoencoder_loss(network, batch, 0), last)[0]

    critic = Critic(8, 1)
    without = gradient(adversarial=0.0)
    added = gradient(adversarial=1.0, adaptive=True) - without
    assert float(added.norm()) == pytest.approx(float(without.norm()), rel=0.02)
