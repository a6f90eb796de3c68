"""`python -m services.models MODEL`: makes a model ready (a GGUF file is converted once) and prints its folder."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point."""
    from services.common.errors import TrimtabError, UserError
    from services.models.loading import resolve

    if len(sys.argv) != 2:
        print("usage: python -m services.models MODEL", file=sys.stderr)
        raise SystemExit(2)
    try:
        print(resolve(sys.argv[1]))
    except TrimtabError as error:
        print(str(error), file=sys.stderr)
        raise SystemExit(2 if isinstance(error, UserError) else 1) from None


if __name__ == "__main__":
    main()
