"""Measures of masks: volumes, sides, overlap with a reference."""
