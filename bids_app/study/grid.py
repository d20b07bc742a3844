"""Where a scan's voxels lie, judged from the raw bytes of its NIfTI header, without its voxels.

nibabel mends a header as it loads it: a voxel size of 0 becomes 1 mm, a negative one positive, an unknown code 0. What
was mended so can be judged no more, therefore nothing here is. The rules are the rows on voxel type, dimensions, forms,
voxel size and extent of the table in `bids_app.preprocessing.headers`, which reads the voxels; the choice among several
scans asks here which of them that table would refuse.
"""

from __future__ import annotations

import itertools
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.quaternions import quat2mat
from nibabel.spatialimages import HeaderDataError

from bids_app.errors import VisitError
from bids_app.images import Grid
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

GZIP_MAGIC = b"\x1f\x8b"
#: NIfTI-1 and NIfTI-2 by the size of their header, in either byte order.
_KINDS = {
    b"\x5c\x01\x00\x00": (nib.Nifti1Header, "<"),
    b"\x00\x00\x01\x5c": (nib.Nifti1Header, ">"),
    b"\x1c\x02\x00\x00": (nib.Nifti2Header, "<"),
    b"\x00\x00\x02\x1c": (nib.Nifti2Header, ">"),
}
_LONGEST_HEADER = nib.Nifti2Header.sizeof_hdr
#: Millimetres in a unit of length, by the lowest three bits of ``xyzt_units``.
_MM = {1: 1000.0, 2: 1.0, 3: 0.001}
_UNIT_NAMES = {1: "metre", 2: "mm", 3: "micron"}
_FORM_CODES = range(6)  # what the standard has names for
_NO_SIDE = "Set the orientation at the source, by converting from DICOM again."

Header = nib.Nifti1Header  # NIfTI-2's is one as well


class NoOrientationError(VisitError):
    """A header whose sform and qform codes are both 0: which side is left is not known."""


@dataclass(frozen=True, eq=False)
class HeaderGrid(Grid):
    """The voxels that a header describes, its affine at right angles and in mm.

    Attributes
    ----------
    problems : tuple of Problem
        What was mended or looks odd.
    """

    problems: tuple[Problem, ...] = ()

    @property
    def voxel_mm(self) -> np.ndarray:
        """Size of a voxel along each axis."""
        return nib.affines.voxel_sizes(self.affine)

    @property
    def extent_mm(self) -> np.ndarray:
        """Length of the image along each axis."""
        return self.voxel_mm * self.shape

    @property
    def covers_a_brain(self) -> bool:
        """Whether a whole brain fits into the field of view."""
        return bool(self.extent_mm.min() >= BRAIN_EXTENT_MM)


def read_grid(path: Path) -> HeaderGrid:
    """The grid of a NIfTI file, of which only the header is read.

    Raises
    ------
    VisitError
        If it cannot be read, holds no grey values, or cannot be mended without guessing.
    """
    header = read_header(path)
    voxel_type(header, path.name)
    return grid_of(header, path.name)


def read_header(path: Path) -> Header:
    """The header of a NIfTI file, every field as it is stored.

    Raises
    ------
    VisitError
        If it cannot be read.
    """
    return parse_header(_first_bytes(path), path.name)


def parse_header(content: bytes, name: str) -> Header:
    """The header at the beginning of a (decompressed) NIfTI file, every field as it is stored.

    Raises
    ------
    VisitError
        If this is no NIfTI file, or ends within its header.
    """
    kind, order = _KINDS.get(bytes(content[:4]), (None, None))
    if kind is None:
        raise VisitError(f"{name} cannot be read: it is no NIfTI image.", "Convert it to .nii.gz.")
    if len(content) < kind.sizeof_hdr:
        raise VisitError(f"{name} is truncated: it ends within its header.", "Copy or convert it again.")
    header = kind(bytes(content[: kind.sizeof_hdr]), endianness=order, check=False)
    magic = header["magic"].item()
    if not magic.startswith((b"n+", b"ni")):
        what = "an Analyze image, which does not say which side is left" if not magic else "no NIfTI image"
        raise VisitError(f"{name} cannot be read: it is {what}.", "Convert the DICOM files to .nii.gz again.")
    return header


def grid_of(header: Header, name: str) -> HeaderGrid:
    """The grid that a header describes, mended by the table in `bids_app.preprocessing.headers`.

    Raises
    ------
    VisitError
        If the header cannot be mended without guessing.
    """
    shape, shape_problems = shape_of(header, name)
    affine, affine_problems = affine_of(header, name)
    return HeaderGrid(shape, affine, shape_problems + affine_problems)


def _first_bytes(path: Path) -> bytes:
    """The beginning of a file, decompressed, as long as a header."""
    try:
        with path.open("rb") as file:
            content = file.read(_LONGEST_HEADER * 64)
        if content[:2] != GZIP_MAGIC:
            return content[:_LONGEST_HEADER]
        return zlib.decompressobj(wbits=31).decompress(content, _LONGEST_HEADER)
    except (OSError, zlib.error) as error:
        raise VisitError(f"{path.name} cannot be read: {error}.", "Copy or convert it again.") from error


def warning(code: str, name: str, message: str) -> Problem:
    """Something about a file that may be wrong."""
    return Problem(code, Severity.WARNING, message, (name,))


def info(code: str, name: str, message: str) -> Problem:
    """Something about a file that was mended without loss."""
    return Problem(code, Severity.INFO, message, (name,))


# ---------------------------------------------------------------------------------- voxel type, dimensions


def voxel_type(header: Header, name: str) -> np.dtype:
    """Type of the stored voxels, in the byte order of the file.

    Raises
    ------
    VisitError
        If a voxel is no single grey value.
    """
    code = int(header["datatype"])
    try:
        dtype = nib.nifti1.data_type_codes.dtype[code]
    except KeyError:
        dtype = np.dtype("V")
    if dtype.kind in "iufb":
        return dtype.newbyteorder(header.endianness)
    if dtype.kind == "c" or dtype.names:
        kind = "complex numbers" if dtype.kind == "c" else "colours"
        raise VisitError(f"{name} holds {kind}, not grey values.", "Give the magnitude image.")
    raise VisitError(f"{name} has voxels of a type that NIfTI does not know (code {code}).", "Convert it again.")


def shape_of(header: Header, name: str) -> tuple[tuple[int, int, int], tuple[Problem, ...]]:
    """The three axes of a scan, without trailing ones of length 1, and what was mended.

    Axes beyond the third that have no length count as 1, as in the NIfTI library.

    Raises
    ------
    VisitError
        If there are several volumes, or fewer than three axes.
    """
    dim = [int(size) for size in header["dim"]]
    count, problems = dim[0], ()
    if not 1 <= count <= 7 or (count < 3 and dim[3] > 1):
        message = f"The header counts {count} dimensions, which its sizes contradict; all sizes were read."
        count, problems = 7, (warning("header-dimensions", name, message),)
    if count < 3:
        raise VisitError(f"{name} has {count} dimensions: it is no volume.", "Give a 3-D scan.")
    if min(dim[1:4]) < 1:
        raise VisitError(f"{name} has {_times(dim[1:4])} voxels: it is no volume.", "Convert it again.")
    volumes = int(np.prod([max(1, size) for size in dim[4 : count + 1]], dtype=float))
    if volumes > 1:
        raise VisitError(
            f"{name} holds {volumes} volumes, not one.",
            "Give the one to use (or their average) as a 3-D file.",
        )
    if dim[0] > 3 and not problems:
        problems = (info("header-one-volume", name, "A 4-D file of one volume was read as 3-D."),)
    return tuple(dim[1:4]), problems


# -------------------------------------------------------------------------------------------------- affine


def affine_of(header: Header, name: str) -> tuple[np.ndarray, tuple[Problem, ...]]:
    """The orthonormal affine to believe, in mm, and what was wrong with the header.

    Raises
    ------
    VisitError
        If left and right, or the size of a voxel, would be a guess.
    """
    sform, qform = form_of(header, "sform"), form_of(header, "qform")
    codes = _check_codes(header, name)
    if sform is None and qform is None:
        raise NoOrientationError(
            f"The header of {name} does not say which side is left (its sform and qform codes are 0).", _NO_SIDE
        )
    if sform is not None and not _fault(sform):
        affine, problems = _believe_sform(sform, qform, header, name)
        return affine, (*codes, *problems)
    if qform is None or _fault(qform):
        raise _nowhere(sform, qform, header, name)
    if sform is not None and _fault(sform) == "sheared":  # useless for places, but it has a left and a right
        _refuse_mirror(sform, header, name)
    mended = () if sform is None else (warning("header-bad-sform", name, _BAD_SFORM),)
    factor, units = _factor_to_mm(qform, header, name)
    return _orthonormal(_scaled(qform, factor), header["dim"][1:4]), (*codes, *mended, *units)


_BAD_SFORM = "The sform is sheared, singular or NaN; the qform was used."


def form_of(header: Header, name: str) -> np.ndarray | None:
    """``sform`` or ``qform`` in the unit of the file, None where its code is 0, NaN where it cannot be computed."""
    if int(header[f"{name}_code"]) <= 0:
        return None
    if name == "sform":
        return np.asarray(header.get_sform(), float)
    affine = np.full((4, 4), np.nan)
    sizes, side = _pixdim(header), _side_of_qform(header)
    if side is None or not (np.isfinite(sizes).all() and sizes.min() > 0):
        return affine
    affine[:3, :3] = quat2mat(header.get_qform_quaternion()) * sizes * (1, 1, side)
    affine[:, 3] = *(float(header[f"qoffset_{axis}"]) for axis in "xyz"), 1
    affine[3, :3] = 0
    return affine


def _pixdim(header: Header) -> np.ndarray:
    """Voxel size as the header has it, which may be 0, negative or NaN."""
    return np.array(header["pixdim"][1:4], float)


def _side_of_qform(header: Header) -> int | None:
    """1 if the qform keeps left and right as the axes have them, -1 if it mirrors them, None if that is unknown."""
    sign = float(header["pixdim"][0])
    if sign not in (-1, 0, 1):  # the standard takes 0 for 1
        return None
    try:
        quaternion = header.get_qform_quaternion()
    except (HeaderDataError, ValueError):  # longer than 1
        return None
    return (-1 if sign < 0 else 1) if np.isfinite(quaternion).all() else None


def _check_codes(header: Header, name: str) -> tuple[Problem, ...]:
    """A form whose code has no meaning is used if it is positive, as the NIfTI library does; that is told."""
    codes = {form: int(header[f"{form}_code"]) for form in ("sform", "qform")}
    odd = [f"{form} code {code}" for form, code in codes.items() if code not in _FORM_CODES]
    if not odd:
        return ()
    message = f"The standard knows no {' and no '.join(odd)}: check left and right."
    return (warning("header-form-code", name, message),)


def _believe_sform(sform: np.ndarray, qform: np.ndarray | None, header: Header, name: str):
    """The sform made orthonormal, with what disagrees with it."""
    factor, units = _factor_to_mm(sform, header, name)
    affine, shape, problems = _scaled(sform, factor), header["dim"][1:4], list(units)
    if qform is not None:
        _refuse_mirror(sform, header, name)
    if qform is not None and not _fault(qform):
        other, _ = _factor_to_mm(qform, header, name)
        distance = _distance(affine, _scaled(qform, other), shape)
        if distance > FORM_TOLERANCE_MM:
            message = f"sform and qform disagree by up to {distance:.1f} mm; the sform was used."
            problems.append(warning("header-form-conflict", name, message))
    if _shear(affine) > SHEAR_ROUNDING:
        message = "The axes were not quite at right angles; they were straightened."
        problems.append(info("header-sheared", name, message))
    sizes, pixdim = nib.affines.voxel_sizes(affine), factor * _pixdim(header)
    if not np.allclose(sizes, pixdim, rtol=VOXEL_SIZE_TOLERANCE, atol=0):
        message = f"Voxels are {_mm(sizes)} by the sform but {_mm(pixdim)} by pixdim; the sform was used."
        problems.append(warning("header-voxel-size", name, message))
    return _orthonormal(affine, shape), tuple(problems)


def _nowhere(sform: np.ndarray | None, qform: np.ndarray | None, header: Header, name: str) -> VisitError:
    """Why neither form can be used."""
    sizes = _pixdim(header)
    if qform is not None and not (np.isfinite(sizes).all() and sizes.min() > 0):
        return VisitError(
            f"The header of {name} gives no size of its voxels: pixdim is {_mm(sizes)}, and no good sform is there.",
            "Convert the scan again, or copy the header of an intact one of the same series.",
        )
    if qform is not None and sform is None and _side_of_qform(header) is None:
        return VisitError(
            f"The header of {name} does not say which side is left: its qform is not valid, and it has no sform.",
            _NO_SIDE,
        )
    fault = _fault(qform if sform is None else sform)
    return VisitError(
        f"The header of {name} places its voxels nowhere: its affine is {fault}.",
        "Convert the scan again, or resample it to a rectangular grid.",
    )


def _unit(header: Header) -> int:
    """The unit of length: 1 metre, 2 mm, 3 micron, else unknown."""
    return int(header["xyzt_units"]) & 7


def _factor_to_mm(affine: np.ndarray, header: Header, name: str) -> tuple[float, tuple[Problem, ...]]:
    """What the lengths of an affine are to be multiplied by to be mm, and what should be said of it.

    Writers forget the unit or copy a wrong one. A voxel of a head is possible in one unit only, since the next is a
    thousand times as long. Where the declared one makes an impossible voxel, it gives way to mm, and a missing one to
    whichever fits; a declared mm is not doubted, because that would be a guess.
    """
    unit = _unit(header)
    declared = _MM.get(unit, 1.0)
    if declared != 1 and _is_possible(affine, declared):
        message = f"Lengths were in {_UNIT_NAMES[unit]} and were converted to mm."
        return declared, (info("header-units", name, message),)
    if unit == 2 or _is_possible(affine, 1.0):
        factor, fitting = 1.0, "mm"
    else:
        fitting_unit = next((other for other in (1, 3) if _is_possible(affine, _MM[other])), 2)
        factor, fitting = _MM[fitting_unit], _UNIT_NAMES[fitting_unit]
    if factor == declared:
        return factor, ()
    sizes = _times(nib.affines.voxel_sizes(affine))
    said = f"is {_UNIT_NAMES[unit]}" if unit in _MM else "is not given"
    message = f"The unit of length {said}, but voxels of {sizes} can only be in {fitting}, which was taken."
    return factor, (warning("header-units", name, message),)


def _is_possible(affine: np.ndarray, factor: float) -> bool:
    sizes = nib.affines.voxel_sizes(affine) * factor
    return bool(sizes.min() >= POSSIBLE_VOXEL_MM[0] and sizes.max() <= POSSIBLE_VOXEL_MM[1])


def _scaled(affine: np.ndarray, factor: float) -> np.ndarray:
    return np.diag([factor] * 3 + [1.0]) @ affine


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


def _refuse_mirror(sform: np.ndarray, header: Header, name: str) -> None:
    """Refuse forms of which one mirrors the other; a qform has a side even where it has no voxel size."""
    side = _side_of_qform(header)
    if side is not None and np.linalg.det(sform[:3, :3]) * side < 0:
        raise VisitError(
            f"sform and qform of {name} contradict each other on which side is left.",
            "Find out which one is right and copy it over the other.",
        )


def _distance(first: np.ndarray, second: np.ndarray, shape: tuple[int, ...]) -> float:
    """Largest distance in mm between where two affines put the corners of an image."""
    corners = np.array(list(itertools.product(*[(0, size - 1) for size in shape])))
    gap = nib.affines.apply_affine(first, corners) - nib.affines.apply_affine(second, corners)
    return float(np.linalg.norm(gap, axis=1).max())


# -------------------------------------------------------------------------------------------------- size


def check_size(grid: HeaderGrid, name: str) -> tuple[Problem, ...]:
    """Refuse grids that hold no brain; name unusual ones.

    Raises
    ------
    VisitError
        If no brain fits in, or the size of a voxel is impossible.
    """
    sizes, extent, shape = grid.voxel_mm, grid.extent_mm, grid.shape
    if sizes.min() < POSSIBLE_VOXEL_MM[0] or sizes.max() > POSSIBLE_VOXEL_MM[1]:
        raise VisitError(
            f"The voxels of {name} are {_mm(sizes)}.",
            f"Between {POSSIBLE_VOXEL_MM[0]:g} and {POSSIBLE_VOXEL_MM[1]:g} mm can be used; check the header's units.",
        )
    if min(shape) < MIN_VOXELS or extent.min() < MIN_EXTENT_MM:
        raise VisitError(
            f"{name} has {_times(shape)} voxels over {_mm(extent)}: no brain fits in.",
            "Is it a localizer or a slab?",
        )
    problems = []
    if sizes.min() < USUAL_VOXEL_MM[0] or sizes.max() > USUAL_VOXEL_MM[1]:
        message = f"Voxels are {_mm(sizes)}; results were checked from {USUAL_VOXEL_MM[0]} to {USUAL_VOXEL_MM[1]} mm."
        problems.append(warning("header-unusual-voxels", name, message))
    if not grid.covers_a_brain:
        message = f"The scan covers {_mm(extent)}: part of the brain may be missing."
        problems.append(warning("header-partial-coverage", name, message))
    return tuple(problems)


def _times(numbers) -> str:
    return " x ".join(f"{number:.3g}" for number in numbers)


def _mm(sizes: np.ndarray) -> str:
    return f"{_times(sizes)} mm"
