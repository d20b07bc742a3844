#!/usr/bin/env python3
"""Entry point of the BIDS App: ``run.py BIDS_DIR OUT_DIR {participant,group} [options]``."""

import sys

from bids_app.cli import main

if __name__ == "__main__":
    sys.exit(main())
