#!/usr/bin/env python3
"""afterstroke as a BIDS App: ``run.py bids_dir output_dir {participant,group}``."""

import sys

from bids_app.cli import main

if __name__ == "__main__":
    sys.exit(main())
