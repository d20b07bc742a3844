"""The rule that chooses among several scans: one test a part, in its order."""

from __future__ import annotations

from pathlib import Path

import pytest

from bids_app.derivatives.names import ScanName
from bids_app.study.choice import VoxelSize, choose, read_voxel_size
from bids_app.study.models import Scan, Severity
from tests.skeletons import write_scan


def scan(name: str) -> Scan:
    return Scan(Path(f"{name}.nii.gz"), ScanName.parse(name), name.rsplit("_", 1)[1])


def chosen(*names: str, partner: str | None = None, sizes: dict[str, VoxelSize] | None = None) -> tuple[str, str]:
    """Name of the chosen scan, and the message."""
    best, problems = choose(
        [scan(name) for name in names],
        partner=scan(partner) if partner else None,
        voxel_size=lambda path: (sizes or {}).get(path.name.removesuffix(".nii.gz"), VoxelSize(1.0, 1.0)),
    )
    assert [problem.severity for problem in problems] == [Severity.INFO]
    return best.path.name.removesuffix(".nii.gz"), problems[0].message


def test_nothing_and_one_need_no_choice():
    def fail(path):
        raise AssertionError("the header of a single scan is not read here")

    assert choose([], voxel_size=fail) == (None, ())
    only = scan("sub-1_T1w")
    assert choose([only], voxel_size=fail) == (only, ())


def test_contrast_agent_loses_even_with_finer_voxels():
    sizes = {"sub-1_ce-gad_T1w": VoxelSize(0.5, 0.1)}
    name, message = chosen("sub-1_ce-gad_T1w", "sub-1_T1w", sizes=sizes)
    assert name == "sub-1_T1w"
    assert "sub-1_ce-gad_T1w.nii.gz (contrast agent)" in message


def test_derived_copy_loses_but_serves_where_it_is_alone():
    assert chosen("sub-1_desc-defaced_T1w", "sub-1_T1w")[0] == "sub-1_T1w"
    assert choose([scan("sub-1_space-MNI152NLin2009aSym_T1w")])[0] is not None


def test_finest_voxels_win_over_the_last_run():
    sizes = {"sub-1_run-1_T1w": VoxelSize(0.8, 0.51)}
    name, message = chosen("sub-1_run-1_T1w", "sub-1_run-2_T1w", sizes=sizes)
    assert name == "sub-1_run-1_T1w"
    assert "1 mm voxels, not 0.8 mm voxels" in message


def test_thick_slices_lose_although_their_voxels_are_smaller():
    sizes = {"sub-1_acq-2d_T1w": VoxelSize(5.0, 0.8), "sub-1_acq-3d_T1w": VoxelSize(1.1, 1.33)}
    assert chosen("sub-1_acq-2d_T1w", "sub-1_acq-3d_T1w", sizes=sizes)[0] == "sub-1_acq-3d_T1w"


def test_unreadable_header_loses():
    assert chosen("sub-1_run-1_T1w", "sub-1_run-2_T1w", sizes={"sub-1_run-2_T1w": VoxelSize()})[0] == "sub-1_run-1_T1w"


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
    sizes = {"sub-1_run-2_FLAIR": VoxelSize(0.5, 0.1)}
    name, message = chosen("sub-1_run-1_FLAIR", "sub-1_run-2_FLAIR", partner="sub-1_run-1_T1w", sizes=sizes)
    assert name == "sub-1_run-1_FLAIR"
    assert "other acq or run than the T1w" in message


def test_parts_without_anatomy_are_never_chosen():
    assert choose([scan("sub-1_part-phase_T1w")])[0] is None
    magnitude = scan("sub-1_part-mag_T1w")
    assert choose([scan("sub-1_part-phase_T1w"), magnitude])[0] is magnitude


def test_voxel_size_comes_from_the_header(tmp_path):
    assert read_voxel_size(write_scan(tmp_path / "a.nii.gz", (0.5, 0.52, 5.04))) == VoxelSize(5.0, 1.31)


@pytest.mark.parametrize("content", [b"", b"no image at all" * 40])
def test_broken_file_has_no_voxel_size(tmp_path, content):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(content)
    assert read_voxel_size(path) == VoxelSize()
    assert read_voxel_size(tmp_path / "absent.nii") == VoxelSize()
