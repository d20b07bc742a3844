"""What needs no network does not pay for PyTorch."""

import subprocess
import sys

MODULES = (
    "bids_app.anomaly.folder",
    "bids_app.anomaly.usual",
    "bids_app.derivatives.sidecars",
    "bids_app.derivatives.visit",
    "bids_app.group.frequency",
    "bids_app.lesion.components",
    "bids_app.lesion.folder",
    "bids_app.measures.volumes",
    "bids_app.measures.overlap",
    "bids_app.networks.device",
    "bids_app.networks.registry",
    "bids_app.networks.weights",
    "bids_app.workflow.run",
)


def test_importing_the_light_modules_leaves_torch_alone():
    heavy = "[name for name in ('torch', 'nnunetv2', 'SimpleITK', 'nilearn', 'bids') if name in sys.modules]"
    code = f"import sys, {', '.join(MODULES)}; print({heavy})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
