"""A small real program with a real gRPC health server, told by its flags how to behave.

python -m tests.fakes.service --endpoints FILE [--port N] [--journal FILE] [--fail TEXT] …
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc


def note(journal: Path | None, word: str) -> None:
    """Append one line to the journal that the test reads."""
    if journal is not None:
        with journal.open("a", encoding="utf-8") as file:
            file.write(f"{word} {os.getpid()}\n")


def check_port(port: int) -> None:
    """Exit like a Trimtab service does when its port is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen(1)
        except OSError:
            print(f"fake: port {port} is in use", file=sys.stderr)
            sys.exit(2)


async def serve(options: argparse.Namespace) -> int:
    """Serve health until SIGTERM."""
    check_port(options.port)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    if options.deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        loop.add_signal_handler(signal.SIGTERM, stop.set)
    servicer = health.aio.HealthServicer()
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port(f"127.0.0.1:{options.port}")
    await server.start()
    await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    if options.endpoints:
        aside = options.endpoints.with_suffix(".part")
        aside.write_text(json.dumps({"grpc": f"127.0.0.1:{port}", "health": f"127.0.0.1:{port}"}))
        aside.replace(options.endpoints)
    note(options.journal, f"serving {options.name}")
    if options.end_after >= 0:
        await asyncio.sleep(options.end_after)
        return int(options.end_with)
    await stop.wait()
    note(options.journal, f"draining {options.name}")
    await server.stop(None)
    note(options.journal, f"ended {options.name}")
    return 0


def main() -> int:
    """Parse, perhaps fail, serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", default="fake")
    parser.add_argument("--endpoints", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--journal", type=Path)
    parser.add_argument("--fail", default="", help="print this and exit at once")
    parser.add_argument("--fail-with", type=int, default=1)
    parser.add_argument("--fail-times", type=int, default=10**9, help="fail only the first N times")
    parser.add_argument("--deaf", action="store_true", help="ignore SIGTERM")
    parser.add_argument("--end-after", type=float, default=-1.0)
    parser.add_argument("--end-with", type=int, default=0)
    parser.add_argument("--grandchild", action="store_true", help="start a program of its own")
    options = parser.parse_args()
    note(options.journal, f"started {options.name}")
    starts = options.journal.read_text().count("started") if options.journal else 1
    if options.fail and starts <= options.fail_times:
        print("something before", file=sys.stderr)
        print(options.fail, file=sys.stderr)
        return int(options.fail_with)
    if options.grandchild:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        with options.journal.open("a", encoding="utf-8") as file:
            file.write(f"grandchild of {options.name} {child.pid}\n")
    return asyncio.run(serve(options))


if __name__ == "__main__":
    sys.exit(main())
