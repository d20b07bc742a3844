"""Raw NIfTI files made safe: what is mended, what is reported, what is refused.

`clean` returns a float32, 3-D, finite image in the closest RAS+ order whose sform and qform are one orthonormal
affine. The rule behind the table: what loses nothing is mended; what may be wrong is reported; where left and right, or
the size of a voxel, would be a guess, the visit is refused, because a lesion on the wrong side is worse than none.

====================  ==========================================  ======================================================
what                  found                                       done (code of the problem)
====================  ==========================================  ======================================================
file                  dangling link, git-annex pointer            refused: "datalad get"
file                  missing, empty, truncated, not NIfTI        refused
voxel type            RGB, complex                                refused
dimensions            4-D with one volume                         squeezed (``header-one-volume``, info)
dimensions            4-D with several volumes                    refused: choose or average them first
dimensions            1-D, 2-D                                    refused
scaling               slope and intercept                         applied
scaling               slope 0, NaN, infinite                      stored values, as the NIfTI standard says
scaling               slope good, intercept NaN                   intercept 0 (``header-scaling``, warning)
voxels                NaN, infinite                               set to 0 (``header-nan-voxels``, warning)
voxels                one single value                            refused
sform > 0             no qform, or one that agrees to 0.5 mm      sform
sform > 0             another qform, same handedness              sform (``header-form-conflict``, warning)
sform > 0             a qform that mirrors it                     refused: which side is left?
sform > 0             NaN or singular; good qform                 qform (``header-bad-sform``, warning)
sform > 0             axes less than 1 degree off 90 degrees      made orthonormal (``header-sheared``, info)
sform > 0             more sheared than that; good qform          qform (``header-bad-sform``, warning)
sform > 0             the same; good qform that mirrors it        refused: which side is left?
sform > 0             NaN, singular or sheared; no good qform     refused
sform 0               good qform > 0                              qform
sform 0               bad qform > 0                               refused
sform 0               qform 0                                     refused: which side is left?
voxel size            sform and pixdim differ by over 5 %         sform (``header-voxel-size``, warning)
voxel size            under 0.5 mm or over 7 mm                   kept (``header-unusual-voxels``, warning)
voxel size            under 0.2 mm or over 10 mm                  refused
extent                under 12 voxels or 80 mm along an axis      refused: no brain fits in
extent                under 115 mm along an axis                  kept (``header-partial-coverage``, warning)
storage order         any (LAS, LIA, ...), oblique                axes flipped and swapped to RAS, nothing interpolated
====================  ==========================================  ======================================================

A sheared image is not resampled: its sform usually holds an affine registration to a template, in which volumes in mL
would be those of the template, while the qform still knows the scanner's grid.
"""

from __future__ import annotations

import gzip
import itertools
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from bids_app.errors import VisitError
from bids_app.images import Grid, Image, on_affine, resample, to_ras
from bids_app.study.content import has_content
from bids_app.study.models import Problem, Severity

FORM_TOLERANCE_MM = 0.5  # largest distance between sform and qform at a corner of the image
SHEAR_ROUNDING = 1e-4  # cosine between two axes that float32 headers reach by rounding
SHEAR_LIMIT = np.sin(np.deg2rad(1.0))  # mended below (0.9 mm at the edge of a head, shared among both sides)
VOXEL_SIZE_TOLERANCE = 0.05
USUAL_VOXEL_MM = (0.5, 7.0)
POSSIBLE_VOXEL_MM = (0.2, 10.0)
MIN_VOXELS = 12
MIN_EXTENT_MM = 80.0
BRAIN_EXTENT_MM = 115.0  # the height of a small adult brain

_GZIP_MAGIC = b"\x1f\x8b"
#: NIfTI-1 and NIfTI-2 by the size of their header, in either byte order.
_KINDS = {
    "5c010000": nib.Nifti1Image, "0000015c": nib.Nifti1Image, "1c020000": nib.Nifti2Image, "0000021c": nib.Nifti2Image,
}  # fmt: skip

#: What reading a damaged file raises, by way of nibabel, gzip and numpy.
_READ_ERRORS = (OSError, EOFError, ValueError, zlib.error, gzip.BadGzipFile, nib.filebasedimages.ImageFileError,
                HeaderDataError, nib.wrapstruct.WrapStructError)  # fmt: skip


@dataclass(frozen=True)
class Cleaned:
    """A scan that the rest of the App can trust.

    Attributes
    ----------
    image : Image
        float32, 3-D, finite, RAS+, sform = qform, units mm.
    problems : tuple of Problem
        What was mended or looks odd.
    stored : str
        The order in which the file holds its axes, such as ``LIA``.
    """

    image: Image
    problems: tuple[Problem, ...]
    stored: str = "RAS"


class NoOrientationError(VisitError):
    """A header whose sform and qform codes are both 0: which side is left is not known."""


def clean(path: Path) -> Cleaned:
    """Load a raw NIfTI file and mend its header and voxels, by the table above.

    Raises
    ------
    VisitError
        If the file cannot be read, or cannot be mended without guessing.
    """
    raw, file_problems = _load(path)
    values, voxel_problems = _voxels(raw, path)
    if values.min() == values.max():
        raise VisitError(f"{path.name} is blank: all its voxels have the same value.", "Check the conversion.")
    affine, affine_problems = _affine(raw, path)
    size_problems = _check_size(values.shape, affine, path)
    problems = (*file_problems, *voxel_problems, *affine_problems, *size_problems)
    return Cleaned(_ras(values, affine), problems, "".join(nib.aff2axcodes(affine)))


def as_stored(path: Path) -> Cleaned:
    """Load a file with its voxels in their stored order: float32, finite, on the affine that the table believes.

    Its size is not checked, and it may be blank.

    Raises
    ------
    NoOrientationError
        If no form of the header is set.
    VisitError
        If the file cannot be read, or cannot be mended without guessing.
    """
    raw, file_problems = _load(path)
    values, voxel_problems = _voxels(raw, path)
    affine, affine_problems = _affine(raw, path)
    return Cleaned(nib.Nifti1Image(values, affine), (*file_problems, *voxel_problems, *affine_problems))


def stored_grid(path: Path) -> Grid:
    """Read the grid of a file from its header alone, on the affine that the table believes.

    Raises
    ------
    VisitError
        If the file cannot be read, or its header cannot be mended without guessing.
    """
    _check_file(path)
    try:
        raw = nib.load(path)
    except (*_READ_ERRORS, KeyError):  # what `_load` mends, or has a sentence for
        raw, _ = _load(path)
    shape, _ = _three_dimensions(raw.shape, path)
    affine, _ = _affine(raw, path)
    return Grid(shape, affine)


def stored_shape(path: Path) -> tuple[int, ...]:
    """Number of voxels along each stored axis, of a file whose place may be unknown.

    Raises
    ------
    VisitError
        If the file cannot be read.
    """
    raw, _ = _load(path)
    return _three_dimensions(raw.shape, path)[0]


def on_stored_grid(mask: Image, path: Path) -> Image:
    """`mask` on the very voxels of the raw file at `path`, under that file's own forms, believed by `clean` or not.

    Parameters
    ----------
    mask : Image
        On the grid that `clean` makes of the file, or any other grid of the same world.

    Returns
    -------
    Image
        uint8; voxel (i, j, k) belongs to voxel (i, j, k) of the file.

    Raises
    ------
    VisitError
        If the file cannot be read any more.
    """
    raw, _ = _load(path)
    shape, _ = _three_dimensions(raw.shape, path)
    believed, _ = _affine(raw, path)
    values = np.asarray(resample(mask, on_affine(np.zeros(shape, np.uint8), believed), order=0).dataobj, np.uint8)
    stored = nib.Nifti1Image(values, raw.affine)
    stored.header.set_xyzt_units("mm", "sec")
    for set_form, name in ((stored.set_sform, "sform"), (stored.set_qform, "qform")):
        form = _form(raw, name)
        usable = form is not None and np.isfinite(form).all()
        set_form(form if usable else None, int(raw.header[f"{name}_code"]) if usable else 0)
    return stored


def _ras(values: np.ndarray, affine: np.ndarray) -> Image:
    """Voxels on an affine, in RAS+ order; the type of the voxels stays."""
    image = to_ras(nib.Nifti1Image(values, affine))
    return on_affine(np.ascontiguousarray(image.dataobj, dtype=values.dtype), image.affine)


def _warning(code: str, path: Path, message: str) -> Problem:
    return Problem(code, Severity.WARNING, message, (path.name,))


def _info(code: str, path: Path, message: str) -> Problem:
    return Problem(code, Severity.INFO, message, (path.name,))


# ---------------------------------------------------------------------------------------------------- file


def _load(path: Path) -> tuple[Image, tuple[Problem, ...]]:
    """The image behind `path`, its voxels not converted yet, and what had to be mended to load it."""
    _check_file(path)
    try:
        content = path.read_bytes()
        # in one go, because only the end of the stream holds the checksum of the voxels
        content = bytearray(gzip.decompress(content) if content[:2] == _GZIP_MAGIC else content)
    except _READ_ERRORS as error:
        raise VisitError(f"{path.name} is truncated or damaged: {error}.", "Copy or convert it again.") from error
    kind = _KINDS.get(content[:4].hex())
    if kind is None:
        raise VisitError(f"{path.name} cannot be read: it is no NIfTI image.", "Convert it to .nii.gz.")
    problems = _mend_intercept(content, kind, path)
    try:
        return kind.from_bytes(bytes(content)), problems
    except _READ_ERRORS as error:
        raise VisitError(f"{path.name} cannot be read as a NIfTI image: {error}.", "Convert it again.") from error


def _mend_intercept(content: bytearray, kind: type[Image], path: Path) -> tuple[Problem, ...]:
    """Write 0 over an intercept that is no number beside a slope that is one, with which nothing could be loaded."""
    size = kind.header_class.sizeof_hdr
    if len(content) < size:
        raise VisitError(f"{path.name} is truncated: it ends within its header.", "Copy or convert it again.")
    header = kind.header_class(bytes(content[:size]), check=False)
    if not np.isfinite(header["scl_slope"]) or header["scl_slope"] == 0 or np.isfinite(header["scl_inter"]):
        return ()
    header["scl_inter"] = 0
    content[:size] = header.binaryblock
    return (_warning("header-scaling", path, "The intercept of the intensities was no number; 0 was used."),)


def _check_file(path: Path) -> None:
    """Refuse what is no file, or one without content."""
    if os.path.lexists(path) and not has_content(path):
        raise VisitError(f"{path.name} is only a link: its content is not downloaded.", f"Run: datalad get {path}")
    if not path.is_file():
        raise VisitError(f"{path} does not exist.", "Check the path.")
    if path.stat().st_size == 0:
        raise VisitError(f"{path.name} is empty: it has no byte.", "Copy or convert it again.")


# -------------------------------------------------------------------------------------------------- voxels


def _voxels(raw: Image, path: Path) -> tuple[np.ndarray, tuple[Problem, ...]]:
    """Finite float32 voxels, shape (x, y, z), and what was mended."""
    dtype = raw.get_data_dtype()
    if dtype.kind not in "iufb":
        kind = "complex numbers" if dtype.kind == "c" else "colours"
        raise VisitError(f"{path.name} holds {kind}, not grey values.", "Give the magnitude image.")
    shape, problems = _three_dimensions(raw.shape, path)
    try:
        values = np.asarray(raw.dataobj, dtype=np.float32).reshape(shape)
    except _READ_ERRORS as error:
        raise VisitError(f"{path.name} is truncated or damaged: {error}.", "Copy or convert it again.") from error
    finite = np.isfinite(values)
    if not finite.all():
        count = int(finite.size - finite.sum())
        values = np.where(finite, values, np.float32(0))
        problems += (_warning("header-nan-voxels", path, f"{count} voxels were NaN or infinite and were set to 0."),)
    return values, problems


def _three_dimensions(shape: tuple[int, ...], path: Path) -> tuple[tuple[int, ...], tuple[Problem, ...]]:
    """The shape without trailing axes of length 1, and whether there were any."""
    if len(shape) < 3:
        raise VisitError(f"{path.name} has {len(shape)} dimensions: it is no volume.", "Give a 3-D scan.")
    if any(size > 1 for size in shape[3:]):
        raise VisitError(
            f"{path.name} holds {int(np.prod(shape[3:]))} volumes, not one.",
            "Give the one to use (or their average) as a 3-D file.",
        )
    mended = (_info("header-one-volume", path, "A 4-D file of one volume was read as 3-D."),) if len(shape) > 3 else ()
    return shape[:3], mended


# -------------------------------------------------------------------------------------------------- affine


def _affine(raw: Image, path: Path) -> tuple[np.ndarray, tuple[Problem, ...]]:
    """The orthonormal affine to believe, and what was wrong with the header."""
    sform, qform = _form(raw, "sform"), _form(raw, "qform")
    if sform is None and qform is None:
        raise NoOrientationError(
            f"The header of {path.name} does not say which side is left (its sform and qform codes are 0).",
            "Set the orientation at the source, by converting from DICOM again.",
        )
    if sform is not None and _is_good(sform):
        return _believe_sform(sform, qform, raw, path)
    if qform is not None and _is_good(qform):
        if sform is not None and _fault(sform) == "sheared":  # useless for places, but it has a left and a right
            _refuse_mirror(sform, qform, path)
        mended = () if sform is None else (_warning("header-bad-sform", path, _BAD_SFORM),)
        return _orthonormal(qform, raw.shape), mended
    fault = _fault(qform if sform is None else sform)
    raise VisitError(
        f"The header of {path.name} places its voxels nowhere: its affine is {fault}.",
        "Convert the scan again, or resample it to a rectangular grid.",
    )


_BAD_SFORM = "The sform is sheared, singular or NaN; the qform was used."


def _believe_sform(sform: np.ndarray, qform: np.ndarray | None, raw: Image, path: Path):
    """The sform made orthonormal, with what disagrees with it."""
    problems = []
    if qform is not None and _is_good(qform):
        _refuse_mirror(sform, qform, path)
        distance = _distance(sform, qform, raw.shape[:3])
        if distance > FORM_TOLERANCE_MM:
            message = f"sform and qform disagree by up to {distance:.1f} mm; the sform was used."
            problems.append(_warning("header-form-conflict", path, message))
    if _shear(sform) > SHEAR_ROUNDING:
        message = "The axes were not quite at right angles; they were straightened."
        problems.append(_info("header-sheared", path, message))
    sizes, pixdim = nib.affines.voxel_sizes(sform), np.abs(np.array(raw.header["pixdim"][1:4], float))
    if not np.allclose(sizes, pixdim, rtol=VOXEL_SIZE_TOLERANCE):
        message = f"Voxels are {_mm(sizes)} by the sform but {_mm(pixdim)} by pixdim; the sform was used."
        problems.append(_warning("header-voxel-size", path, message))
    return _orthonormal(sform, raw.shape), tuple(problems)


def _form(raw: Image, name: str) -> np.ndarray | None:
    """sform or qform, None where its code is 0, NaN where it cannot be computed."""
    if int(raw.header[f"{name}_code"]) <= 0:
        return None
    try:
        affine = raw.header.get_sform() if name == "sform" else raw.header.get_qform()
    except (HeaderDataError, ValueError):  # a quaternion longer than 1
        return np.full((4, 4), np.nan)
    return np.asarray(affine, float)


def _is_good(affine: np.ndarray) -> bool:
    return not _fault(affine)


def _fault(affine: np.ndarray) -> str:
    """What is wrong with an affine, empty if nothing is."""
    if not np.isfinite(affine).all():
        return "not a number"
    sizes = nib.affines.voxel_sizes(affine)
    if sizes.min() < 1e-6 or abs(np.linalg.det(affine[:3, :3] / sizes)) < 1e-3:
        return "singular"
    return "sheared" if _shear(affine) > SHEAR_LIMIT else ""


def _shear(affine: np.ndarray) -> float:
    """Largest cosine between two voxel axes: 0 for a rectangular grid."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return float(np.abs(axes.T @ axes - np.eye(3)).max())


def _orthonormal(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The rectangular grid next to `affine`: same voxel sizes, same middle of the image (polar decomposition)."""
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(affine[:3, :3] / sizes)
    middle = (np.array(shape[:3]) - 1) / 2
    out = affine.copy()
    out[:3, :3] = (left @ right) * sizes
    out[:3, 3] += (affine - out)[:3, :3] @ middle
    return out


def _refuse_mirror(sform: np.ndarray, qform: np.ndarray, path: Path) -> None:
    if np.linalg.det(sform[:3, :3]) * np.linalg.det(qform[:3, :3]) < 0:
        raise VisitError(
            f"sform and qform of {path.name} contradict each other on which side is left.",
            "Find out which one is right and copy it over the other.",
        )


def _distance(first: np.ndarray, second: np.ndarray, shape: tuple[int, ...]) -> float:
    """Largest distance in mm between where two affines put the corners of an image."""
    corners = np.array(list(itertools.product(*[(0, size - 1) for size in shape])))
    gap = nib.affines.apply_affine(first, corners) - nib.affines.apply_affine(second, corners)
    return float(np.linalg.norm(gap, axis=1).max())


# ---------------------------------------------------------------------------------------------------- size


def _check_size(shape: tuple[int, ...], affine: np.ndarray, path: Path) -> tuple[Problem, ...]:
    """Refuse grids that hold no brain; name unusual ones."""
    sizes = nib.affines.voxel_sizes(affine)
    extent = sizes * shape
    if sizes.min() < POSSIBLE_VOXEL_MM[0] or sizes.max() > POSSIBLE_VOXEL_MM[1]:
        raise VisitError(
            f"The voxels of {path.name} are {_mm(sizes)}.",
            f"Between {POSSIBLE_VOXEL_MM[0]:g} and {POSSIBLE_VOXEL_MM[1]:g} mm can be used; check the header's units.",
        )
    if min(shape) < MIN_VOXELS or extent.min() < MIN_EXTENT_MM:
        raise VisitError(
            f"{path.name} has {_times(shape)} voxels over {_mm(extent)}: no brain fits in.",
            "Is it a localizer or a slab?",
        )
    problems = []
    if sizes.min() < USUAL_VOXEL_MM[0] or sizes.max() > USUAL_VOXEL_MM[1]:
        message = f"Voxels are {_mm(sizes)}; results were checked from {USUAL_VOXEL_MM[0]} to {USUAL_VOXEL_MM[1]} mm."
        problems.append(_warning("header-unusual-voxels", path, message))
    if extent.min() < BRAIN_EXTENT_MM:
        message = f"The scan covers {_mm(extent)}: part of the brain may be missing."
        problems.append(_warning("header-partial-coverage", path, message))
    return tuple(problems)


def _times(numbers) -> str:
    return " x ".join(f"{number:.3g}" for number in numbers)


def _mm(sizes: np.ndarray) -> str:
    return f"{_times(sizes)} mm"
