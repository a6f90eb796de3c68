"""Fuzz every surface, or the named ones: python -m tests.fuzz --minutes 10 --seed 1 --surface config

Exit code 1 where anything was found; each finding says how to see it again.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from tests.fuzz import driver, report
from tests.fuzz.surfaces import NAMES, find


def main() -> int:
    """Parse, run one surface after the other, keep the account."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Bad input for every surface.")
    parser.add_argument("--minutes", type=float, default=10, help="of processor time, for each surface")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--surface", nargs="+", choices=NAMES, default=NAMES, metavar="NAME")
    parser.add_argument("--only", type=int, help="this input alone, with its trace")
    parser.add_argument("--write", action="store_true", help="add what came of it to tests/fuzz/report.json")
    options = parser.parse_args()
    found = 0
    for name in options.surface:
        account = _fuzz(name, options)
        found += len(account.findings)
        print(f"{name}: {report.line(account)}", file=sys.stderr, flush=True)
        if options.write:
            report.add(name, options.seed, account)
    return 1 if found else 0


def _fuzz(name: str, options: argparse.Namespace) -> driver.Account:
    with tempfile.TemporaryDirectory() as folder, find(name)(Path(folder)) as surface:
        if options.only is None:
            return driver.run(surface, options.seed, cpu_seconds=60 * options.minutes)
        account = driver.Account()
        driver.one(surface, options.seed, options.only, account)
        return account


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # servers' threads may be inside a model
