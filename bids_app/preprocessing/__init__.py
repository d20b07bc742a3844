"""From a raw head to a clean brain, a FLAIR on its T1w and a T1w in standard space."""
