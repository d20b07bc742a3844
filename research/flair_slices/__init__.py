"""A 2-D lesion network for FLAIR in three planes, trained on real slices of acute strokes."""
