"""Synthetic T1w and FLAIR with and without stroke lesions, from head label maps and lesion masks.

Everything works on the network's own grid (2 mm, ``(z, y, x)``), in float32, on any torch device, and draws every
random number from one explicit ``torch.Generator``. Lesions are real masks carried from one brain to another.

The result equals what nnU-Net's preprocessing makes of brain-extracted scans in the pose: z-scored inside the brain,
zero outside, bounding box in the middle of the patch.

The rooms: `recipe` (all ranges), `fields` (random fields, sampling), `geometry` (deformation), `tissue` (the healthy
brain), `distractors` (what is not a lesion), `lesions`, `scanner`, and `scan`, which goes through them in order.
"""
