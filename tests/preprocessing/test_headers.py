"""One test for every row of the table in `bids_app.preprocessing.headers`."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from bids_app.errors import VisitError
from bids_app.images import data, world
from bids_app.preprocessing.headers import clean, on_stored_grid
from bids_app.study.models import Severity
from tests.conftest import stored_as

SHAPE = (32, 36, 30)
SIZE = 5.0


@pytest.fixture
def affine() -> np.ndarray:
    matrix = np.diag([SIZE, SIZE, SIZE, 1])
    matrix[:3, 3] = -SIZE * np.array(SHAPE) / 2
    return matrix


@pytest.fixture
def values() -> np.ndarray:
    """A head with a bright mark on its left."""
    out = np.zeros(SHAPE, np.float32)
    out[4:28, 4:32, 4:26] = 50
    out[5:8, 16:20, 14:18] = 200
    return out


@pytest.fixture
def write(tmp_path, values, affine):
    """Write a NIfTI file; the forms are affines or None (code 0)."""

    def _write(voxels=None, sform=affine, qform=None, name="sub-01_T1w.nii.gz", pixdim=None) -> Path:
        image = nib.Nifti1Image(values if voxels is None else voxels, affine)
        image.header.set_xyzt_units("mm")
        image.set_sform(sform, code=0 if sform is None else 1)
        image.set_qform(affine if qform is None else qform, code=0 if qform is None else 1)
        if pixdim is not None:
            image.header["pixdim"][1:4] = pixdim
        nib.save(image, tmp_path / name)
        return tmp_path / name

    return _write


def rewrite_header(path: Path, **fields) -> Path:
    """Change fields of a written header, without nibabel's checks."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    header = nib.Nifti1Header(bytes(content[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    content[:348] = header.binaryblock
    path.write_bytes(gzip.compress(bytes(content), 1))
    return path


def codes(path: Path) -> list[str]:
    return [problem.code for problem in clean(path).problems]


def left_mark(image) -> np.ndarray:
    return world(image, np.argwhere(data(image) > 150)).mean(axis=0)


# ------------------------------------------------------------------------------------------------- the good case


def test_a_good_file_is_only_cast(write, values, affine):
    cleaned = clean(write(values.astype(np.int16), qform=affine))
    assert cleaned.problems == ()
    image = cleaned.image
    assert image.get_data_dtype() == np.float32
    np.testing.assert_array_equal(data(image), values)
    np.testing.assert_allclose(image.affine, affine)
    for form, code in (image.get_sform(coded=True), image.get_qform(coded=True)):
        np.testing.assert_allclose(form, affine, atol=1e-5)
        assert code > 0
    assert image.header.get_xyzt_units()[0] == "mm"


def test_any_storage_order_becomes_ras(tmp_path, values, affine, orientation):
    stored = stored_as(nib.Nifti1Image(values, affine), orientation)
    nib.save(stored, tmp_path / "a.nii.gz")
    cleaned = clean(tmp_path / "a.nii.gz")
    image = cleaned.image
    assert cleaned.stored == orientation
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    np.testing.assert_array_equal(data(image), values)
    assert left_mark(image)[0] < -40


def test_oblique_scans_are_not_interpolated(write, values, affine):
    oblique = affine.copy()
    oblique[:3, :3] = Rotation.from_euler("xyz", [20, -10, 15], degrees=True).as_matrix() * SIZE
    cleaned = clean(write(sform=oblique))
    np.testing.assert_allclose(cleaned.image.affine, oblique, atol=1e-4)
    np.testing.assert_array_equal(data(cleaned.image), values)
    assert cleaned.problems == ()


# ------------------------------------------------------------------------------------------------- file


def test_a_dangling_link_is_not_downloaded(tmp_path):
    path = tmp_path / "sub-01_T1w.nii.gz"
    path.symlink_to(tmp_path / ".git" / "annex" / "objects" / "gone")
    with pytest.raises(VisitError, match="not downloaded") as caught:
        clean(path)
    assert f"datalad get {path}" in caught.value.hint


def test_an_annex_pointer_is_not_downloaded(tmp_path):
    path = tmp_path / "sub-01_T1w.nii.gz"
    path.write_text("/annex/objects/MD5E-s123--0123456789abcdef.nii.gz\n")
    with pytest.raises(VisitError, match="not downloaded"):
        clean(path)


def test_a_link_to_a_file_is_followed(write, tmp_path):
    link = tmp_path / "link_T1w.nii.gz"
    link.symlink_to(write())
    assert clean(link).problems == ()


@pytest.mark.parametrize("make, sentence", [
    (lambda path: None, "does not exist"),
    (lambda path: path.touch(), "no byte"),
    (lambda path: path.write_bytes(b"hello" * 1000), "cannot be read"),
    (lambda path: path.write_bytes(gzip.compress(b"hello" * 1000)), "cannot be read"),
])  # fmt: skip
def test_no_nifti(tmp_path, make, sentence):
    path = tmp_path / "sub-01_T1w.nii.gz"
    make(path)
    with pytest.raises(VisitError, match=sentence) as caught:
        clean(path)
    assert path.name in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("name", ["sub-01_T1w.nii.gz", "sub-01_T1w.nii"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_truncated_files(write, name, share):
    noise = np.random.default_rng(0).normal(100, 10, SHAPE).astype(np.float32)
    path = write(noise, name=name)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(VisitError, match=r"truncated|cannot be read"):
        clean(path)


def test_a_flipped_byte_in_the_compressed_voxels(write):
    path = write(np.random.default_rng(0).normal(100, 10, SHAPE).astype(np.float32))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(VisitError, match="truncated or damaged"):
        clean(path)


def test_another_format_is_refused(tmp_path, values, affine):
    nib.save(nib.MGHImage(values, affine), tmp_path / "a.mgz")
    with pytest.raises(VisitError, match="no NIfTI"):
        clean(tmp_path / "a.mgz")


# ------------------------------------------------------------------------------------------------- voxels


def test_one_volume_is_squeezed(write, values):
    path = write(values[..., None, None])
    cleaned = clean(path)
    assert cleaned.image.shape == SHAPE
    assert [(p.code, p.severity) for p in cleaned.problems] == [("header-one-volume", Severity.INFO)]
    assert cleaned.problems[0].files == (path.name,)


def test_several_volumes_are_refused(write, values):
    with pytest.raises(VisitError, match="holds 3 volumes") as caught:
        clean(write(np.stack([values] * 3, axis=-1)))
    assert "average" in caught.value.hint


def test_a_plane_is_refused(write, values):
    with pytest.raises(VisitError, match="2 dimensions"):
        clean(write(values[..., 0]))


def test_colours_are_refused(write):
    rgb = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(VisitError, match="colours"):
        clean(write(rgb))


def test_complex_numbers_are_refused(write, values):
    with pytest.raises(VisitError, match="complex"):
        clean(write(values.astype(np.complex64)))


def test_scaling_is_applied(write, values):
    path = rewrite_header(write(values.astype(np.int16)), scl_slope=0.5, scl_inter=10)
    np.testing.assert_allclose(data(clean(path).image), values * 0.5 + 10)
    assert codes(path) == []


@pytest.mark.parametrize("slope", [0, np.nan, np.inf])
def test_no_slope_means_stored_values(write, values, slope):
    path = rewrite_header(write(values.astype(np.int16)), scl_slope=slope, scl_inter=3)
    np.testing.assert_allclose(data(clean(path).image), values)
    assert codes(path) == []


@pytest.mark.parametrize("intercept", [np.nan, np.inf])
def test_a_broken_intercept_is_zero(write, values, intercept):
    path = rewrite_header(write(values.astype(np.int16)), scl_slope=2, scl_inter=intercept)
    np.testing.assert_allclose(data(clean(path).image), values * 2)
    assert codes(path) == ["header-scaling"]


def test_nan_and_infinite_voxels_become_zero(write, values):
    values[0, 0, 0], values[1, 0, 0], values[2, 0, 0] = np.nan, np.inf, -np.inf
    cleaned = clean(write(values))
    assert np.isfinite(data(cleaned.image)).all()
    assert data(cleaned.image)[:3, 0, 0].tolist() == [0, 0, 0]
    assert [p.code for p in cleaned.problems] == ["header-nan-voxels"]
    assert "3 voxels" in cleaned.problems[0].message


@pytest.mark.parametrize("level", [0, 7, np.nan])
def test_blank_scans_are_refused(write, level):
    with pytest.raises(VisitError, match="blank"):
        clean(write(np.full(SHAPE, level, np.float32)))


# ------------------------------------------------------------------------------------------------- affine


def moved(affine, mm):
    out = affine.copy()
    out[0, 3] += mm
    return out


def sheared(affine, degrees):
    out = affine.copy()
    out[:3, 1] = Rotation.from_euler("z", degrees, degrees=True).apply(out[:3, 1])
    return out


def test_a_qform_that_agrees(write, affine):
    cleaned = clean(write(qform=moved(affine, 0.3)))
    np.testing.assert_allclose(cleaned.image.affine, affine)
    assert cleaned.problems == ()


def test_sform_wins_over_another_qform(write, affine):
    path = write(qform=moved(affine, 12))
    cleaned = clean(path)
    np.testing.assert_allclose(cleaned.image.affine, affine)
    assert [(p.code, p.severity) for p in cleaned.problems] == [("header-form-conflict", Severity.WARNING)]
    assert "12.0 mm" in cleaned.problems[0].message


def test_mirrored_forms_are_refused(write, affine):
    mirrored = affine.copy()
    mirrored[0] *= -1
    with pytest.raises(VisitError, match="which side is left"):
        clean(write(qform=mirrored))


def broken(affine, kind):
    out = affine.copy()
    if kind == "nan":
        out[1, 1] = np.nan
    elif kind == "singular":
        out[:3, 2] = out[:3, 1]
    elif kind == "zero":
        out[:3, 2] = 0
    else:
        out = sheared(affine, 8)
    return out


@pytest.mark.parametrize("kind", ["nan", "singular", "zero", "sheared"])
def test_a_bad_sform_gives_way_to_the_qform(write, affine, kind):
    path = rewrite_sform(write(qform=affine), broken(affine, kind))
    cleaned = clean(path)
    np.testing.assert_allclose(cleaned.image.affine, affine, atol=1e-4)
    assert [p.code for p in cleaned.problems] == ["header-bad-sform"]


@pytest.mark.parametrize("kind", ["nan", "singular", "zero", "sheared"])
def test_a_bad_sform_alone_is_refused(write, affine, kind):
    with pytest.raises(VisitError, match="places its voxels nowhere"):
        clean(rewrite_sform(write(), broken(affine, kind)))


def rewrite_sform(path, affine):
    return rewrite_header(path, srow_x=affine[0], srow_y=affine[1], srow_z=affine[2])


def test_a_slight_shear_is_straightened(write, affine):
    cleaned = clean(rewrite_sform(write(), sheared(affine, 0.4)))
    axes = cleaned.image.affine[:3, :3] / SIZE
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-6)
    assert [(p.code, p.severity) for p in cleaned.problems] == [("header-sheared", Severity.INFO)]


def test_a_slight_shear_moves_the_head_little(write, affine):
    """Straightened about the middle of the image, no voxel moves by more than half the shear at the border."""
    bent = sheared(affine, 0.4)
    straight = clean(rewrite_sform(write(), bent)).image.affine
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in SHAPE])).reshape(3, -1).T
    gap = nib.affines.apply_affine(bent, corners) - nib.affines.apply_affine(straight, corners)
    assert np.linalg.norm(gap, axis=1).max() < 0.5


def test_the_qform_alone(write, affine, values):
    turned = affine.copy()
    turned[:3, :3] = Rotation.from_euler("z", 12, degrees=True).as_matrix() * SIZE
    cleaned = clean(write(sform=None, qform=turned))
    np.testing.assert_allclose(cleaned.image.affine, turned, atol=1e-4)
    assert cleaned.problems == ()


def test_a_bad_qform_alone_is_refused(write, affine):
    path = rewrite_header(write(sform=None, qform=affine), quatern_b=0.9, quatern_c=0.9, quatern_d=0.9)
    with pytest.raises(VisitError):
        clean(path)


def test_a_bad_qform_beside_a_good_sform_is_ignored(write, affine):
    path = rewrite_header(write(qform=affine), quatern_b=0.9, quatern_c=0.9, quatern_d=0.9)
    np.testing.assert_allclose(clean(path).image.affine, affine)


def test_no_form_at_all_is_refused(write):
    with pytest.raises(VisitError, match="which side is left"):
        clean(write(sform=None))


def test_voxel_sizes_that_disagree_are_told(write, affine):
    cleaned = clean(write(pixdim=(5, 5, 6)))
    np.testing.assert_allclose(cleaned.image.header.get_zooms(), (5, 5, 5))
    assert [p.code for p in cleaned.problems] == ["header-voxel-size"]


# ------------------------------------------------------------------------------------------------- size


def sized(*sizes):
    return np.diag([*sizes, 1.0])


@pytest.mark.parametrize("sizes", [(5, 5, 0.1), (5, 5, 12), (0.005, 0.005, 0.005)])
def test_impossible_voxels_are_refused(write, sizes):
    with pytest.raises(VisitError, match="The voxels of"):
        clean(write(sform=sized(*sizes), pixdim=sizes))


@pytest.mark.parametrize("sizes", [(0.4, 3, 3), (2, 2, 8)])
def test_unusual_voxels_are_told(write, sizes):
    shape = [int(np.ceil(160 / size)) for size in sizes]
    voxels = np.random.default_rng(0).random(shape, dtype=np.float32)
    assert codes(write(voxels, sform=sized(*sizes), pixdim=sizes)) == ["header-unusual-voxels"]


@pytest.mark.parametrize("sizes", [(0.5, 3, 3), (2, 2, 7)])
def test_voxels_from_half_to_seven_millimetres_are_usual(write, sizes):
    shape = [int(np.ceil(160 / size)) for size in sizes]
    voxels = np.random.default_rng(0).random(shape, dtype=np.float32)
    assert codes(write(voxels, sform=sized(*sizes), pixdim=sizes)) == []


@pytest.mark.parametrize("shape", [(32, 36, 11), (32, 36, 15)])
def test_slabs_are_refused(write, values, shape):
    with pytest.raises(VisitError, match="no brain fits"):
        clean(write(values[: shape[0], : shape[1], 8 : 8 + shape[2]]))


def test_a_narrow_field_of_view_is_told(write, values):
    assert codes(write(values[..., 4:24])) == ["header-partial-coverage"]


# ------------------------------------------------------------------------------------------------- real files


@pytest.mark.parametrize("name", ["whole_head/chris_t1", "paired_clinical/TCGA-FG-6692_FLAIR"])
def test_real_files_need_no_mending(test_data, name):
    cleaned = clean(test_data / f"{name}.nii.gz")
    assert cleaned.problems == ()
    assert nib.aff2axcodes(cleaned.image.affine) == ("R", "A", "S")


# ------------------------------------------------------------------------------------------ the way back to the file


def test_a_sheared_sform_that_mirrors_the_qform_is_refused(write, affine):
    mirrored = affine.copy()
    mirrored[0] *= -1
    with pytest.raises(VisitError, match="which side is left"):
        clean(write(sform=sheared(affine, 10.0), qform=mirrored))


@pytest.mark.parametrize("order", ["RAS", "LAS", "LIA"])
@pytest.mark.parametrize("broken", [False, True])
def test_a_mask_returns_to_the_voxels_of_the_file(write, values, affine, tmp_path, order, broken):
    """Also where the file's own sform is not believed: whoever reads the file reads the mask the same way."""
    raw = stored_as(nib.Nifti1Image(values, affine), order)
    raw.set_qform(raw.affine, code=1)
    raw.set_sform(sheared(affine, 10.0) @ np.linalg.inv(affine) @ raw.affine if broken else raw.affine, code=2)
    nib.save(raw, tmp_path / "t1w.nii.gz")
    cleaned = clean(tmp_path / "t1w.nii.gz").image
    mask = nib.Nifti1Image((data(cleaned) > 100).astype(np.uint8), cleaned.affine)
    nib.save(on_stored_grid(mask, tmp_path / "t1w.nii.gz"), tmp_path / "roi.nii.gz")
    roi, file = nib.load(tmp_path / "roi.nii.gz"), nib.load(tmp_path / "t1w.nii.gz")
    assert np.array_equal(data(roi) > 0, data(file) > 100)
    assert np.allclose(roi.affine, file.affine) and np.allclose(roi.get_qform(), file.get_qform(), atol=1e-5)
    assert (int(roi.header["sform_code"]), int(roi.header["qform_code"])) == (2, 1)


def test_a_mask_returns_to_a_file_whose_intercept_is_no_number(write, affine):
    path = rewrite_header(write(), scl_slope=1.0, scl_inter=np.nan)
    cleaned = clean(path).image
    stored = on_stored_grid(nib.Nifti1Image((data(cleaned) > 100).astype(np.uint8), cleaned.affine), path)
    assert np.count_nonzero(stored.dataobj) == 3 * 4 * 4
