"""Heads, lesions and who is in which split."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bids_app.training import anatomy
from bids_app.training.alignment import to_ras_zyx
from tests.conftest import stored_as
from tests.training.heads import LEFT_PUTAMEN, label_map, lesion_image, no_alignment, toy_head, toy_lesion


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("training_seg_01", "train"),
        ("training_seg_12", "train"),
        ("training_seg_13", "validation"),
        ("training_seg_14", "validation"),
        ("training_seg_15.nii.gz", "test"),
        ("colin", "train"),
        ("sub-0001", "validation"),
        ("sub-1013_lesion.nii.gz", "test"),
        ("sub-0310", "train"),
        ("Subject_021", "validation"),
        ("Subject_123", "test"),
    ],
)
def test_split_of(name: str, split: str):
    assert anatomy.split_of(name) == split


def test_the_real_files_are_split_as_documented(test_data):
    paths = [*test_data.glob("label_maps/*.nii.gz"), *test_data.glob("lesion_masks/*/*.nii.gz")]
    splits = ("train", "validation", "test")
    names = {split: {p.name for p in paths if anatomy.split_of(p.name) == split} for split in splits}
    assert sum(map(len, names.values())) == len(paths) == len(set().union(*names.values()))
    heads = {split: sum(name.startswith("training_seg") for name in names[split]) for split in splits}
    assert heads == {"train": 12, "validation": 2, "test": 4}
    assert all(len(chosen) > 100 for chosen in names.values())


def test_no_head_that_is_tested_on_lends_its_texture():
    used = " ".join(str(path) for path in anatomy.REAL_TEXTURE.values())
    for tested in ("pycortex", "uih", "MNI152"):  # the demo's brains are made from an MNI template
        assert tested not in used
    assert all(anatomy.split_of(name) == "train" for name in anatomy.REAL_TEXTURE)


def test_folds_leave_different_heads_and_lesions_out_and_keep_real_texture():
    heads = [replace(toy_head(), name=f"training_seg_{i:02d}") for i in range(1, 11)]
    real = replace(toy_head(), name="colin", image=np.zeros((1, 1, 1), np.uint8))
    kept = [{head.name for head in anatomy.without_fold([*heads, real], fold)} for fold in range(anatomy.FOLDS)]
    assert all(len(names) == 9 and "colin" in names for names in kept)
    assert not set.intersection(*kept) - {"colin"}
    lesions = [toy_lesion(name=f"sub-{i:04d}") for i in range(10)]
    assert sorted(len(anatomy.without_fold(lesions, fold)) for fold in range(anatomy.FOLDS)) == [8] * 5


def test_a_head_is_the_same_however_it_is_stored(orientation: str):
    stored = stored_as(label_map(), orientation)
    head = anatomy.make_head("training_seg_01", stored, align=no_alignment)
    assert np.array_equal(head.labels, toy_head().labels)
    assert np.allclose(head.pose_to_voxel, toy_head().pose_to_voxel)
    assert np.allclose(head.center, toy_head().center)


def test_left_of_the_world_is_low_x_of_the_array():
    labels, affine = to_ras_zyx(label_map())
    voxel = np.argwhere(labels == LEFT_PUTAMEN).mean(axis=0)[::-1]
    assert (affine @ [*voxel, 1])[0] == pytest.approx(-30, abs=1)


def test_outside_labels_fit_a_byte_and_stay_outside():
    labels = anatomy.compact_labels(np.array([0, 2, 165, 502, 530, 900, 3.0]))
    assert labels.tolist() == [0, 2, 165, 202, 230, 0, 3]
    assert anatomy.brain_of(labels).tolist() == [False, True, True, False, False, False, True]


def test_csf_far_from_the_brain_is_no_brain():
    labels = np.zeros((40, 20, 20), np.uint8)
    labels[:10, 5:15, 5:15] = 2
    labels[10:, 5:15, 5:15] = 24
    marked = anatomy.mark_far_csf(labels)
    assert (marked[14, 10, 10], marked[16, 10, 10]) == (24, anatomy.FAR_CSF)


def test_lesion_keeps_its_place_and_volume(orientation: str):
    lesion = anatomy.make_lesion("sub-0002", stored_as(lesion_image((-35, -20, 10), 14), orientation))
    assert np.allclose(lesion.center, (-35, -20, 10), atol=0.6)
    assert lesion.volume_ml == pytest.approx(4 / 3 * np.pi * 14**3 / 1000, rel=0.03)
    assert lesion.mask.sum() == toy_lesion().mask.sum()


def test_empty_and_implausible_masks_are_left_out():
    assert anatomy.make_lesion("sub-0002", lesion_image((0, 0, 0), 0)) is None
    assert anatomy.make_lesion("sub-0002", lesion_image((0, 0, 0), 60)) is None


def test_template_head_gets_three_tissue_classes_from_its_intensities():
    brain = np.zeros((60, 60, 60), bool)
    brain[10:50, 10:50, 10:50] = True
    image = np.where(brain, 100.0, 30.0)
    image[10:20], image[20:30, 10:50, 10:50] = 20.0, 60.0
    labels = anatomy._tissue_classes(image + np.random.default_rng(0).normal(0, 1, image.shape), brain)
    assert (labels[15, 30, 30], labels[25, 30, 30], labels[40, 30, 30], labels[0, 0, 0]) == (24, 3, 2, 0)
