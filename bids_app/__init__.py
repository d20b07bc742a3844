"""afterstroke: a BIDS App for MRI after a stroke. Research use only, not a medical device."""

from __future__ import annotations

from pathlib import Path


def app_version() -> str:
    """Version of the App: the file ``version`` of a source tree, else that of the installed package."""
    source = Path(__file__).parent.parent / "version"
    if source.is_file():
        return source.read_text().strip()
    from importlib.metadata import version

    return version("afterstroke")
