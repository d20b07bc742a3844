"""Training; never imported by a participant or group run.

The embedded lesion networks, on synthetic scans: ``anatomy`` and ``store`` read head label maps and lesion masks,
``synthesis`` makes scans of them, ``series`` an endless series, ``trainer`` and ``run`` train nnU-Net's networks on it
(``warm_start``: from others on), ``embed`` turns checkpoints into small model folders, ``join`` fits a late ``fusion``
to finished branches, ``evaluate`` fills in the cards. ``own`` trains on a user's masks, ``reflect`` anomaly models.
"""
