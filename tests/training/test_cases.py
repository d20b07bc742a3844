"""Synthetic cases for validation and tests."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from bids_app.measures.volumes import volume_class
from bids_app.training.cases import Case, make_cases
from bids_app.training.synthesis.fields import SPACING_MM
from tests.training.heads import toy_lesion, toy_source

LESIONS = [toy_lesion(), toy_lesion(-25, 22.0, "sub-0012")]


def cases(seed: int, healthy: int | None = None) -> Iterator[Case]:
    return make_cases([toy_source()], LESIONS, 1, seed, healthy)


def test_cases_come_from_every_head_and_class_and_are_the_same_again():
    found = list(cases(3))
    again, others = next(cases(3)), next(cases(4))
    assert [case.group for case in found] == ["small", "medium", "none"]
    assert torch.equal(found[0].image, again.image) and np.array_equal(found[0].truth, again.truth)
    assert not torch.equal(found[0].image, others.image)
    assert [volume_class(case.truth.sum() * SPACING_MM**3 / 1000) for case in found] == ["small", "medium", "none"]


def test_what_touches_a_lesion_is_not_elsewhere():
    truth = np.zeros((12, 12, 12), bool)
    truth[5, 5, 5] = True
    case = Case("head", "small", torch.zeros(2, 12, 12, 12), truth)
    assert not case.elsewhere[5, 5, 3:8].any() and case.elsewhere[5, 5, 8]
