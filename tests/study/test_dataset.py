"""What a folder is that is no BIDS dataset, and descriptions in all forms."""

from __future__ import annotations

import json

import pytest

from bids_app.errors import DatasetError, NoInputError
from bids_app.study.dataset import open_dataset
from tests.skeletons import make_dangling, make_empty, make_skeleton


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_descriptions_of_all_editors(tmp_path, encoding):
    content = json.dumps({"Name": "Zürich", "BIDSVersion": "1.9.0"}, ensure_ascii=False)
    (tmp_path / "dataset_description.json").write_bytes(content.encode(encoding))
    dataset = open_dataset(tmp_path)
    assert (dataset.name, dataset.own_output) == ("Zürich", False)
    assert bool(dataset.notes) == (encoding == "cp1252")


@pytest.mark.parametrize("makers", [{"Name": "afterstroke"}, [{"Name": "x"}, {"Name": "afterstroke"}]])
def test_the_output_of_this_app_is_recognised(tmp_path, makers):
    (tmp_path / "dataset_description.json").write_text(json.dumps({"GeneratedBy": makers}))
    assert open_dataset(tmp_path).own_output


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ([], "The folder is empty. If it is a DataLad subdataset: datalad get"),
        (["Dataset_Description.json"], "Rename Dataset_Description.json"),
        (["dataset_description.json.txt"], "Rename dataset_description.json.txt"),
        (["rawdata/dataset_description.json"], r"There is one in .*rawdata: give that folder"),
        (["study7/dataset_description.json"], r"There is one in .*study7: give that folder"),
        (["sub-01/anat/sub-01_T1w.nii.gz"], "It has participants. Write dataset_description.json"),
        (["Mueller/T1/IM0001.dcm"], r"folder of DICOM, .*HeuDiConv, BIDScoin or dcm2bids.*dcm2niix"),
        (["a/b/1.IMA"], "dcm2niix"),
        (["DICOMDIR"], "dcm2niix"),
        (["notes.txt"], "Give the folder that holds"),
    ],
)
def test_what_a_folder_is_instead(tmp_path, files, told):
    root = tmp_path / "raw"
    root.mkdir()
    make_empty(root, *files)
    with pytest.raises(DatasetError, match=told):
        open_dataset(root)


def test_dicom_is_known_by_its_content(tmp_path):
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "1.3.12.2").write_bytes(bytes(128) + b"DICM" + bytes(100))
    with pytest.raises(DatasetError, match="DICOM"):
        open_dataset(tmp_path)


def test_a_description_that_is_not_downloaded(tmp_path):
    make_dangling(tmp_path / "dataset_description.json")
    with pytest.raises(DatasetError, match=r"not downloaded.*datalad get .*dataset_description\.json"):
        open_dataset(tmp_path)


def test_what_is_no_folder(tmp_path):
    scan = make_skeleton(tmp_path / "raw", ["sub-01_T1w"]) / "sub-01/anat/sub-01_T1w.nii.gz"
    with pytest.raises(NoInputError, match=r"is no folder.*afterstroke case"):
        open_dataset(scan)
    (tmp_path / "link").symlink_to(tmp_path / "unbound")
    with pytest.raises(NoInputError, match=r"link to .*unbound, which is not here"):
        open_dataset(tmp_path / "link")
    with pytest.raises(NoInputError, match="does not exist"):
        open_dataset(tmp_path / "absent")
