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
from bids_app.preprocessing.headers import as_stored, clean, on_stored_grid
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


def rewrite_bytes(path: Path, change) -> Path:
    """Change the decompressed bytes of a file: `change` takes a bytearray and may return another one."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    path.write_bytes(gzip.compress(bytes(change(content) or content), 1))
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


@pytest.fixture
def noise() -> np.ndarray:
    """Voxels that no two bytes of are alike, to see where reading begins."""
    return np.random.default_rng(0).integers(0, 1000, SHAPE).astype(np.int16)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_both_versions_and_byte_orders(tmp_path, noise, affine, order, kind, name):
    header = kind.header_class(endianness=order)
    header.set_xyzt_units("mm")
    nib.save(kind(noise.astype(np.dtype(np.int16).newbyteorder(order)), affine, header), tmp_path / name)
    cleaned = clean(tmp_path / name)
    assert np.array_equal(data(cleaned.image), noise) and np.allclose(cleaned.image.affine, affine)
    assert cleaned.problems == ()


def test_analyze_is_refused(write):
    with pytest.raises(VisitError, match="Analyze image, which does not say which side is left"):
        clean(rewrite_header(write(), magic=b""))


def test_the_header_of_a_pair_is_refused(write):
    path = rewrite_header(write(), magic=b"ni1", vox_offset=0)
    with pytest.raises(VisitError, match="is the header of a pair"):
        clean(rewrite_bytes(path, lambda content: content[:352]))


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_several_gzip_members_are_one_file(write, noise, parts):
    path = write(noise)
    content = gzip.decompress(path.read_bytes())
    step = len(content) // parts + 1
    members = [gzip.compress(content[start : start + step], 1) for start in range(0, len(content), step)]
    path.write_bytes(b"".join(members) + bytes(512))
    cleaned = clean(path)
    assert np.array_equal(data(cleaned.image), noise) and cleaned.problems == ()


@pytest.mark.parametrize("tail", [b"x", b"some text\n" * 30, b"\x1f\x8bno stream", b"\0\0\0end"])
def test_bytes_after_the_gzip_stream_do_no_harm(write, noise, tail):
    path = write(noise)
    path.write_bytes(path.read_bytes() + tail)
    cleaned = clean(path)
    assert np.array_equal(data(cleaned.image), noise)
    assert [(p.code, p.severity) for p in cleaned.problems] == [("header-trailing-bytes", Severity.INFO)]
    assert str(len(tail.lstrip(b"\0"))) in cleaned.problems[0].message


def test_a_missing_second_member_is_a_truncated_file(write, noise):
    path = write(noise)
    content = gzip.decompress(path.read_bytes())
    damaged = gzip.compress(content[9000:], 1)[:-40]
    path.write_bytes(gzip.compress(content[:9000], 1) + damaged)
    with pytest.raises(VisitError, match="is truncated"):
        clean(path)


@pytest.mark.parametrize(("more", "severity"), [(5, Severity.INFO), (2 * 32 * 36, Severity.WARNING)])
def test_bytes_after_the_voxels_are_left_out(write, noise, more, severity):
    path = rewrite_bytes(write(noise), lambda content: content + bytes([7]) * more)
    cleaned = clean(path)
    assert np.array_equal(data(cleaned.image), noise)
    assert [(p.code, p.severity) for p in cleaned.problems] == [("header-trailing-bytes", severity)]


# ------------------------------------------------------------------------------------------------- first voxel


@pytest.mark.parametrize("offset", [0, 16, 348, 351, -8, 400, 1e6, np.nan])
def test_a_first_voxel_that_cannot_be_is_looked_for(write, noise, offset):
    """Not even the beginning of the header is ever read as voxels."""
    cleaned = clean(rewrite_header(write(noise), vox_offset=offset))
    assert np.array_equal(data(cleaned.image), noise)
    assert [(p.code, p.severity) for p in cleaned.problems] == [("header-offset", Severity.WARNING)]
    assert "read from byte 352" in cleaned.problems[0].message


def with_extension(content: bytearray) -> bytearray:
    """The same file with an extension of 32 bytes between header and voxels; the offset stays."""
    content[348] = 1
    return content[:352] + np.array([32, 6], np.int32).tobytes() + b"a comment".ljust(24) + content[352:]


@pytest.mark.parametrize(("offset", "told"), [(384, []), (352, ["header-offset"]), (0, ["header-offset"])])
def test_an_extension_is_no_voxel(write, noise, offset, told):
    cleaned = clean(rewrite_header(rewrite_bytes(write(noise), with_extension), vox_offset=offset))
    assert np.array_equal(data(cleaned.image), noise)
    assert [problem.code for problem in cleaned.problems] == told


def test_an_offset_beyond_the_header_is_believed(write, noise):
    path = rewrite_bytes(write(noise), lambda content: content[:352] + bytes(48) + content[352:])
    cleaned = clean(rewrite_header(path, vox_offset=400))
    assert np.array_equal(data(cleaned.image), noise) and cleaned.problems == ()


def test_voxels_that_follow_the_header_without_a_flag(write, noise):
    path = rewrite_header(write(noise), vox_offset=0)
    cleaned = clean(rewrite_bytes(path, lambda content: content[:348] + content[352:]))
    assert np.array_equal(data(cleaned.image), noise)
    assert [problem.code for problem in cleaned.problems] == ["header-offset"]


@pytest.mark.parametrize("offset", [0, 352, 5000])
def test_a_wrong_offset_hides_no_missing_voxels(write, noise, offset):
    path = rewrite_header(write(noise), vox_offset=offset)
    with pytest.raises(VisitError, match="is truncated"):
        clean(rewrite_bytes(path, lambda content: content[:-2]))


# ------------------------------------------------------------------------------------------------- voxels


@pytest.mark.parametrize("count", [0, 2, 9, -1])
def test_a_wrong_count_of_dimensions_is_told(write, noise, count):
    path = rewrite_header(write(noise), dim=[count, *SHAPE, 1, 1, 1, 1])
    cleaned = clean(path)
    assert np.array_equal(data(cleaned.image), noise)
    assert [(p.code, p.severity) for p in cleaned.problems] == [("header-dimensions", Severity.WARNING)]


def test_an_axis_without_length_counts_as_one(write, noise):
    path = rewrite_header(write(noise), dim=[5, *SHAPE, 1, 0, 1, 1])
    assert np.array_equal(data(clean(path).image), noise)
    assert codes(path) == ["header-one-volume"]


@pytest.mark.parametrize("dim", [[3, 32, 0, 30, 1], [3, 32, -36, 30, 1], [3, 30_000, 30_000, 30_000, 1]])
def test_impossible_sizes_are_refused(write, dim):
    with pytest.raises(VisitError, match=r"no volume|truncated"):
        clean(rewrite_header(write(), dim=[*dim, 1, 1, 1]))


def test_volumes_that_the_count_of_dimensions_hides_are_refused(write, values):
    path = rewrite_header(write(np.stack([values] * 3, axis=-1)), dim=[3, *SHAPE, 3, 1, 1, 1])
    with pytest.raises(VisitError, match="holds 3 volumes"):
        clean(path)


@pytest.mark.parametrize("bits", [0, 8, 32])
def test_another_bitpix_is_told_where_the_file_is_as_long_as_datatype_says(write, noise, bits):
    path = rewrite_header(write(noise), bitpix=bits)
    assert np.array_equal(data(clean(path).image), noise)
    assert codes(path) == ["header-bitpix"]


def test_a_datatype_that_bitpix_and_the_file_contradict_is_refused(write, noise):
    with pytest.raises(VisitError, match=r"datatype and bitpix of .* contradict each other"):
        clean(rewrite_header(write(noise), datatype=2))  # bytes, where there are two for each voxel


def test_a_type_that_nifti_does_not_know_is_refused(write):
    with pytest.raises(VisitError, match="code 77"):
        clean(rewrite_header(write(), datatype=77))


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


def test_a_negative_slope_keeps_bright_bright(write, values):
    path = rewrite_header(write(values.astype(np.int16)), scl_slope=-2, scl_inter=0)
    np.testing.assert_allclose(data(clean(path).image), values * 2)
    assert codes(path) == ["header-scaling"]


def test_a_negative_slope_with_an_intercept_is_applied(write, values):
    path = rewrite_header(write(values.astype(np.int16)), scl_slope=-1, scl_inter=300)
    np.testing.assert_allclose(data(clean(path).image), 300 - values)


def test_nan_and_infinite_voxels_become_zero(write, values):
    values[0, 0, 0], values[1, 0, 0], values[2, 0, 0] = np.nan, np.inf, -np.inf
    cleaned = clean(write(values))
    assert np.isfinite(data(cleaned.image)).all()
    assert data(cleaned.image)[:3, 0, 0].tolist() == [0, 0, 0]
    assert [p.code for p in cleaned.problems] == ["header-nan-voxels"]
    assert "3 voxels" in cleaned.problems[0].message


def test_wrapped_extreme_and_negative_values_are_told(write, values):
    """What counts as one is tested in ``test_values.py``."""
    cleaned = clean(write(np.where(values == 200, 1e6, values)))
    assert [(p.code, p.severity) for p in cleaned.problems] == [("extreme-values", Severity.WARNING)]
    assert data(cleaned.image).max() == 50
    assert codes(write(values - 1000)) == ["negative-values"]
    np.testing.assert_array_equal(data(clean(write(values - 1000)).image), values)
    bright = np.where(values == 200, 40_000, values * 600).astype(np.uint16)
    path = write(bright.view(np.int16))
    np.testing.assert_array_equal(data(clean(path).image), bright)
    assert codes(path) == ["wrapped-values"]


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


@pytest.mark.parametrize("pixdim", [(5, 5, 6), (0, 0, 0), (5, 0, 5), (-5, 5, 5), (5, np.nan, 5), (1, 1, 1)])
@pytest.mark.parametrize("with_qform", [False, True])
def test_voxel_sizes_that_disagree_are_told(write, affine, pixdim, with_qform):
    path = rewrite_header(write(qform=affine if with_qform else None), pixdim=[1, *pixdim, 0, 0, 0, 0])
    cleaned = clean(path)
    np.testing.assert_allclose(cleaned.image.affine, affine)
    assert "header-voxel-size" in [p.code for p in cleaned.problems]


@pytest.mark.parametrize("pixdim", [(0, 0, 0), (5, 0, 5), (-5, 5, 5), (5, np.nan, 5), (5, 5, np.inf)])
def test_a_qform_alone_needs_a_voxel_size(write, affine, pixdim):
    """nibabel would take 0 for 1 mm and a negative size for its amount."""
    path = rewrite_header(write(sform=None, qform=affine), pixdim=[1, *pixdim, 0, 0, 0, 0])
    with pytest.raises(VisitError, match="gives no size of its voxels: pixdim is"):
        clean(path)


def test_a_qform_without_voxel_size_still_has_a_left_and_a_right(write, affine):
    path = rewrite_header(write(qform=affine), pixdim=[-1, 0, 0, 0, 0, 0, 0, 0])
    with pytest.raises(VisitError, match="which side is left"):
        clean(path)


@pytest.mark.parametrize("sign", [0, 1])
def test_qfac_0_is_1(write, affine, sign):
    path = rewrite_header(write(sform=None, qform=affine), pixdim=[sign, SIZE, SIZE, SIZE, 0, 0, 0, 0])
    np.testing.assert_allclose(clean(path).image.affine, affine)
    assert codes(path) == []


@pytest.mark.parametrize("sign", [3, -3, 0.5, np.nan])
def test_another_qfac_is_no_side(write, affine, sign):
    """nibabel would take any for 1, the NIfTI library negative ones for -1."""
    fields = {"pixdim": [sign, SIZE, SIZE, SIZE, 0, 0, 0, 0]}
    with pytest.raises(VisitError, match="which side is left"):
        clean(rewrite_header(write(sform=None, qform=affine), **fields))
    np.testing.assert_allclose(clean(rewrite_header(write(qform=affine), **fields)).image.affine, affine)


def test_unknown_form_codes_are_told(write, affine):
    for forms in ({"sform_code": 9}, {"sform_code": 0, "qform_code": 200}):
        path = rewrite_header(write(qform=affine), **forms)
        np.testing.assert_allclose(clean(path).image.affine, affine)
        assert codes(path) == ["header-form-code"]


def test_a_negative_form_code_is_none(write, affine):
    path = rewrite_header(write(qform=affine), sform_code=-1, srow_x=[0, 0, 0, 0])
    np.testing.assert_allclose(clean(path).image.affine, affine)
    with pytest.raises(VisitError, match="which side is left"):
        clean(rewrite_header(write(), sform_code=-1))


METRE, MILLIMETRE, MICRON = 1, 2, 3


def in_unit(write, affine, unit: int, factor: float, form: str = "sform") -> Path:
    """A file whose lengths are `factor` times those in mm, and whose unit has this code."""
    longer = np.diag([factor] * 3 + [1.0]) @ affine
    path = write(**({"sform": longer} if form == "sform" else {"sform": None, "qform": longer}))
    header = nib.Nifti1Header(gzip.decompress(path.read_bytes())[:348], check=False)
    pixdim = [header["pixdim"][0], *[SIZE * factor] * 3, 0, 0, 0, 0]
    return rewrite_header(path, pixdim=pixdim, xyzt_units=unit + 8)


@pytest.mark.parametrize("form", ["sform", "qform"])
@pytest.mark.parametrize(("unit", "factor", "severity"), [
    (METRE, 1e-3, Severity.INFO),
    (MICRON, 1e3, Severity.INFO),
    (METRE, 1, Severity.WARNING),
    (MICRON, 1, Severity.WARNING),
    (0, 1e-3, Severity.WARNING),
    (0, 1e3, Severity.WARNING),
])  # fmt: skip
def test_units_are_converted_or_doubted(write, affine, unit, factor, severity, form):
    path = in_unit(write, affine, unit, factor, form)
    cleaned = clean(path)
    np.testing.assert_allclose(cleaned.image.affine, affine, rtol=1e-5)
    assert [(p.code, p.severity) for p in cleaned.problems] == [("header-units", severity)]
    np.testing.assert_allclose(as_stored(path).image.affine, affine, rtol=1e-5)


@pytest.mark.parametrize("unit", [0, MILLIMETRE, 5])
def test_millimetres_need_no_word(write, affine, unit):
    assert codes(in_unit(write, affine, unit, 1)) == []


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_a_declared_millimetre_is_not_doubted(write, affine, factor):
    with pytest.raises(VisitError, match="check the header's units"):
        clean(in_unit(write, affine, MILLIMETRE, factor))


def test_a_mask_returns_to_a_file_in_micron(write, affine, tmp_path):
    path = in_unit(write, affine, MICRON, 1e3)
    cleaned = clean(path).image
    stored = on_stored_grid(nib.Nifti1Image((data(cleaned) > 100).astype(np.uint8), cleaned.affine), path)
    assert np.array_equal(data(stored) > 0, data(nib.load(path)) > 100)
    np.testing.assert_allclose(stored.affine, nib.load(path).affine)
    assert stored.header.get_xyzt_units()[0] == "micron"


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


@pytest.mark.parametrize(
    "name", ["whole_head/chris_t1", "paired_clinical/TCGA-FG-6692_FLAIR", "ms_pairs/mni_patient07_T1w"]
)
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
