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

import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.volumeutils import apply_read_scaling

from bids_app.errors import VisitError
from bids_app.images import Image, on_affine, resample, to_ras
from bids_app.preprocessing.values import Mended, clipped, raised, unwrapped
from bids_app.study.content import has_content
from bids_app.study.grid import (
    GZIP_MAGIC,
    Header,
    HeaderGrid,
    affine_of,
    check_size,
    form_of,
    grid_of,
    info,
    parse_header,
    read_grid,
    read_header,
    shape_of,
    voxel_type,
    warning,
)
from bids_app.study.models import Problem
from bids_app.wording import counted, was

#: Between header and voxels stands a flag that tells whether extensions follow.
_FLAG_BYTES = 4
_AGAIN = "Copy or convert it again."


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


def clean(path: Path, raise_negative: bool = True) -> Cleaned:
    """Load a raw NIfTI file and mend its header and voxels, by the table above.

    Parameters
    ----------
    raise_negative : bool
        Whether a scan much of which is below 0 is shifted above it; a model that was trained on such scans wants them
        as they are.

    Raises
    ------
    VisitError
        If the file cannot be read, or cannot be mended without guessing.
    """
    raw, file_problems = _load(path)
    grid = grid_of(raw.header, path.name)
    size_problems = check_size(grid, path.name)
    values, voxel_problems = _voxels(raw, path)
    if values.min() == values.max():
        raise VisitError(f"{path.name} is blank: all its voxels have the same value.", "Check the conversion.")
    values, value_problems = _plausible(values, path, raise_negative)
    problems = (*file_problems, *voxel_problems, *value_problems, *grid.problems, *size_problems)
    return Cleaned(_ras(values, grid.affine), problems, "".join(nib.aff2axcodes(grid.affine)))


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
    affine, affine_problems = affine_of(raw.header, path.name)
    return Cleaned(nib.Nifti1Image(values, affine), (*file_problems, *voxel_problems, *affine_problems))


def stored_grid(path: Path) -> HeaderGrid:
    """Read the grid of a file from its header alone, on the affine that the table believes.

    Raises
    ------
    VisitError
        If the file cannot be read, or its header cannot be mended without guessing.
    """
    _check_file(path)
    return read_grid(path)


def stored_shape(path: Path) -> tuple[int, int, int]:
    """Number of voxels along each stored axis, of a file whose place may be unknown.

    Raises
    ------
    VisitError
        If the file cannot be read.
    """
    _check_file(path)
    return shape_of(read_header(path), path.name)[0]


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
    believed, _ = affine_of(raw.header, path.name)
    values = np.asarray(resample(mask, on_affine(np.zeros(raw.shape, np.uint8), believed), order=0).dataobj, np.uint8)
    forms = {name: form_of(raw.header, name) for name in ("sform", "qform")}
    usable = {name: form for name, form in forms.items() if form is not None and np.isfinite(form).all()}
    stored = nib.Nifti1Image(values, next(iter(usable.values())))
    stored.header["xyzt_units"] = int(raw.header["xyzt_units"])
    for name, set_form in (("sform", stored.set_sform), ("qform", stored.set_qform)):
        set_form(usable.get(name), int(raw.header[f"{name}_code"]) if name in usable else 0)
    return stored


def _ras(values: np.ndarray, affine: np.ndarray) -> Image:
    """Voxels on an affine, in RAS+ order; the type of the voxels stays."""
    image = to_ras(nib.Nifti1Image(values, affine))
    return on_affine(np.ascontiguousarray(image.dataobj, dtype=values.dtype), image.affine)


# ---------------------------------------------------------------------------------------------------- file


@dataclass(frozen=True)
class _Raw:
    """A file in memory.

    Attributes
    ----------
    header : Header
        As it is stored.
    stored : array of shape (x, y, z)
        Voxels before scaling, in the type and byte order of the file.
    """

    header: Header
    stored: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape


def _load(path: Path) -> tuple[_Raw, tuple[Problem, ...]]:
    """The file at `path`, its voxels not scaled yet, and what had to be mended to read it."""
    _check_file(path)
    try:
        content = path.read_bytes()
        # in one go, because only the end of the stream holds the checksum of the voxels
        content, left_out = _decompressed(content) if content[:2] == GZIP_MAGIC else (content, 0)
    except (OSError, EOFError, zlib.error) as error:
        raise VisitError(f"{path.name} is truncated or damaged: {error}.", _AGAIN) from error
    header = parse_header(content, path.name)
    shape, _ = shape_of(header, path.name)
    dtype = voxel_type(header, path.name)
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    start, problems = _first_voxel(header, content, size, path.name)
    problems += _check_volumes(header, shape, len(content) - start, size, path.name)
    problems += _check_bits(header, dtype, len(content) - start, size, path.name)
    problems += _left_out(left_out + len(content) - start - size, size // shape[2], path.name)
    stored = np.frombuffer(content, dtype, size // dtype.itemsize, start).reshape(shape, order="F")
    return _Raw(header, stored), problems


def _check_file(path: Path) -> None:
    """Refuse what is no file, or one without content."""
    if os.path.lexists(path) and not has_content(path):
        raise VisitError(f"{path.name} is only a link: its content is not downloaded.", f"Run: datalad get {path}")
    if not path.is_file():
        raise VisitError(f"{path} does not exist.", "Check the path.")
    if path.stat().st_size == 0:
        raise VisitError(f"{path.name} is empty: it has no byte.", _AGAIN)


def _decompressed(content: bytes) -> tuple[bytes, int]:
    """What one or several gzip streams hold, and how many bytes after them are neither a stream nor zeros."""
    parts: list[bytes] = []
    while content:
        stream = zlib.decompressobj(wbits=31)
        try:
            part = stream.decompress(content)
            if not stream.eof:
                raise EOFError("the compressed stream ends too early")
        except (EOFError, zlib.error):
            if not parts:
                raise
            break  # no further stream; whether voxels are missing is seen later
        parts.append(part)
        content = stream.unused_data.lstrip(b"\0")
    return b"".join(parts), len(content)


def _first_voxel(header: Header, content: bytes, size: int, name: str) -> tuple[int, tuple[Problem, ...]]:
    """Where the voxels begin, `size` bytes of them, and whether the header says so."""
    said, end = float(header["vox_offset"]), len(content)
    bare, least = header.sizeof_hdr + _FLAG_BYTES, _end_of_extensions(header, content, size)
    if header["magic"].item().startswith(b"ni") and end < bare + size:
        raise VisitError(f"{name} is the header of a pair: its voxels are in an .img file.", "Convert it to .nii.gz.")
    if np.isfinite(said) and bare <= said <= end - size and not said < least == end - size:
        return int(said), ()
    # a number too small says nothing; one too large may be right in a truncated file, unless the voxels fit exactly
    if end == least + size or (end > least + size and not said >= bare):
        start = least
    elif end == header.sizeof_hdr + size:
        start = header.sizeof_hdr
    else:
        raise VisitError(f"{name} is truncated: it has {end} bytes, of which {size} should be voxels.", _AGAIN)
    message = f"The header lets the voxels begin at byte {said:g}, which cannot be; they were read from byte {start}."
    return start, (warning("header-offset", name, message),)


def _end_of_extensions(header: Header, content: bytes, size: int) -> int:
    """Where the header's extensions end, if there are any, so that `size` bytes remain."""
    position = header.sizeof_hdr + _FLAG_BYTES
    flag = content[header.sizeof_hdr : position]
    if not flag or flag[0] == 0:
        return position
    while position + 8 <= len(content) - size:
        length = int(np.frombuffer(content, np.dtype(np.int32).newbyteorder(header.endianness), 1, position)[0])
        if length < 8 or position + length > len(content) - size:
            break
        position += length
    return position


def _left_out(count: int, slice_bytes: int, name: str) -> tuple[Problem, ...]:
    """Whether the file has more bytes than it should."""
    if count == 0:
        return ()
    message = f"The file has {counted(count, 'byte')} more than its header describes, which {was(count)} left out."
    if count < slice_bytes:
        return (info("header-trailing-bytes", name, message),)
    return (warning("header-trailing-bytes", name, f"{message} They would be a slice or more: look at the scan."),)


# -------------------------------------------------------------------------------------------------- voxels


def _check_bits(header: Header, dtype: np.dtype, there: int, size: int, name: str) -> tuple[Problem, ...]:
    """Whether datatype and bitpix, which say the same, agree; the length of the file decides."""
    bits = int(header["bitpix"])
    if bits == 8 * dtype.itemsize:
        return ()
    if there != size and there == size // dtype.itemsize * bits // 8:
        raise VisitError(
            f"datatype and bitpix of {name} contradict each other ({8 * dtype.itemsize} and {bits} bits), "
            "and the length of the file agrees with the latter.",
            "Convert it again.",
        )
    message = f"The voxels have {8 * dtype.itemsize} bits by datatype but {bits} by bitpix; datatype was used."
    return (warning("header-bitpix", name, message),)


def _check_volumes(header: Header, shape: tuple[int, ...], there: int, size: int, name: str) -> tuple[Problem, ...]:
    """Refuse a file that holds more volumes than its number of dimensions admits."""
    volumes = int(header["dim"][4])
    if int(header["dim"][0]) == 3 and volumes > 1 and there >= volumes * size:
        raise VisitError(
            f"{name} holds {volumes} volumes, not one, though its header counts 3 dimensions.",
            "Give the one to use (or their average) as a 3-D file.",
        )
    return ()


def _voxels(raw: _Raw, path: Path) -> tuple[np.ndarray, tuple[Problem, ...]]:
    """Finite float32 voxels, shape (x, y, z), and what was mended."""
    stored = unwrapped(raw.stored)
    problems = (warning("wrapped-values", path.name, stored.sentence),) if stored.sentence else ()
    values, scaling = _scaled(stored.values, raw.header, path.name)
    finite = np.isfinite(values)
    if not finite.all():
        count = int(finite.size - finite.sum())
        values = np.where(finite, values, np.float32(0))
        message = f"{counted(count, 'voxel')} {was(count)} NaN or infinite and {was(count)} set to 0."
        scaling += (warning("header-nan-voxels", path.name, message),)
    return values, (*problems, *scaling)


def _scaled(stored: np.ndarray, header: Header, name: str) -> tuple[np.ndarray, tuple[Problem, ...]]:
    """Stored voxels times slope plus intercept as float32."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    problems = ()
    if slope == 0 or not np.isfinite(slope):  # means that there is no scaling
        slope, intercept = 1.0, 0.0
    if not np.isfinite(intercept):
        intercept = 0.0
        problems = (warning("header-scaling", name, "The intercept of the intensities was no number; 0 was used."),)
    if slope < 0 and slope * float(stored.min()) + intercept <= 0:
        slope = -slope
        message = "The slope of the intensities was negative, which makes bright dark; its amount was used."
        problems += (warning("header-scaling", name, message),)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
        return np.asarray(apply_read_scaling(stored, slope, intercept), dtype=np.float32), problems


def _plausible(values: np.ndarray, path: Path, raise_negative: bool) -> tuple[np.ndarray, tuple[Problem, ...]]:
    """Grey values without extreme ones, and, if they are to be raised, not below 0."""
    near = clipped(values)
    high = raised(near.values) if raise_negative else Mended(near.values)
    told = (("extreme-values", near), ("negative-values", high))
    return high.values, tuple(warning(code, path.name, step.sentence) for code, step in told if step.sentence)
