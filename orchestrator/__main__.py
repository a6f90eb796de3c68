"""`trimtab` and `python -m orchestrator`: parses, runs, and turns an error of ours into one line."""

from __future__ import annotations

import os
import sys

from services.common.errors import TrimtabError, UserError

_USER_ERROR, _OUR_ERROR = 2, 1


def main() -> None:
    """Run the command line; exits with 0, 2 for a mistake of the user, 1 for one of ours, 130 for Ctrl-C."""
    # gRPC's own notes about connections that services close as they end would stand between our lines.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from orchestrator.cli import app

    try:
        app(prog_name="trimtab")
    except TrimtabError as error:
        _leave(str(error), _USER_ERROR if isinstance(error, UserError) else _OUR_ERROR)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _leave(f"{where}{(error.strerror or str(error)).lower()}", _OUR_ERROR)


def _leave(message: str, code: int) -> None:
    print(f"trimtab: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
