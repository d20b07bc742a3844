"""What a scan shows against what it is called: size, lesions, noise and small errors of the pose do not matter."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from bids_app.images import Image, data, like, load, resample
from bids_app.preprocessing.contrast import Contrast, doubts, judged, measure
from bids_app.preprocessing.templates import Template, load_template
from bids_app.settings import DEFAULT_SPACE

#: Grey values of fluid, grey and white matter: of the template, and of other contrasts.
TISSUES = (0.0, 0.33, 0.71, 0.96, 1.2)
LEVELS = {"T1w": (0, 0.3, 0.7, 1, 1.1), "FLAIR": (0, 0.35, 1.2, 1, 1), "T2w": (0, 3, 1.4, 1, 0.9)}


@pytest.fixture(scope="module")
def template() -> Template:
    return load_template(DEFAULT_SPACE)


@pytest.fixture(scope="module")
def brains(template) -> dict[str, Image]:
    """The template in three contrasts, with noise."""
    levels, inside = data(template.t1w), data(template.brain_mask) > 0
    noise = np.random.default_rng(0).normal(0, 0.05, levels.shape).astype(np.float32)
    return {
        name: like(template.t1w, np.where(inside, np.maximum(np.interp(levels, TISSUES, to) + noise, 0.01), 0))
        for name, to in LEVELS.items()
    }


def shrunk(values: np.ndarray) -> np.ndarray:
    """A smaller head: 6 % in each direction about the middle of the image."""
    middle = np.array(values.shape) / 2
    return ndimage.affine_transform(values, np.eye(3) / 0.94, middle - middle / 0.94, order=1)


def with_lesion(values: np.ndarray, level: float) -> np.ndarray:
    """150 mL of one grey value."""
    out = values.copy()
    part = out[30:80, 100:160, 70:120]
    part[part > 0] = level
    return out


CHANGES = pytest.mark.parametrize("change", [
    lambda values: 1000 * values,
    shrunk,
    lambda values: np.roll(values, (4, -4, 4), (0, 1, 2)),
    lambda values: np.repeat(values[:, :, ::6], 6, axis=2)[:, :, :189],  # thick slices
    lambda values: values * np.linspace(0.9, 1.1, values.shape[0], dtype=np.float32)[:, None, None],
])  # fmt: skip


def codes(**named: Image) -> list[str]:
    return [doubt.code for doubt in doubts(named, load_template(DEFAULT_SPACE))]


def doubted(**contrasts: Contrast) -> bool:
    return bool(judged(contrasts))


def check(t1w: Contrast, flair: Contrast, t2w: Contrast) -> None:
    """Right names are not doubted, and wrong ones are."""
    assert not (doubted(T1w=t1w) or doubted(FLAIR=flair) or doubted(T1w=t1w, FLAIR=flair))
    assert doubted(T1w=flair) and doubted(FLAIR=t1w) and doubted(T1w=t2w) and doubted(FLAIR=t2w)


@CHANGES
def test_a_name_that_is_right_is_not_doubted_and_a_wrong_one_is(brains, template, change):
    check(*(measure(like(brains[name], change(data(brains[name]))), template) for name in LEVELS))


def test_large_lesions_do_not_matter(brains, template):
    dark, bright = {"T1w": 0.3, "FLAIR": 0.4, "T2w": 2}, {"T1w": 0.6, "FLAIR": 1.8, "T2w": 2.5}
    for levels in (dark, bright):
        scans = [like(brains[name], with_lesion(data(brains[name]), level)) for name, level in levels.items()]
        check(*(measure(scan, template) for scan in scans))


def test_exchanged_scans_are_told_once(brains, template):
    (doubt,) = doubts({"T1w": brains["FLAIR"], "FLAIR": brains["T1w"]}, template)
    assert (doubt.code, doubt.suffixes) == ("contrast-mismatch", ("T1w", "FLAIR"))
    assert doubt.sentence.startswith("T1w and FLAIR look exchanged")


@pytest.mark.parametrize("change", [lambda values: values, lambda values: 3 * values + 0.1 * (values > 0)])
def test_one_scan_under_two_names_is_told(brains, change):
    for name in ("T1w", "FLAIR"):
        assert codes(T1w=brains[name], FLAIR=like(brains[name], change(data(brains[name])))) == ["same-scan"]


def test_one_scan_of_a_pair_that_is_wrong_is_named(brains, template):
    (doubt,) = doubts({"T1w": brains["T1w"], "FLAIR": brains["T2w"]}, template)
    assert doubt.suffixes == ("FLAIR",)
    assert "named FLAIR, but fluid is" in doubt.sentence and "as in a T2w" in doubt.sentence


OLD_FLAIR = Contrast(0.70, 0.2)  # bright white matter, thin cortex


@pytest.mark.parametrize(("t1w", "flair", "about"), [
    (Contrast(0.93, 0.3), OLD_FLAIR, []),
    (OLD_FLAIR, Contrast(0.93, 0.3), [("T1w", "FLAIR")]),
    (Contrast(0.93, 0.3), Contrast(0.95, 0.3), [("FLAIR",)]),  # two T1w
    (Contrast(0.3, 0.3), Contrast(0.4, 0.3), [("T1w",)]),  # two FLAIR
    (OLD_FLAIR, OLD_FLAIR, []),
    (Contrast(np.nan, np.nan), Contrast(np.nan, np.nan), []),
])  # fmt: skip
def test_scans_of_one_visit_are_compared(t1w, flair, about):
    assert [doubt.suffixes for doubt in judged({"T1w": t1w, "FLAIR": flair})] == about


@pytest.mark.parametrize("part", [np.s_[:, :, :60], np.s_[:5], np.s_[:0]])
def test_too_little_brain_says_nothing(brains, part):
    values = np.zeros(brains["T1w"].shape, np.float32)
    values[part] = data(brains["T1w"])[part]
    assert codes(T1w=like(brains["T1w"], values), FLAIR=brains["FLAIR"]) == []


def test_one_grey_value_says_nothing(template):
    assert codes(T1w=like(template.t1w, data(template.brain_mask))) == []


#: T1w and FLAIR in MNI space as they are, so that they need no registration.
@pytest.mark.parametrize("patient", ["07", "26"])
def test_real_pairs(test_data, template, patient):
    def brain(suffix: str) -> Image:
        scan = load(test_data / "ms_pairs" / f"mni_patient{patient}_{suffix}.nii.gz")
        moved = resample(like(scan, data(scan)), template.t1w)
        return like(moved, np.where(data(template.brain_mask) > 0, np.maximum(data(moved), 0), 0))

    t1w, flair = (measure(brain(suffix), template) for suffix in ("T1w", "FLAIR"))
    assert not (doubted(T1w=t1w) or doubted(FLAIR=flair) or doubted(T1w=t1w, FLAIR=flair))
    assert doubted(T1w=flair) and doubted(T1w=flair, FLAIR=t1w)
    assert t1w.whiteness > flair.whiteness + 0.3
