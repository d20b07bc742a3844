"""REFLECT: the healthy twin of a brain, and what departs from it."""
