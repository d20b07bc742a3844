"""The default template, and the TemplateFlow cache as plain files."""

from __future__ import annotations

import socket

import nibabel as nib
import numpy as np
import pytest

from bids_app import templateflow_cache
from bids_app.errors import ExitCode, UnavailableError
from bids_app.images import data, save, world
from bids_app.preprocessing.templates import check_spaces, load_template
from tests.conftest import stored_as


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty TemplateFlow cache; no test may reach the network."""
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path))
    monkeypatch.setattr(socket, "socket", lambda *a, **k: pytest.fail("a socket was opened"))
    load_template.cache_clear()
    yield tmp_path
    load_template.cache_clear()


def put(cache, space, name, image):
    return save(image, cache / f"tpl-{space}" / f"tpl-{space}_res-01_{name}.nii.gz")


@pytest.fixture
def head(asymmetric):
    return nib.Nifti1Image(data(asymmetric) + 5, asymmetric.affine)


def test_the_default_is_the_grid_of_atlas():
    template = load_template("MNI152NLin2009aSym")
    for image in (template.t1w, template.brain_mask):
        assert image.shape == (197, 233, 189)
        np.testing.assert_array_equal(image.affine[:3], [[1, 0, 0, -98], [0, 1, 0, -134], [0, 0, 1, -72]])
    values, inside = data(template.t1w), data(template.brain_mask) > 0
    assert values[~inside].max() == 0
    assert np.percentile(values[inside], 99) == pytest.approx(1)
    assert 1800 < inside.sum() / 1000 < 2000  # mL: MNI brains are larger than people's


def test_the_default_brain_is_the_right_way_up():
    """The cerebellum is behind and below, the frontal lobe in front."""
    mask = load_template("MNI152NLin2009aSym").brain_mask
    inside = world(mask, np.argwhere(data(mask) > 0))
    assert inside[inside[:, 2] < -45, 1].mean() < -30
    assert inside[:, 1].min() == pytest.approx(-107, abs=3)
    assert inside[:, 1].max() == pytest.approx(73, abs=3)


def test_it_is_loaded_once():
    assert load_template("MNI152NLin2009aSym") is load_template("MNI152NLin2009aSym")


def test_head_and_mask_from_the_cache(cache, asymmetric, head, orientation):
    mask = nib.Nifti1Image((data(asymmetric) > 0).astype(np.uint8), asymmetric.affine)
    put(cache, "MNI152NLin6Asym", "T1w", stored_as(head, orientation))
    put(cache, "MNI152NLin6Asym", "desc-brain_mask", stored_as(mask, orientation))
    check_spaces(["T1w", "MNI152NLin6Asym"])
    template = load_template("MNI152NLin6Asym")
    assert nib.aff2axcodes(template.t1w.affine) == ("R", "A", "S")
    np.testing.assert_array_equal(data(template.brain_mask), data(mask))
    assert data(template.t1w)[data(mask) == 0].max() == 0
    left = world(template.t1w, np.argwhere(data(template.t1w) == data(template.t1w).max()))
    assert (left[:, 0] < 0).all()


def test_a_brain_only_t1w_is_its_own_mask(cache, asymmetric):
    put(cache, "MNI152NLin2009cAsym", "desc-brain_T1w", asymmetric)
    template = load_template("MNI152NLin2009cAsym")
    np.testing.assert_array_equal(data(template.brain_mask), data(asymmetric) > 0)


def test_a_missing_template_is_told_before_any_work(cache):
    with pytest.raises(UnavailableError) as caught:
        check_spaces(["MNI152NLin2009aSym", "MNI152NLin6Asym"])
    assert caught.value.exit_code == ExitCode.UNAVAILABLE
    assert "tpl-MNI152NLin6Asym_res-01_T1w.nii.gz" in caught.value.message
    assert f"TEMPLATEFLOW_HOME={cache}" in caught.value.hint
    assert "get('MNI152NLin6Asym'" in caught.value.hint


def test_the_empty_files_of_templateflows_index_do_not_count(cache, head):
    put(cache, "MNI152NLin6Asym", "T1w", head)
    (cache / "tpl-MNI152NLin6Asym" / "tpl-MNI152NLin6Asym_res-01_desc-brain_mask.nii.gz").touch()
    with pytest.raises(UnavailableError, match="desc-brain_mask"):
        load_template("MNI152NLin6Asym")


@pytest.mark.parametrize(
    ("space", "name"),
    [("MNI152NLin2009cSym", "_res-1"), ("MNI152NLin2009aAsym", "_res-1"), ("MNI305", ""), ("MNIColin27", "")],
)
def test_templates_are_found_by_the_names_that_templateflow_gives_them(cache, asymmetric, head, space, name):
    """The resolution is written res-01, res-1, or not at all."""
    folder = cache / f"tpl-{space}"
    save(head, folder / f"tpl-{space}{name}_T1w.nii.gz")
    mask = nib.Nifti1Image((data(asymmetric) > 0).astype(np.uint8), asymmetric.affine)
    with pytest.raises(UnavailableError) as caught:
        check_spaces([space])
    assert f"tpl-{space}{name}_desc-brain_mask.nii.gz is missing" in caught.value.message
    assert ("resolution=1" in caught.value.hint) == bool(name)
    save(mask, folder / f"tpl-{space}{name}_desc-brain_mask.nii.gz")
    check_spaces([space])
    np.testing.assert_array_equal(data(load_template(space).brain_mask), data(mask))


@pytest.mark.parametrize(
    ("space", "hint"),
    [
        ("MNI152NLin2009cAsim", "Did you mean MNI152NLin2009cAsym?"),
        ("mni152nlin6asym", "Did you mean MNI152NLin6Asym?"),
        ("OASIS30", "Did you mean OASIS30ANTs?"),
        ("Talairach", "There are: "),
    ],
)
def test_an_unknown_template_is_told_as_such(cache, space, hint):
    with pytest.raises(UnavailableError) as caught:
        check_spaces(["MNI152NLin2009aSym", space])
    assert caught.value.exit_code == ExitCode.UNAVAILABLE
    assert caught.value.message == f"There is no template {space}, neither in TemplateFlow nor on this machine."
    assert caught.value.hint.startswith(hint) and "get(" not in caught.value.hint


@pytest.mark.parametrize("space", ["fsLR", "SUIT", "MNIPediatricAsym"])
def test_a_template_without_a_t1w_and_a_brain_mask_is_told_as_such(cache, space):
    with pytest.raises(UnavailableError, match=f"no T1w with a brain mask of {space}") as caught:
        check_spaces([space])
    assert "MNI152NLin2009cAsym" in caught.value.hint and "fsLR" not in caught.value.hint


def test_a_template_of_ones_own_needs_no_templateflow(cache, asymmetric):
    put(cache, "MyHospital", "desc-brain_T1w", asymmetric)
    check_spaces(["MyHospital"])
    (cache / "tpl-Empty").mkdir()
    with pytest.raises(UnavailableError, match=r"tpl-Empty_res-01_T1w\.nii\.gz is missing"):
        check_spaces(["Empty"])


def test_without_the_list_of_templateflow_what_is_missing_is_named(cache, monkeypatch):
    monkeypatch.setattr(templateflow_cache, "_listed", dict)
    with pytest.raises(UnavailableError, match=r"tpl-Talairach_res-01_T1w\.nii\.gz is missing"):
        check_spaces(["Talairach"])


def test_real_templateflow_files(cache, test_data):
    source = test_data / "templates" / "tpl-MNI152NLin2009cAsym_res-01_desc-brain_T1w.nii.gz"
    put(cache, "MNI152NLin2009cAsym", "desc-brain_T1w", nib.load(source))
    template = load_template("MNI152NLin2009cAsym")
    assert template.t1w.shape == (193, 229, 193)
    assert 1700 < np.count_nonzero(data(template.brain_mask)) / 1000 < 2000
