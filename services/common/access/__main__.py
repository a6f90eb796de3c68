"""`python -m services.common.access`: the command line of keys files."""

from __future__ import annotations

import sys

from services.common.access.commands import run

if __name__ == "__main__":
    sys.exit(run())
