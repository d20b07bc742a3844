"""Names of derivatives keep what the name of their scan says."""

from __future__ import annotations

import pytest

from bids_app.derivatives.names import SCAN_ENTITIES, ScanName, lesion_mask, preprocessed


@pytest.mark.parametrize("entity", [key for key in SCAN_ENTITIES if key not in ("sub", "ses")])
def test_every_entity_of_a_scan_stays(entity):
    scan = ScanName.parse(f"sub-01_ses-1_{entity}-1_T1w.nii.gz")
    assert preprocessed(scan, "T1w").name == f"sub-01_ses-1_{entity}-1_desc-preproc_T1w.nii.gz"
    assert lesion_mask(scan).name == f"sub-01_ses-1_{entity}-1_space-T1w_label-L_desc-nnunet_mask.nii.gz"


def test_entities_come_in_the_order_of_bids():
    scan = ScanName.parse("sub-01_run-1_inv-2_task-rest_acq-x_T1w.nii.gz")
    assert preprocessed(scan, "T1w").name == "sub-01_task-rest_acq-x_run-1_inv-2_desc-preproc_T1w.nii.gz"


def test_what_was_made_of_a_scan_is_named_anew():
    scan = ScanName.parse("sub-01_space-MNI152NLin6Asym_res-2_desc-brain_T1w.nii.gz")
    assert preprocessed(scan, "T1w").name == "sub-01_desc-preproc_T1w.nii.gz"
