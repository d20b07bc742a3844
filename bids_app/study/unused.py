"""Why something in a dataset is not used: from the name of a file or folder, and where it lies, to a reason.

What looks like a scan, a mask, a participant, a session or their table, and is not used, gets a `Reason` here, and the
plan names it. The functions look at names alone; `study.listing` brings them the names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import PurePosixPath

from bids_app.derivatives.names import ENTITY_ORDER, PARTICIPANTS, TWIN_DESC, visit_folder, visit_label
from bids_app.wording import printable

ANAT = "anat"
#: Folders of a visit in which BIDS keeps other data than anatomy.
OTHER_DATATYPES = (
    "beh", "dwi", "eeg", "emg", "fmap", "func", "ieeg", "meg", "micr", "motion", "mrs", "nirs", "perf", "pet",
)  # fmt: skip
IMAGE_EXTENSIONS = (".nii.gz", ".nii")
LABEL = re.compile(r"[0-9a-zA-Z+]+")


class Reason(Enum):
    """Why something is not used; the value is what the plan says of it."""

    # participants and sessions
    PARTICIPANT_LABEL = "the label of a participant has letters and digits only"
    PARTICIPANT_CASE = "the folder of a participant starts with sub-, in lower case"
    PARTICIPANT_FORM = "the folder of a participant is called sub-<label>"
    PARTICIPANT_FILE = "a participant is a folder, and this is a file"
    SESSION_LABEL = "the label of a session has letters and digits only"
    SESSION_CASE = "the folder of a session starts with ses-, in lower case"
    SESSION_FORM = "the folder of a session is called ses-<label>"
    SESSION_ROW = "a table with sessions that have no folder:"  # goes on with their labels
    TABLE = f"the table of the participants is {PARTICIPANTS}, with tabs"
    # folders
    EMPTY = "the folder is empty, as a DataLad subdataset is that is not installed"
    DANGLING = "a link to what is not here; in a container, bind its target"
    UNREADABLE = "the folder cannot be read"
    ANAT_CASE = "the folder of the scans is called anat, in lower case"
    OTHER_FOLDER = "scans are looked for in the folder anat"
    BELOW_ANAT = "folders inside anat are not searched"
    MISPLACED = "a T1w or FLAIR belongs in the folder anat"
    LOOSE = "scans lie in the folder anat of a participant or session"
    FOLDER_FOR_FILE = "a folder that is called like a scan"
    # kinds of files
    DICOM = "DICOM: convert it with dcm2niix, or the dataset with HeuDiConv, BIDScoin or dcm2bids"
    PHILIPS = "Philips PAR/REC: convert it with dcm2niix"
    FREESURFER = "FreeSurfer's format: convert it with mri_convert"
    PAIR = "a header and an image in two files: make one .nii.gz of them, with fslchfiletype NIFTI_GZ"
    NRRD = "NRRD: convert it to .nii.gz, with 3D Slicer"
    META_IMAGE = "MetaImage: convert it to .nii.gz, with 3D Slicer"
    MINC = "MINC: convert it with mnc2nii"
    AFNI = "AFNI's format: convert it with 3dAFNItoNIFTI"
    MRTRIX = "MRtrix's format: convert it with mrconvert"
    ARCHIVE = "an archive: unpack it"
    COMPRESSION = "compressed in a way that is not read: unpack it, and use gzip"
    TWICE = "compressed twice: run gunzip once"
    UNFINISHED = "a copy or download that was not finished: do it again"
    SHORTCUT = "a shortcut of Windows, which is no link here: copy the file itself"
    BACKUP = "a backup that an editor or program has left"
    MACOS = "a companion file of macOS, no scan; it may be deleted"
    EXTENSION_CASE = "the extension is .nii.gz or .nii, in lower case"
    EXTENSION = "the extension is .nii.gz or .nii"
    NO_IMAGE = "a sidecar without its image"
    # names
    NO_SUFFIX = "its name does not end with the suffix T1w or FLAIR, but with a label"
    NO_BIDS_NAME = "its name does not start with that of its participant (and session)"
    KEY_CASE = "sub- and ses- are written in lower case"
    OTHER_PARTICIPANT = "it is named after another participant than its folder"
    SEPARATOR = "the parts of a name are joined by _"
    OTHER_SPELLING = "its participant is written otherwise than that of its folder"
    SESSION_MISSING = "the session of its folder is missing in its name"
    SESSION_ALONE = "its name has a session, and its folder has none"
    OTHER_SESSION = "it is named after another session than its folder"
    SESSION_SPELLING = "its session is written otherwise than that of its folder (1 for 01)"
    NAME_ORDER = "a name starts with sub- and goes on with ses-"
    ODD_CHARACTERS = "a name has letters, digits, -, + and _ only"
    SUFFIX_CASE = "the suffix is written T1w or FLAIR, in these letters"
    SUFFIX_WORD = "the suffix of a T1-weighted scan is T1w, that of a FLAIR is FLAIR"
    AFTER_SUFFIX = "something follows the suffix"
    # what is no such scan
    UNIT1 = "the UNI image of an MP2RAGE; to use it, give a copy without noise around the head the suffix T1w"
    MP2RAGE = "an inversion of an MP2RAGE, no T1w"
    QUANTITATIVE = "a quantitative map, no weighted scan"
    INPLANE = "a T1w of the slices of a functional scan, no whole head"
    FLAIR_AS_T2W = "if this is a FLAIR, its suffix is FLAIR"
    PART = "a phase, real or imaginary part shows no anatomy"
    CHUNK = "a part of a head (chunk-), which is not measured as a whole"
    PSEUDOHEALTHY = "synthetic: a healthy brain that this App has drawn"
    OWN = "written by this App, no scan"
    MASK = "masks are read from --derivatives NAME=FOLDER only; give this dataset there too"
    CONTRAST = "only T1w and FLAIR are used, not"  # goes on with the suffix
    FILTERED = "left out by the filter file"


@dataclass(frozen=True)
class Unused:
    """Something that is not used.

    Attributes
    ----------
    path : PurePosixPath
        Relative to the dataset.
    reason : Reason
    advice : str
        What to do about this one, as ``rename it to sub-01_T1w.nii.gz``; may be empty.
    like : str
        ``T1w`` or ``FLAIR`` if that is what it seems to be; may be empty.
    detail : str
        Ends the sentence of the reason, as ``T2w`` after ``only T1w and FLAIR are used, not``.
    """

    path: PurePosixPath
    reason: Reason
    advice: str = ""
    like: str = ""
    detail: str = ""

    @property
    def sentence(self) -> str:
        """The reason, as a clause."""
        return f"{self.reason.value} {self.detail}".strip()

    def __str__(self) -> str:
        return printable(f"{self.path.name} is not used ({'; '.join(filter(None, (self.sentence, self.advice)))})")


@dataclass(frozen=True)
class Place:
    """Where a file lies.

    Attributes
    ----------
    subject, session : str
        Labels of its folders; session is None in a folder of no session.
    folder : PurePosixPath
        Relative to the dataset.
    own_output : bool
        Whether this App wrote the dataset.
    """

    subject: str
    session: str | None
    folder: PurePosixPath
    own_output: bool = False

    @property
    def label(self) -> str:
        return visit_label(self.subject, self.session)

    @property
    def anat(self) -> PurePosixPath:
        """Where the scans of the visit belong."""
        return visit_folder(self.subject, self.session) / ANAT

    @property
    def datatype(self) -> str:
        """Name of the folder within that of the visit; empty for the folder of the visit itself."""
        return str(self.folder.relative_to(self.anat.parent)).removeprefix(".")


#: Extensions of images that are not read, in lower case. The longest that fits counts.
_EXTENSIONS = {
    **dict.fromkeys((".dcm", ".dicom", ".ima"), Reason.DICOM),
    **dict.fromkeys((".par", ".rec"), Reason.PHILIPS),
    **dict.fromkeys((".mgz", ".mgh", ".mgh.gz"), Reason.FREESURFER),
    **dict.fromkeys((".hdr", ".img", ".hdr.gz", ".img.gz"), Reason.PAIR),
    **dict.fromkeys((".nrrd", ".nhdr"), Reason.NRRD),
    **dict.fromkeys((".mha", ".mhd"), Reason.META_IMAGE),
    **dict.fromkeys((".mnc", ".mnc.gz"), Reason.MINC),
    **dict.fromkeys((".head", ".brik", ".brik.gz"), Reason.AFNI),
    **dict.fromkeys((".mif", ".mif.gz"), Reason.MRTRIX),
    **dict.fromkeys((".zip", ".tar", ".tar.gz", ".tgz", ".7z", ".rar"), Reason.ARCHIVE),
    **dict.fromkeys(
        (".nii.bz2", ".nii.xz", ".nii.zst", ".nii.z", ".nii.zip", ".nii.gz.zip", ".nii.7z", ".nii.gz.bz2"),
        Reason.COMPRESSION,
    ),
    ".nii.gz.gz": Reason.TWICE,
    **dict.fromkeys((".part", ".crdownload", ".filepart", ".partial", ".tmp"), Reason.UNFINISHED),
    ".lnk": Reason.SHORTCUT,
    **dict.fromkeys((".nii~", ".gz~", ".bak", ".orig", ".old"), Reason.BACKUP),
    **dict.fromkeys((".gz", ".nifti", ".nifti.gz", ".niigz", ".nii_gz", ".nii.nii.gz", ".nii.nii"), Reason.EXTENSION),
}
_ALL_EXTENSIONS = sorted((*_EXTENSIONS, *IMAGE_EXTENSIONS), key=len, reverse=True)

#: How people call a T1w and a FLAIR; in lower case, without what is neither letter nor digit.
_T1W = re.compile(r"(3d)?t1(w|wi|weighted|wa?image)?(3d|mprage|mpr|tfe|tfl|spgr|bravo|space|sag|ax|cor|post|pre)?\d?"
                  r"|(3d)?(mprage|mpr|mp-rage|fspgr|spgr|bravo)\d?")  # fmt: skip
_FLAIR = re.compile(r"(3d|2d)?(t2w?)?[ -]?(flair|darkfluid|dark-fluid|tirm)(w|3d|2d|sag|ax|cor|space|cube)?\d?")
_QUANTITATIVE = re.compile(
    r"(T1|T2|T2star|R1|R2|R2star|PD|MT|M0|B1|Chi|MWF|MTR|MTV|MTsat|S0|ADC|FA|T1rho)?(map|MTR|MTsat|MWF|MTV|T1rho)"
)
_MASK = re.compile(r"mask|roi|lesions?|stroke|infarct|segmentation|seg|label")
_SCAN = re.compile(r"(.*_)?(T1w|FLAIR)")
#: Suffixes of other data, before which a T1w or FLAIR in a name means nothing.
_OTHER_SUFFIX = re.compile(r"[A-Z0-9][A-Za-z0-9]*w|bold|cbv|sbref|dwi|epi|asl|m0scan|pet|angio|phase|magnitude|.*map")


def participant_folder(name: str) -> tuple[Reason, str] | None:
    """Why a folder of the dataset is no participant, and how it should be called; None if it does not look like one.

    >>> participant_folder("sub-B_C")[1], participant_folder("Sub-01")[1], participant_folder("code")
    ('sub-BC', 'sub-01', None)
    """
    return _labelled_folder(name, "sub", "subj|subject", "pat|patient|participant|case|p|s", _PARTICIPANT)


def session_folder(name: str) -> tuple[Reason, str] | None:
    """The same of a folder of a participant and a session.

    >>> session_folder("ses_2")[1], session_folder("Ses-2")[1], session_folder("func")
    ('ses-2', 'ses-2', None)
    """
    return _labelled_folder(name, "ses", "sess|session", "visit|timepoint|tp|v|t", _SESSION)


_DASHES = "\u2010-\u2015"  # what word processors make of a hyphen
_PARTICIPANT = (Reason.PARTICIPANT_LABEL, Reason.PARTICIPANT_CASE, Reason.PARTICIPANT_FORM)
_SESSION = (Reason.SESSION_LABEL, Reason.SESSION_CASE, Reason.SESSION_FORM)


def _labelled_folder(
    name: str, prefix: str, same: str, others: str, reasons: tuple[Reason, Reason, Reason]
) -> tuple[Reason, str] | None:
    """Reason and better name of a folder that should be called ``prefix-<label>``.

    Parameters
    ----------
    same, others : str
        Words, joined by ``|``, that people write for the prefix; `others` say more, and go into the label.
    """
    label, case, form = reasons
    between = rf"[-_ .{_DASHES}]"
    pattern = rf"(?:(?P<same>{prefix}|{same})|(?P<other>{others}))(?={between}|\d){between}*(?P<label>.*)"
    match = re.fullmatch(pattern, name, re.IGNORECASE)
    if not match and not name.isdecimal():
        return None
    better = f"{prefix}-{_clean(match['label'] if match and match['same'] else name)}"
    if better in (f"{prefix}-", name):
        return None
    if name.startswith(f"{prefix}-"):
        return label, better
    return (case if name.lower().startswith(f"{prefix}-") else form), better


def top_file(name: str) -> tuple[Reason, str] | None:
    """Why a file beside the participants is not used; None if it does not look like something of theirs.

    >>> top_file("participants.csv")[0].name, top_file("README")
    ('TABLE', None)
    """
    lower = name.lower()
    table = re.fullmatch(r"participants?([._-].*)?\.(tsv|csv|xlsx?|ods|txt|tsv\.txt)", lower)
    if table and name != PARTICIPANTS and not lower.startswith("participants_"):
        return Reason.TABLE, f"save it as {PARTICIPANTS}"
    extension = _extension(lower)
    if lower.startswith("sub-") and extension not in IMAGE_EXTENSIONS and _EXTENSIONS.get(extension) is Reason.ARCHIVE:
        return Reason.ARCHIVE, ""
    if is_image(name):
        return Reason.LOOSE, ""
    return None


def is_image(name: str) -> bool:
    """Whether a file is an image of whatever kind, by its extension."""
    extension = _extension(name.lower())
    if extension in IMAGE_EXTENSIONS:
        return not name.startswith(".")
    reason = _EXTENSIONS.get(extension)
    return reason not in (None, Reason.ARCHIVE, Reason.UNFINISHED, Reason.BACKUP, Reason.SHORTCUT) and (
        extension != ".gz" or bool(_like(name.removesuffix(extension)))
    )


def format_of(name: str) -> Reason | None:
    """What an image of another format than NIfTI is; None if its extension does not say."""
    return _EXTENSIONS.get(_extension(name.lower()) or "")


def is_scan(name: str, label: str) -> bool:
    """Whether a file in anat is a T1w or FLAIR that may be chosen, if `why_unused` has nothing against it."""
    stem = name.removesuffix(".gz").removesuffix(".nii")
    return stem != name and stem.startswith(f"{label}_") and bool(_SCAN.fullmatch(stem.removeprefix(f"{label}_")))


def why_unused(name: str, place: Place) -> Unused | None:
    """Why a file is not used; None if it is a scan, or looks like nothing that could be.

    >>> anat = Place("01", "1", PurePosixPath("sub-01/ses-1/anat"))
    >>> print(why_unused("sub-01_T1w.nii.gz", anat).advice)
    rename it to sub-01_ses-1_T1w.nii.gz
    """
    lower = name.lower()
    extension = _extension(lower)
    if extension is None:
        return _without_extension(name, place)
    if name.startswith("."):
        return _unused(name, place, Reason.MACOS) if name.startswith("._") else None
    stem = name[: -len(extension)]
    like = _like(stem)
    if place.datatype in OTHER_DATATYPES and not re.search(r"_(t1w|flair)$", stem, re.IGNORECASE):
        return None
    if extension not in IMAGE_EXTENSIONS:
        reason = _EXTENSIONS[extension]
        small = reason in (Reason.UNFINISHED, Reason.BACKUP, Reason.SHORTCUT, Reason.ARCHIVE) or extension == ".gz"
        if small and not like:
            return None
        return _unused(name, place, reason, _rename(stem, like, place) if reason is Reason.EXTENSION else "", like)
    if place.datatype in OTHER_DATATYPES:
        return _unused(name, place, Reason.MISPLACED, f"move it to {place.anat / better_name(stem, like, place)}", like)
    if not place.datatype:
        if found := _other_kind(name, stem, place):
            return found
        better = better_name(stem, like, place) if like else name
        return _unused(name, place, Reason.LOOSE, f"move it to {place.anat / better}", like)
    if not name.endswith(extension):
        return _unused(name, place, Reason.EXTENSION_CASE, _rename(stem, like, place, extension), like)
    return _image(name, stem, extension, like, place)


def _image(name: str, stem: str, extension: str, like: str, place: Place) -> Unused | None:
    """The same of a NIfTI file in anat."""
    if found := _other_kind(name, stem, place):
        return found
    reason = _prefix(stem, place) or _odd(stem) or _suffix(stem, like)
    if reason is Reason.SESSION_ALONE:
        named = replace(place, session=_clean(_entities(stem)["ses"]))
        better = better_name(stem, like, named, extension) if like else name
        return _unused(name, place, reason, f"move it to {named.anat / better}", like)
    if reason in (Reason.OTHER_PARTICIPANT, Reason.OTHER_SESSION):  # whose it is, only a human can say
        return _unused(name, place, reason, "move it there, or rename it if the name is wrong", like)
    if reason:
        return _unused(name, place, reason, _rename(stem, like, place, extension), like)
    return _no_whole_scan(name, stem, like, place)


def _other_kind(name: str, stem: str, place: Place) -> Unused | None:
    """Images that are neither T1w nor FLAIR, by their suffix."""
    suffix = re.split("[_ ]", stem)[-1]
    entities = _entities(stem)
    if suffix == "UNIT1":
        return _unused(name, place, Reason.UNIT1, like="T1w")
    if suffix.upper() == "MP2RAGE":
        return _unused(name, place, Reason.MP2RAGE, like="T1w")
    if suffix in ("inplaneT1", "inplaneT2"):
        return _unused(name, place, Reason.INPLANE, like="T1w" if suffix == "inplaneT1" else "")
    if _QUANTITATIVE.fullmatch(suffix):
        return _unused(name, place, Reason.QUANTITATIVE, like="T1w" if suffix.startswith("T1") else "")
    if suffix in ("T1w", "FLAIR"):
        return None
    words = [word.lower() for word in re.split(r"[_\- ]", stem.removeprefix(f"{place.label}_"))]
    if entities.get("label") in ("L", "lesion") or any(map(_MASK.fullmatch, words)) or "lesion" in stem.lower():
        return _unused(name, place, Reason.MASK)
    if suffix in ("dseg", "probseg", "defacemask", "xfm"):
        return _unused(name, place, Reason.CONTRAST, detail=suffix)
    if suffix == "T2w" and _FLAIR.search(stem.lower().removesuffix("t2w")):
        better = better_name(stem.removesuffix("T2w") + "FLAIR", "FLAIR", place)
        return _unused(name, place, Reason.FLAIR_AS_T2W, f"rename it to {better}", "FLAIR")
    return None


def _prefix(stem: str, place: Place) -> Reason | None:
    """What is wrong with the participant and the session at the beginning of a name."""
    pairs = _pairs(stem)
    entities = _entities(stem)
    if stem.startswith(f"{place.label}_") and entities.get("ses") == place.session:
        return None
    subject, session = entities.get("sub"), entities.get("ses")
    if re.match(rf"{place.label}[-. ]", stem):
        return Reason.SEPARATOR
    if subject is None:
        return Reason.NO_BIDS_NAME
    if subject != place.subject:
        return Reason.OTHER_SPELLING if _alike(subject, place.subject) else Reason.OTHER_PARTICIPANT
    if session != place.session:
        if session is None:
            return Reason.SESSION_MISSING
        if place.session is None:
            return Reason.SESSION_ALONE
        return Reason.SESSION_SPELLING if _alike(session, place.session) else Reason.OTHER_SESSION
    if any(key != key.lower() for key, _ in pairs if key.lower() in ("sub", "ses")):
        return Reason.KEY_CASE
    return Reason.NAME_ORDER


def _alike(label: str, other: str) -> bool:
    """Whether two labels are the same but for zeros in front, case, and what no label may hold."""
    return _clean(label).lower().lstrip("0") == _clean(other).lower().lstrip("0")


def _odd(stem: str) -> Reason | None:
    return None if re.fullmatch(r"[0-9A-Za-z_+-]+", stem) else Reason.ODD_CHARACTERS


def _suffix(stem: str, like: str) -> Reason | None:
    """What is wrong with the end of a name that says T1w or FLAIR somewhere."""
    suffix = stem.rpartition("_")[2]
    if "-" in suffix:
        return Reason.NO_SUFFIX
    if suffix in ("T1w", "FLAIR") or not like:
        return None
    if suffix.lower() in ("t1w", "flair"):
        return Reason.SUFFIX_CASE
    return Reason.SUFFIX_WORD if _kind(suffix) else Reason.AFTER_SUFFIX


def _no_whole_scan(name: str, stem: str, like: str, place: Place) -> Unused | None:
    """A T1w or FLAIR in name that shows no whole head, or no head at all; another contrast; None for a scan."""
    suffix = stem.rpartition("_")[2]
    if suffix not in ("T1w", "FLAIR"):
        return _unused(name, place, Reason.CONTRAST, detail=suffix)
    entities = _entities(stem)
    if entities.get("desc") == TWIN_DESC:
        return _unused(name, place, Reason.PSEUDOHEALTHY, like=like)
    if place.own_output and ("desc" in entities or "space" in entities):
        return _unused(name, place, Reason.OWN, like=like)
    if entities.get("part") in ("phase", "real", "imag"):
        return _unused(name, place, Reason.PART, like=like)
    if "chunk" in entities:
        return _unused(name, place, Reason.CHUNK, like=like)
    return None


def _without_extension(name: str, place: Place) -> Unused | None:
    """A T1w or FLAIR whose extension was lost."""
    if not re.search(r"_(t1w|flair)$", name, re.IGNORECASE):
        return None
    return _unused(name, place, Reason.EXTENSION, like=_like(name))


def better_name(stem: str, like: str, place: Place, extension: str = ".nii.gz") -> str:
    """The BIDS name that a scan should have, whatever is wrong with the one it has.

    >>> better_name("SUB-1_t1w_Acq-a b", "T1w", Place("01", "2", PurePosixPath("sub-01/ses-2/anat")))
    'sub-01_ses-2_acq-ab_T1w.nii.gz'
    """
    entities = {key: _clean(label) for key, label in _entities(stem).items()}
    kept = {key: label for key, label in entities.items() if key in ENTITY_ORDER and label}
    kept |= {"sub": place.subject} | ({"ses": place.session} if place.session else {})
    if not place.session:
        kept.pop("ses", None)
    ordered = "_".join(f"{key}-{kept[key]}" for key in ENTITY_ORDER if key in kept)
    return f"{ordered}_{like}{extension}"


def _rename(stem: str, like: str, place: Place, extension: str = ".nii.gz") -> str:
    """Advice to rename a file; none where it is not known what it is."""
    return f"rename it to {better_name(stem, like, place, extension)}" if like else ""


def _pairs(stem: str) -> list[tuple[str, str]]:
    """Entities of a name, whatever their case and the characters of their labels."""
    return re.findall(r"(?:^|_)([A-Za-z]+)[-=]([^_]+)", stem)


def _entities(stem: str) -> dict[str, str]:
    """The same with keys in lower case."""
    return {key.lower(): label for key, label in _pairs(stem)}


def _like(stem: str) -> str:
    """``T1w`` or ``FLAIR`` if a name says so in whatever way, its last words first; else empty."""
    words = [word for word in re.split(r"[_ .()]+", stem) if word]
    for word in reversed(words):
        if "-" not in word and (kind := _kind(word)):
            return kind
        if _OTHER_SUFFIX.fullmatch(word):
            return ""
    # a name without suffix may say it in a label, as acq-mprage
    labels = re.split("[-_=]", stem) if words and "-" in words[-1] else ()
    return next((kind for label in reversed(labels) if (kind := _kind(label))), "")


def _kind(word: str) -> str:
    lower = word.lower()
    if _FLAIR.fullmatch(lower):
        return "FLAIR"
    return "T1w" if _T1W.fullmatch(lower) else ""


def _clean(label: str) -> str:
    return re.sub(r"[^0-9A-Za-z+]", "", label)


def _extension(lower: str) -> str | None:
    """The extension of an image in a name in lower case."""
    return next((extension for extension in _ALL_EXTENSIONS if lower.endswith(extension)), None)


def _unused(name: str, place: Place, reason: Reason, advice: str = "", like: str = "", detail: str = "") -> Unused:
    return Unused(place.folder / name, reason, advice, like, detail)
