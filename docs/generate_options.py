"""Writes docs/parts/usage-options.md from the command line's own parser: python docs/generate_options.py"""

from __future__ import annotations

from pathlib import Path

from bids_app.cli_parser import bids_parser, options_markdown

PAGE = Path(__file__).parent / "parts" / "usage-options.md"


def page() -> str:
    """The tables of all options."""
    return "<!-- written by docs/generate_options.py -->\n\n" + options_markdown(bids_parser())


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
