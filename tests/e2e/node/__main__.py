"""Parses flags, checks what the node needs, runs it until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from services.common.errors import TrimtabError
from tests.e2e.node.api import Api, ApiError
from tests.e2e.node.kubelet import Addresses, Kubelet
from tests.e2e.node.process import namespaces_refused
from tests.e2e.node.registration import LOG_PORT, NodeSpec, machine_capacity


def taint(text: str) -> dict[str, str]:
    """key=value:Effect or key:Effect."""
    left, colon, effect = text.rpartition(":")
    key, _, value = left.partition("=")
    if not colon or not key or effect not in ("NoSchedule", "PreferNoSchedule", "NoExecute"):
        raise argparse.ArgumentTypeError(f"{text}: expected key=value:NoSchedule")
    return {"key": key, "effect": effect} | ({"value": value} if value else {})


def pair(text: str) -> tuple[str, str]:
    """key=value."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f"{text}: expected key=value")
    return key, value


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = argparse.ArgumentParser(prog="tests.e2e.node", description=__doc__)
    made.add_argument("--kubeconfig", type=Path, required=True)
    made.add_argument("--name", required=True)
    made.add_argument(
        "--network", default="127.16.0.0/24", help="addresses of the node and its pods, on loopback"
    )
    made.add_argument("--label", type=pair, action="append", default=[])
    made.add_argument("--taint", type=taint, action="append", default=[])
    made.add_argument("--gpus", type=int, default=0, help="capacity nvidia.com/gpu")
    made.add_argument(
        "--capacity", type=pair, action="append", default=[], help="more, or instead of this machine's"
    )
    made.add_argument(
        "--folder", type=Path, help="volumes and logs; left out: a temporary one, removed at the end"
    )
    made.add_argument("--dns-port", type=int, default=53)
    made.add_argument("--log-port", type=int, default=LOG_PORT)
    return made


async def run(flags: argparse.Namespace, folder: Path) -> None:
    """The node, until it is told to end."""
    ending = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)
    addresses = Addresses(flags.network)
    spec = NodeSpec(
        name=flags.name,
        address=addresses.node,
        labels=dict(flags.label),
        taints=flags.taint,
        capacity=machine_capacity(flags.gpus, dict(flags.capacity)),
    )
    api = Api(flags.kubeconfig)
    try:
        await Kubelet(api, spec, addresses, folder, dns_port=flags.dns_port, log_port=flags.log_port).run(
            ending
        )
    finally:
        await api.close()


def main() -> int:
    """0 after a signal, 1 where it cannot work, 2 for a user's mistake."""
    flags = parser().parse_args()
    if (why := namespaces_refused()) is not None:
        print(f"tests.e2e.node: pods need mount and process namespaces of their own: {why}", file=sys.stderr)
        return 1
    os.umask(0o022)
    folder = flags.folder or Path(tempfile.mkdtemp(prefix="node-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        asyncio.run(run(flags, folder.resolve()))
    except (ApiError, TrimtabError, OSError) as error:
        print(f"tests.e2e.node: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, TrimtabError) else 1
    finally:
        if flags.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
