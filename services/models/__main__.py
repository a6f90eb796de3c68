"""`python -m services.models MODEL`: makes a model ready (a GGUF file is converted once) and prints its folder.

`python -m services.models --layers MODEL`: how many layers a learner finds in it, from its configuration alone.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point."""
    from services.common.errors import TrimtabError, UserError
    from services.models.loading import resolve

    options, names = sys.argv[1:-1], sys.argv[-1:]
    if len(sys.argv) < 2 or options not in ([], ["--layers"]):
        print("usage: python -m services.models [--layers] MODEL", file=sys.stderr)
        raise SystemExit(2)
    try:
        if options:
            from services.models.loading import trainable_layers

            print(trainable_layers(*names))
        else:
            print(resolve(*names))
    except TrimtabError as error:
        print(str(error), file=sys.stderr)
        raise SystemExit(2 if isinstance(error, UserError) else 1) from None


if __name__ == "__main__":
    main()
