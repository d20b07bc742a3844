"""``afterstroke train lesion``: lesion models trained on a user's own scans and masks, with nnU-Net.

``cases`` finds scans and masks, ``prepare`` brings them into the pose, ``folds`` deals subjects out, ``dataset`` and
``planning`` speak nnU-Net's formats, ``start`` takes weights from another model, ``train`` runs nnU-Net's trainer,
``out_of_fold`` and ``scores`` measure, ``model`` writes the folder that the App runs; ``run`` is the way through.
"""
