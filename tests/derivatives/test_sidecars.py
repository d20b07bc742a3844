from __future__ import annotations

import json

import numpy as np

from bids_app.derivatives.sidecars import check_keys
from bids_app.preprocessing.checks import Check


def test_what_was_not_measured_is_null_since_json_knows_no_nan():
    keys = check_keys(Check("reused", np.nan, 0.5, "As it is."))
    assert json.loads(json.dumps(keys, allow_nan=False)) == {
        "Status": "reused",
        "BrainOverlap": None,
        "Similarity": 0.5,
    }
