"""Heads and lesions on disk; and who gets to see which of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from benchmarks import lesions as benchmark
from bids_app.errors import NoInputError
from bids_app.training import anatomy, evaluate, join, run, store
from bids_app.training.plans import FUSIONS
from bids_app.training.trainer import Plan
from tests.training.heads import label_map, lesion_image, toy_head, toy_lesion

HEADS = [f"training_seg_{number:02d}" for number in range(1, 19)] + ["colin"]
LESIONS = [f"sub-{number:04d}" for number in range(40)]


def write_cache(folder: Path, heads: list[str], lesions: list[str]) -> None:
    """A cache of copies of the toy head and lesion under these names."""
    small = dataclasses.replace(toy_head(), labels=np.zeros((2, 2, 2), np.uint8))
    store.save_heads([dataclasses.replace(small, name=name) for name in heads], folder / "heads")
    store.save_lesions([toy_lesion(name=name) for name in lesions], folder / "lesions.npz")
    store.write_json(folder / store.CONTENTS, {"format": store.FORMAT, "heads": sorted(heads)})


@pytest.fixture
def cache(tmp_path: Path, monkeypatch) -> Path:
    """A cache with all splits, from which nothing is synthesised."""
    write_cache(tmp_path, HEADS, LESIONS)
    for module in (run, evaluate, benchmark, join):
        monkeypatch.setattr(module, "make_source", lambda head, *_: SimpleNamespace(name=head.name))
    for module in (evaluate, benchmark, join):
        monkeypatch.setattr(module, "make_cases", lambda sources, lesions, *_, **__: [(sources, lesions)])
    return tmp_path


def names(items) -> set[str]:
    return {item.name for item in items}


def test_no_test_case_gets_into_training_or_calibration(cache: Path):
    (heads, lesions) = benchmark.unseen_cases(cache / "none", cache, 1)[0]
    tested = names(heads) | names(lesions)
    assert names(heads) == set(HEADS[14:18]) and names(lesions) == {n for n in LESIONS if n.endswith("3")}
    (heads, lesions) = evaluate.validation_cases(cache / "none", cache, 1)[0]
    calibrated = names(heads) | names(lesions)
    assert names(heads) == set(HEADS[12:14]) and not tested & calibrated
    for networks in (*([("late", fold)] for fold in run.FOLDS), [("late", fold) for fold in run.FOLDS]):
        material, plans = run.load_material(cache / "none", cache, networks)
        trained = names(material.sources) | names(material.lesions)
        watched = names(material.validation_sources) | names(material.validation_lesions)
        assert watched == calibrated
        assert not trained & (tested | calibrated), networks
        assert len(trained) > 25
        assert trained == set().union(*(plan.heads | plan.lesions for plan in plans))


def test_a_fold_leaves_out_every_fifth_head_and_lesion(cache: Path):
    material, (whole, *parts) = run.load_material(
        cache / "none", cache, [("late", run.ALL), *(("late", str(fold)) for fold in range(anatomy.FOLDS))]
    )
    assert whole.heads == names(material.sources) and whole.lesions == names(material.lesions)
    for everything, kept in (
        (whole.heads, [part.heads for part in parts]),
        (whole.lesions, [part.lesions for part in parts]),
    ):
        left_out = [everything - names for names in kept]
        assert all(left_out) and sum(map(len, left_out)) == len(set().union(*left_out))
        assert set().union(*left_out) == everything


def test_a_fusion_is_fitted_to_what_its_fold_left_out(cache: Path):
    training = store.prepare_split(cache / "none", cache, "train")
    for fold in range(anatomy.FOLDS):
        _, (plan,) = run.load_material(cache / "none", cache, [("late", str(fold))])
        (heads, lesions) = join.left_out_cases(*training, str(fold), 1)[0]
        assert names(heads) and names(lesions)
        assert not names(heads) & plan.heads and not names(lesions) & plan.lesions


def test_a_network_takes_scans_of_its_own_heads_and_lesions_alone():
    plan = Plan(FUSIONS["t1w"], "0", frozenset({"a", "b"}), frozenset({"x", "y"}))
    for head, lesions, taken in (
        ("a", (), True),
        ("b", ("x", "y"), True),
        ("c", (), False),
        ("a", ("x", "z"), False),
    ):
        assert plan.takes(SimpleNamespace(head=head, lesions=lesions)) is taken


def test_saved_heads_and_lesions_come_back(tmp_path: Path):
    store.save_heads([toy_head()], tmp_path / "heads")
    store.save_lesions([toy_lesion(), toy_lesion(30.0, 6.0, "sub-0005")], tmp_path / "lesions.npz")
    head = store.load_head(tmp_path / "heads" / "training_seg_01.npz")
    lesions = store.load_lesions(tmp_path / "lesions.npz")
    assert np.array_equal(head.labels, toy_head().labels) and head.image is None
    assert [lesion.name for lesion in lesions] == ["sub-0002", "sub-0005"]
    assert np.array_equal(lesions[1].mask, toy_lesion(30.0, 6.0, "sub-0005").mask)
    assert np.allclose(lesions[1].center, toy_lesion(30.0, 6.0, "sub-0005").center)


def test_a_cache_of_other_files_is_built_again(tmp_path: Path, monkeypatch):
    """So a head that may no longer be trained on does not stay in it."""
    monkeypatch.setattr(store, "make_head", lambda name, image: dataclasses.replace(toy_head(), name=name))
    data, cache = tmp_path / "data", tmp_path / "cache"
    for folder, name, image in (
        ("label_maps", "training_seg_01.nii.gz", label_map()),
        ("lesion_masks/soop", "sub-0002_lesion.nii.gz", lesion_image((-35, -20, 10), 6)),
        ("lesion_masks/soop", "sub-0004_lesion.nii.gz", lesion_image((0, 0, 0), 0)),
    ):
        (data / folder).mkdir(parents=True, exist_ok=True)
        nib.save(image, data / folder / name)
    write_cache(cache, ["training_seg_01", "average"], ["sub-0099"])
    heads, lesions = store.prepare(data, cache)
    assert [head.name for head in heads] == ["training_seg_01"]
    assert [lesion.name for lesion in lesions] == ["sub-0002"]
    built = (cache / "lesions.npz").stat().st_mtime_ns
    store.prepare(data, cache)
    assert (cache / "lesions.npz").stat().st_mtime_ns == built
    masks = data / "lesion_masks" / "soop"
    (masks / "sub-0002_lesion.nii.gz").rename(masks / "sub-0012_lesion.nii.gz")
    assert [lesion.name for lesion in store.prepare(data, cache)[1]] == ["sub-0012"]


def test_without_lesion_masks_it_says_so(tmp_path: Path):
    (tmp_path / "label_maps").mkdir()
    nib.save(label_map(), tmp_path / "label_maps" / "training_seg_01.nii.gz")
    with pytest.raises(NoInputError, match="lesion_masks"):
        store.prepare(tmp_path, tmp_path / "cache")


def test_without_data_and_cache_it_says_what_is_missing(tmp_path: Path):
    with pytest.raises(NoInputError, match="label_maps"):
        store.prepare(tmp_path, tmp_path)
