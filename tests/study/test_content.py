"""Files that DataLad has not downloaded, in all their forms."""

from __future__ import annotations

import pytest

from bids_app.study.content import has_content
from tests.skeletons import make_dangling, write_scan


@pytest.mark.parametrize(
    "text",
    [
        "/annex/objects/MD5E-s100--0.nii.gz\n",  # an unlocked file
        "../../.git/annex/objects/xx/yy/MD5E-s100--0.nii.gz/MD5E-s100--0.nii.gz",  # a link, where there are none
        ".git/annex/objects/xx/yy/MD5E-s100--0.nii.gz/MD5E-s100--0.nii.gz",
    ],
)
def test_pointer_has_no_content(tmp_path, text):
    path = tmp_path / "scan.nii.gz"
    path.write_text(text)
    assert not has_content(path)


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b", b"no scan in annex/objects/", b"annex of a house"])
def test_other_files_have_content(tmp_path, content):
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(content)
    assert has_content(path)


def test_links_and_files(tmp_path):
    assert not has_content(make_dangling(tmp_path / "a.nii.gz"))
    assert not has_content(tmp_path / "absent.nii.gz")
    scan = write_scan(tmp_path / "b.nii.gz")
    (tmp_path / "c.nii.gz").symlink_to(scan)
    assert has_content(scan)
    assert has_content(tmp_path / "c.nii.gz")
