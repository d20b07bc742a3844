"""The demo: a small synthetic BIDS dataset with known lesions, and a score of what the App found in it."""
