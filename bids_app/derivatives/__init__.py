"""What the App writes: file names, sidecars, dataset description, atomic writing, the record of a visit."""
