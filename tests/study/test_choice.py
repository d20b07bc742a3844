"""The rule that chooses among several scans: one test a part, in its order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_app.derivatives.names import ScanName
from bids_app.study.choice import HeaderFacts, choose, read_facts, same_content
from bids_app.study.models import Scan, Severity
from tests.skeletons import make_dangling


def scan(name: str) -> Scan:
    return Scan(Path(f"{name}.nii.gz"), ScanName.parse(name), name.rsplit("_", 1)[1])


def chosen(*names: str, partner: str | None = None, facts: dict[str, HeaderFacts] | None = None) -> tuple[str, str]:
    """Name of the chosen scan, and the message."""
    best, problems = choose(
        [scan(name) for name in names],
        partner=scan(partner) if partner else None,
        facts=lambda path: (facts or {}).get(path.name.removesuffix(".nii.gz"), HeaderFacts(1.0, 1.0)),
    )
    assert [problem.severity for problem in problems] == [Severity.INFO]
    return best.path.name.removesuffix(".nii.gz"), problems[0].message


def test_nothing_and_one_need_no_choice():
    def fail(path):
        raise AssertionError("the header of a single scan is not read here")

    assert choose([], facts=fail) == (None, ())
    only = scan("sub-1_T1w")
    assert choose([only], facts=fail) == (only, ())


def test_contrast_agent_loses_even_with_finer_voxels():
    facts = {"sub-1_ce-gad_T1w": HeaderFacts(0.5, 0.1)}
    name, message = chosen("sub-1_ce-gad_T1w", "sub-1_T1w", facts=facts)
    assert name == "sub-1_T1w"
    assert "sub-1_ce-gad_T1w.nii.gz (contrast agent)" in message


def test_derived_copy_loses_but_serves_where_it_is_alone():
    assert chosen("sub-1_desc-defaced_T1w", "sub-1_T1w")[0] == "sub-1_T1w"
    assert choose([scan("sub-1_space-MNI152NLin2009aSym_T1w")])[0] is not None


def test_finest_voxels_win_over_the_last_run():
    facts = {"sub-1_run-1_T1w": HeaderFacts(0.8, 0.51)}
    name, message = chosen("sub-1_run-1_T1w", "sub-1_run-2_T1w", facts=facts)
    assert name == "sub-1_run-1_T1w"
    assert "1 mm voxels, not 0.8 mm voxels" in message


def test_thick_slices_lose_although_their_voxels_are_smaller():
    facts = {"sub-1_acq-2d_T1w": HeaderFacts(5.0, 0.8), "sub-1_acq-3d_T1w": HeaderFacts(1.1, 1.33)}
    assert chosen("sub-1_acq-2d_T1w", "sub-1_acq-3d_T1w", facts=facts)[0] == "sub-1_acq-3d_T1w"


REFUSED = HeaderFacts(0.5, 0.1, refused="sub-1_run-2_T1w.nii.gz holds 4 volumes, not one.")
PART = HeaderFacts(0.5, 0.1, whole=False)


def test_what_the_header_refuses_loses_to_everything_else():
    facts = {"sub-1_run-2_T1w": REFUSED, "sub-1_ce-gad_desc-x_T1w": PART}
    name, message = chosen("sub-1_ce-gad_desc-x_T1w", "sub-1_run-2_T1w", facts=facts)
    assert name == "sub-1_ce-gad_desc-x_T1w"
    assert "not sub-1_run-2_T1w.nii.gz (cannot be used: holds 4 volumes, not one)." in message


def test_where_all_are_refused_the_rest_of_the_rule_holds_and_it_is_told():
    facts = {"sub-1_run-1_T1w": replace(REFUSED, longest_mm=0.4), "sub-1_run-2_T1w": REFUSED}
    name, message = chosen("sub-1_run-1_T1w", "sub-1_run-2_T1w", facts=facts)
    assert name == "sub-1_run-1_T1w"
    assert message.endswith("None of them can be used: sub-1_run-2_T1w.nii.gz holds 4 volumes, not one.")


def test_a_whole_brain_comes_before_fine_voxels():
    name, message = chosen("sub-1_acq-hires_T1w", "sub-1_T1w", facts={"sub-1_acq-hires_T1w": PART})
    assert name == "sub-1_T1w"
    assert "sub-1_acq-hires_T1w.nii.gz (part of the brain may be missing)" in message


def test_a_whole_flair_comes_before_one_of_the_same_run_as_the_t1w():
    facts = {"sub-1_run-1_FLAIR": PART}
    assert chosen("sub-1_run-1_FLAIR", "sub-1_FLAIR", partner="sub-1_run-1_T1w", facts=facts)[0] == "sub-1_FLAIR"


def test_contrast_agent_still_loses_to_a_part_of_a_brain():
    assert chosen("sub-1_ce-gad_T1w", "sub-1_T1w", facts={"sub-1_T1w": PART})[0] == "sub-1_T1w"


def test_last_run_wins_and_runs_are_numbers():
    name, message = chosen("sub-1_run-10_T1w", "sub-1_run-9_T1w", "sub-1_T1w")
    assert name == "sub-1_run-10_T1w"
    assert message.count("(earlier run)") == 2


def test_last_name_wins_where_all_else_is_equal():
    assert chosen("sub-1_acq-a_T1w", "sub-1_acq-b_T1w")[0] == "sub-1_acq-b_T1w"


@pytest.mark.parametrize("order", [1, -1])
def test_order_of_the_files_does_not_matter(order):
    names = ["sub-1_run-1_T1w", "sub-1_run-2_T1w", "sub-1_run-3_T1w"][::order]
    assert chosen(*names)[0] == "sub-1_run-3_T1w"


def test_flair_with_the_entities_of_the_t1w_wins():
    facts = {"sub-1_run-2_FLAIR": HeaderFacts(0.5, 0.1)}
    name, message = chosen("sub-1_run-1_FLAIR", "sub-1_run-2_FLAIR", partner="sub-1_run-1_T1w", facts=facts)
    assert name == "sub-1_run-1_FLAIR"
    assert "other acq or run than the T1w" in message


def test_parts_without_anatomy_are_never_chosen():
    assert choose([scan("sub-1_part-phase_T1w")])[0] is None
    magnitude = scan("sub-1_part-mag_T1w")
    assert choose([scan("sub-1_part-phase_T1w"), magnitude])[0] is magnitude


def write(path: Path, shape: tuple[int, ...], voxel_mm: tuple[float, float, float]) -> Path:
    image = nib.Nifti1Image(np.zeros(shape, np.uint8), np.diag([*voxel_mm, 1]))
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, path)
    return path


@pytest.mark.parametrize(("shape", "voxel_mm", "facts"), [
    ((300, 300, 30), (0.5, 0.52, 5.04), HeaderFacts(5.0, 1.31)),
    ((200, 200, 140), (1, 1, 0.8), HeaderFacts(1.0, 0.8, whole=False)),
    ((300, 300, 40), (0.4, 0.4, 0.8), HeaderFacts(0.8, 0.13, whole=False, refused="no brain fits in")),
    ((160, 160, 160, 4), (1, 1, 1), HeaderFacts(refused="holds 4 volumes")),
    ((160, 160, 160, 1), (1, 1, 1), HeaderFacts(1.0, 1.0)),
])  # fmt: skip
@pytest.mark.parametrize("extension", [".nii", ".nii.gz"])
def test_the_header_is_judged_as_it_will_be(tmp_path, shape, voxel_mm, facts, extension):
    found = read_facts(write(tmp_path / f"a{extension}", shape, voxel_mm))
    assert replace(found, refused="") == replace(facts, refused="")
    assert facts.refused in found.refused and bool(found.refused) == bool(facts.refused)


@pytest.mark.parametrize("voxel", [np.complex64, [("R", "u1"), ("G", "u1"), ("B", "u1")]])
def test_what_holds_no_grey_values_cannot_be_used(tmp_path, voxel):
    nib.save(nib.Nifti1Image(np.zeros((160, 160, 160), voxel), np.eye(4)), tmp_path / "a.nii.gz")
    assert "not grey values" in read_facts(tmp_path / "a.nii.gz").refused


def test_only_the_header_is_read(tmp_path):
    path = write(tmp_path / "a.nii.gz", (160, 160, 160), (1, 1, 1))
    path.write_bytes(path.read_bytes()[:2000])
    assert read_facts(path) == HeaderFacts(1.0, 1.0)


@pytest.mark.parametrize("content", [b"", b"no image at all" * 40, b"\x1f\x8bbroken"])
def test_a_broken_file_cannot_be_used(tmp_path, content):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(content)
    assert read_facts(path).refused.startswith("a.nii.gz cannot be read")


@pytest.mark.parametrize("make", [lambda path: None, make_dangling, lambda path: path.write_text("/annex/objects/x")])
def test_what_is_not_downloaded_cannot_be_used(tmp_path, make):
    path = tmp_path / "a.nii.gz"
    make(path)
    assert read_facts(path).refused == "Its content is not downloaded."


def saved(folder: Path, name: str, content: bytes) -> Scan:
    found = scan(name)
    (folder / found.path.name).write_bytes(content)
    return replace(found, path=folder / found.path.name)


def test_one_file_under_two_names_is_told(tmp_path):
    t1w, flair = (saved(tmp_path, f"sub-1_{suffix}", b"scan") for suffix in ("T1w", "FLAIR"))
    assert [(p.code, p.severity, p.files) for p in same_content(t1w, flair)] == [
        ("same-scan", Severity.WARNING, ("sub-1_T1w.nii.gz", "sub-1_FLAIR.nii.gz"))
    ]


def test_two_files_are_two_scans(tmp_path):
    t1w = saved(tmp_path, "sub-1_T1w", b"scan")
    assert same_content(t1w, saved(tmp_path, "sub-1_FLAIR", b"Scan")) == ()
    assert same_content(t1w, None) == same_content(None, t1w) == same_content(t1w, scan("sub-1_FLAIR")) == ()
