"""Training of the embedded lesion networks on synthetic scans; never imported by a run of the App.

``anatomy`` reads head label maps and lesion masks, ``synthesis`` makes scans of them, ``trainer`` and ``run`` train
nnU-Net's network on these, ``embed`` turns a checkpoint into a small model folder, ``evaluate`` fills in its card.
"""
