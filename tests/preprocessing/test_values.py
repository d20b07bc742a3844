"""Grey values that no scanner measured are put right, and those of a scan come out bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from bids_app.images import data
from bids_app.preprocessing.headers import clean
from bids_app.preprocessing.values import clipped, raised, unwrapped
from tests.preprocessing import phantoms


@pytest.fixture(scope="module")
def scans() -> dict[str, np.ndarray]:
    """Head, stripped brain and FLAIR of one phantom, rounded as scanners do."""
    phantom = phantoms.patient()
    images = {"head": phantom.head, "brain": phantom.brain, "flair": phantoms.flair_of(phantom)}
    return {name: np.round(data(image)) for name, image in images.items()}


KINDS = pytest.mark.parametrize("kind", ["head", "brain", "flair"])


def some(values: np.ndarray, count: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Indices of so many voxels of the head or brain, anywhere in it."""
    inside = np.argwhere(values > 100)
    return tuple(inside[np.random.default_rng(seed).choice(len(inside), count, replace=False)].T)


# ------------------------------------------------------------------------------------------------- untouched


@KINDS
@pytest.mark.parametrize("change", [
    lambda values: values,
    lambda values: values / 1000,
    lambda values: values * 1e6,
    lambda values: (values - values.mean()) / values.std(),
    lambda values: values - 1000,
    lambda values: np.minimum(values, np.percentile(values, 99)),  # saturated in the scanner
    lambda values: np.where(values > 0, values, values - 5),  # splines ring around a brain
])  # fmt: skip
def test_ordinary_scans_are_not_touched(scans, kind, change):
    values = change(scans[kind]).astype(np.float32)
    assert clipped(values).values is values


@KINDS
@pytest.mark.parametrize("times", [2.0, 3.5])
def test_bright_structures_are_ordinary(scans, kind, times):
    """Fat, vessels with contrast agent, a lesion in a FLAIR: with partial volume at their borders."""
    values = scans[kind].copy()
    tissue = np.percentile(values[values > 100], 90)
    centre = np.array(values.shape) // 2
    distance = np.linalg.norm(np.moveaxis(np.indices(values.shape), 0, -1) - centre, axis=-1)
    for radius, level in ((5, 0.5), (4, 0.8), (3, 1)):
        values[distance < radius] = level * times * tissue
    assert clipped(values).values is values


@pytest.mark.parametrize(
    "name", ["whole_head/synthsr_FLAIR", "ms_pairs/mni_patient07_T1w", "ms_pairs/raw_patient04_study1_FLAIR"]
)
def test_a_real_scan_comes_out_bit_for_bit(test_data, name):
    check_untouched(test_data / f"{name}.nii.gz")


@pytest.mark.slow
def test_every_real_scan_comes_out_bit_for_bit(test_data):
    paths = [path for room in ("whole_head", "ms_pairs", "paired_clinical") for path in (test_data / room).glob("*.gz")]
    scans = [path for path in paths if "lesion" not in path.name]
    assert len(scans) >= 20
    for path in scans:
        check_untouched(path)


def check_untouched(path: Path) -> None:
    values = data(clean(path).image)
    assert clipped(values).values is values, path.name
    assert raised(values).values is values, path.name
    levels = np.round(255 * np.clip(values / values.max(), 0, 1)).astype(np.uint8)
    assert unwrapped(levels).values is levels, path.name


# ------------------------------------------------------------------------------------------------- extreme


@KINDS
@pytest.mark.parametrize("value", [1e6, 32767, 1e30, -32768, -1e6])
def test_one_voxel_far_from_all_others_is_clipped(scans, kind, value):
    values = scans[kind].copy()
    place = some(values, 1)
    values[place] = value
    mended = clipped(values)
    ordinary = np.delete(values.ravel(), np.ravel_multi_index(place, values.shape))
    assert mended.values[place] == (ordinary.max() if value > 0 else ordinary.min())
    assert np.array_equal(np.where(values == value, 0, mended.values), np.where(values == value, 0, values))
    assert mended.sentence.startswith("1 voxel was far from all others") and f"{value:g}" in mended.sentence


@KINDS
@pytest.mark.parametrize("count", [20, 200, 2000])
@pytest.mark.parametrize("value", [4095, 32767, 65535])
def test_saturated_voxels_are_clipped_to_what_is_ordinary(scans, kind, count, value):
    values = scans[kind].copy()
    most = values.max()
    values[some(values, min(count, np.count_nonzero(values > 100) // 60))] = value
    mended = clipped(values)
    assert mended.values.max() <= most
    assert np.array_equal(mended.values[values < value], values[values < value])


@KINDS
def test_spikes_of_any_height_leave_none_that_is_far(scans, kind):
    values = scans[kind].copy()
    tissue, places = np.percentile(values[values > 100], 90), some(values, 300)
    values[places] = np.random.default_rng(1).uniform(0, 1e5, 300)
    mended = clipped(values)
    assert mended.values.max() <= 4.5 * tissue
    assert "far from all others" in mended.sentence


def test_both_sides_are_told(scans):
    values = scans["head"].copy()
    values[some(values, 2)] = [-30000, 30000]
    assert "up to -30000 and 30000" in clipped(values).sentence


def test_where_much_is_far_the_rest_may_be_odd(scans):
    """A small bright object in noise, or a mask on top of a scan: nothing says which of them is wrong."""
    values = scans["head"].copy()
    values[20:45, 20:45, 20:40] = 1e5
    assert clipped(values).values is values


@pytest.mark.parametrize("level", [0, 7])
def test_one_grey_value_is_left_alone(level):
    values = np.full((20, 20, 20), level, np.float32)
    assert clipped(values).values is values
    assert raised(values).values is values


# ------------------------------------------------------------------------------------------------- wrapped


@KINDS
@pytest.mark.parametrize(("width", "signed"), [(16, np.int16), (8, np.int8)])
@pytest.mark.parametrize("top", [0.52, 0.7, 0.95])
def test_numbers_too_large_for_a_signed_type_come_back(scans, kind, width, signed, top):
    unsigned = np.dtype(signed.__name__.replace("int", "uint"))
    smooth = ndimage.gaussian_filter(scans[kind], 1)
    values = np.round(smooth / smooth.max() * top * (2**width - 1)).astype(unsigned)
    mended = unwrapped(values.view(signed))
    assert np.array_equal(mended.values, values)
    assert mended.sentence.startswith(f"{np.count_nonzero(values >= 2 ** (width - 1))} voxels had wrapped round")
    assert mended.sentence.endswith("too large for a signed type, and were put right.")


@KINDS
def test_numbers_below_0_in_an_unsigned_type_come_back(scans, kind):
    noise = np.random.default_rng(0).normal(0, 4, scans[kind].shape)
    values = np.round(scans[kind] + noise).astype(np.int16)
    assert (values < 0).any()
    assert np.array_equal(unwrapped(values.view(np.uint16)).values, values)


@KINDS
@pytest.mark.parametrize("change", [
    lambda share: (share * 255).astype(np.uint8),
    lambda share: (share * 65535).astype(np.uint16),
    lambda share: (share * 65535 - 32768).astype(np.int16),
    lambda share: (share * 2000 - 300).astype(np.int16),
    lambda share: (share * 1e6 - 5e5).astype(np.int32),
    lambda share: share,
])  # fmt: skip
def test_numbers_that_did_not_wrap_are_not_touched(scans, kind, change):
    values = change(scans[kind] / scans[kind].max())
    assert unwrapped(values).values is values


# ------------------------------------------------------------------------------------------------- below 0


@KINDS
@pytest.mark.parametrize("shift", [-1000.0, -50000.0])
def test_a_scan_from_which_a_number_was_subtracted_gets_it_back(scans, kind, shift):
    values = scans[kind].astype(np.float32)
    air = np.median(values[0])
    mended = raised(values + np.float32(shift))
    np.testing.assert_allclose(mended.values, values - air, atol=20)
    assert "below 0" in mended.sentence


def test_a_brain_below_a_background_of_0_is_moved_alone(scans):
    brain = scans["brain"]
    values = np.where(brain > 0, brain - 2000, 0).astype(np.float32)
    mended = raised(values)
    inside = brain > 0
    assert (mended.values[~inside] == 0).all()
    assert mended.values[inside].min() > 0
    np.testing.assert_allclose(np.diff(mended.values[inside]), np.diff(brain[inside]), atol=1e-2)


def test_a_standardised_brain_is_moved_above_its_background(scans):
    brain = scans["brain"]
    inside = brain > 0
    values = np.where(inside, (brain - brain[inside].mean()) / brain[inside].std(), 0).astype(np.float32)
    mended = raised(values)
    assert (mended.values[~inside] == 0).all() and mended.values[inside].min() > 0
    assert np.corrcoef(mended.values[inside], brain[inside])[0, 1] > 0.9999


@KINDS
def test_some_values_below_0_are_nothing_new(scans, kind):
    """What splines leave around a brain, and noise of a scan whose mean in air is 0."""
    values = scans[kind].astype(np.float32)
    values -= 0.05 * values.max() * (ndimage.binary_dilation(values > 100) & (values < 100))
    assert raised(values).values is values
