"""A vLLM server started beside the policy, and its end. Knows how vLLM is called, and nothing of its answers."""

from __future__ import annotations

import atexit
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import httpx

from services.common.errors import Unavailable
from services.common.launch import launched

_POLL_SECONDS = 0.2
_END_SECONDS = 20.0


class VllmServer:
    """`<command> <folder>` on a free port of loopback; it answers from `until_ready` on.

    It is of our process group: who kills that ends what the server started too. And it is told to end when we die;
    the kernel means the thread that starts it here, so let that be one which lives as long as the server shall.
    """

    def __init__(self, command: Sequence[str], folder: str, *, dtype: str, flags: Sequence[str] = ()) -> None:
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        # Its RL calls exist in this mode alone. They are on loopback, and so is it.
        environment = {**os.environ, "VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1"}
        # It binds its own threads to cores.
        environment.pop("OMP_NUM_THREADS", None)
        # `vllm serve` takes the model by place, its module (for builds under another name) by flag.
        model = [folder] if command[-1] == "serve" else ["--model", folder]
        arguments = [*command, *model, "--host", "127.0.0.1", "--port", str(port), "--dtype", dtype]
        self._log = tempfile.NamedTemporaryFile(prefix="trimtab-vllm-", suffix=".log", delete=False)  # noqa: SIM115
        self._process = subprocess.Popen(  # noqa: S603 - the owner's own command
            # SIGTERM: its engine's processes are its own to end.
            launched([*arguments, *flags], by=signal.SIGTERM),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        self.pid = self._process.pid
        atexit.register(self.end)

    def end(self) -> None:
        """SIGTERM, then SIGKILL. From any thread, and as often as one likes."""
        atexit.unregister(self.end)
        self._process.terminate()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
        Path(self._log.name).unlink(missing_ok=True)

    def until_ready(self, seconds: float = 600) -> None:
        """Return once it answers. Raises Unavailable where it ends, or does not in time."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            if self._process.poll() is not None:
                raise Unavailable(f"vLLM ended while it started: {self._last_words()}")
            with suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/health", timeout=5, trust_env=False).is_success:
                    return
            time.sleep(_POLL_SECONDS)
        raise Unavailable(f"vLLM is silent after {seconds:.0f} s")

    def _last_words(self) -> str:
        try:
            return " ".join(Path(self._log.name).read_text(errors="replace").split())[-300:]
        except FileNotFoundError:
            return "it was told to"


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])
