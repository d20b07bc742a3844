"""What a healthy or merely old brain shows in T1w and FLAIR, and the models must leave alone."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from bids_app.training.synthesis.fields import blur, chance, coarse_blur, smooth_noise, soft_step, uniform
from bids_app.training.synthesis.tissue import CSF, DEEP, T1W, VENTRICLE, WHITE, Tissue


def per_contrast(t1w: float, flair: float, device: torch.device | str = "cpu") -> Tensor:
    """One value for each contrast, to go with ``(1, 2, z, y, x)`` intensities."""
    return torch.tensor([t1w, flair], device=device).view(1, 2, 1, 1, 1)


def towards(image: Tensor, goal: Tensor, share: Tensor, direction: Tensor | None = None) -> Tensor:
    """Intensities moved towards a goal.

    Parameters
    ----------
    image : torch.Tensor
        ``(1, 2, z, y, x)``.
    goal, share : torch.Tensor
        What to move to, and how far (0-1); both broadcast against the image.
    direction : torch.Tensor, optional
        -1 where a contrast may only become darker, 1 where only brighter.
    """
    step = goal - image
    if direction is not None:
        step = (direction * step).clamp_min(0) * direction
    return image + share * step


def atrophy(image: Tensor, tissue: Tissue, rng: Generator) -> Tensor:
    """Wide sulci and large ventricles: brain next to CSF becomes CSF, unevenly over the brain."""
    uneven = 1 + 0.3 * smooth_noise(35.0, rng)
    darker = per_contrast(-1, -1, rng.device)
    for channel, reach_mm in ((CSF, uniform(2.0, 3.5, rng)), (VENTRICLE, uniform(2.5, 5.0, rng))):
        near = coarse_blur(tissue.share(channel), reach_mm) * uneven
        share = soft_step(near, uniform(0.3, 0.6, rng), 0.03)
        image = towards(image, tissue.means.csf, 0.9 * share, darker)
    return image


def leukoaraiosis(image: Tensor, tissue: Tissue, rng: Generator) -> Tensor:
    """White matter dark in T1w and bright in FLAIR, around the ventricles and in spots: small vessel disease."""
    white = tissue.share(WHITE)
    ventricle = coarse_blur(tissue.share(VENTRICLE), uniform(4.0, 9.0, rng))
    caps = soft_step(ventricle + 0.06 * smooth_noise(12.0, rng), uniform(0.12, 0.4, rng), 0.03)
    spots = soft_step(smooth_noise(uniform(6.0, 12.0, rng), rng), uniform(2.2, 3.5, rng), 0.15)
    share = torch.maximum(caps, spots) * white.clamp(0, 1)
    csf, grey, _ = tissue.means.of(T1W)
    goal = per_contrast(grey - 0.25 * (grey - csf), uniform(1.15, 1.8, rng), rng.device)
    amount = per_contrast(uniform(0.1, 1.0, rng), uniform(0.3, 1.0, rng), rng.device)
    return towards(image, goal, share * amount, per_contrast(-1, 1, rng.device))


def ependymal_lining(image: Tensor, tissue: Tissue, rng: Generator) -> Tensor:
    """The thin bright line that a FLAIR shows around ventricles, and its spread at the horns."""
    ventricle = tissue.share(VENTRICLE)
    edge = 4 * blur(ventricle, 0.7) * (1 - blur(ventricle, 0.7)) * (1 - ventricle)
    bright = uniform(1.1, 1.5, rng)
    share = edge * per_contrast(0.0, uniform(0.2, 0.9, rng), rng.device)
    return towards(image, torch.full_like(share, bright), share, per_contrast(1, 1, rng.device))


def perivascular_spaces(image: Tensor, tissue: Tissue, rng: Generator) -> Tensor:
    """CSF-like points up to about 4 mm in white matter and nuclei."""
    where = (tissue.share(WHITE) + tissue.share(DEEP)).clamp(0, 1)
    points = torch.rand(where.shape, generator=rng, device=rng.device) < uniform(1e-5, 4e-4, rng)
    size = uniform(0.4, 0.75, rng)
    dots = (blur(points.float(), size) * (size * 2.5) ** 3).clamp(0, 1) * where
    share = dots * per_contrast(uniform(0.2, 0.8, rng), uniform(0.1, 0.8, rng), rng.device)
    return towards(image, tissue.means.csf, share)


def vessels(image: Tensor, tissue: Tissue, rng: Generator) -> Tensor:
    """Bright or dark vessels and membranes in the CSF around the brain; mostly dark in a FLAIR."""
    ridge = smooth_noise(uniform(5.0, 10.0, rng), rng).abs()
    lines = soft_step(-ridge, -0.12, 0.04) * tissue.share(CSF)
    goal = per_contrast(uniform(0.05, 1.2, rng), uniform(0.0, 0.9, rng), rng.device)
    return towards(image, goal, lines * uniform(0.0, 0.9, rng))


def pulsation(image: Tensor, tissue: Tissue, rng: Generator) -> Tensor:
    """Fluid that flowed in during a FLAIR and is bright: cisterns and parts of the ventricles."""
    fluid = (tissue.share(CSF) + tissue.share(VENTRICLE)).clamp(0, 1)
    where = soft_step(smooth_noise(uniform(20.0, 45.0, rng), rng), uniform(0.8, 2.0, rng), 0.2)
    share = fluid * where * per_contrast(0.0, uniform(0.1, 0.7, rng), rng.device)
    return towards(image, torch.full_like(share, uniform(0.6, 1.3, rng)), share, per_contrast(1, 1, rng.device))


EFFECTS = (
    (vessels, 0.6),
    (leukoaraiosis, 0.5),
    (ependymal_lining, 0.5),
    (atrophy, 0.6),
    (perivascular_spaces, 0.35),
    (pulsation, 0.3),
)
"""Each effect with its chance."""


def add_distractors(image: Tensor, tissue: Tissue, rng: Generator) -> Tensor:
    """Some of the effects, each by its chance; all stay inside the brain and the CSF around it."""
    for effect, probability in EFFECTS:
        if chance(probability, rng):
            image = effect(image, tissue, rng)
    return image
