"""Whether each http:// or tcp:// URL of the arguments answers, within a minute each. Standard library alone."""

import contextlib
import socket
import sys
import time
import urllib.request
from urllib.parse import urlsplit


def ask(url: str) -> None:
    """OSError where nothing answers at the URL, or something else than 200."""
    if url.startswith("http://"):
        urllib.request.urlopen(url, timeout=5).close()  # noqa: S310 the chart's own addresses
        return
    place = urlsplit(url)
    socket.create_connection((place.hostname or "", place.port or 0), timeout=5).close()


def main(urls: list[str], patience_seconds: float = 60) -> int:
    """0 once all have answered; 1, saying which one, if one does not."""
    for url in urls:
        end = time.monotonic() + patience_seconds
        while True:
            with contextlib.suppress(OSError):
                ask(url)
                print(f"{url} answers")
                break
            if time.monotonic() > end:
                print(f"{url} does not answer")
                return 1
            time.sleep(1)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
