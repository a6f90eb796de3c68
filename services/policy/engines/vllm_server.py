"""A vLLM server started beside the policy, and its end. Knows how vLLM is called, and nothing of its answers."""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx

from services.common.errors import Unavailable

_POLL_SECONDS = 0.2
_END_SECONDS = 20.0


class VllmServer:
    """`<command> <folder>` on a free port of loopback, answering once constructed."""

    def __init__(
        self,
        command: Sequence[str],
        folder: str,
        *,
        dtype: str,
        flags: Sequence[str] = (),
        start_seconds: float = 600,
    ) -> None:
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
            [*arguments, *flags], env=environment, stdout=self._log, stderr=self._log, start_new_session=True
        )
        atexit.register(self.end)
        self._until_ready(start_seconds)

    def end(self) -> None:
        """SIGTERM, then SIGKILL."""
        atexit.unregister(self.end)
        self._process.terminate()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
        Path(self._log.name).unlink(missing_ok=True)

    def _until_ready(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            if self._process.poll() is not None:
                words = " ".join(Path(self._log.name).read_text(errors="replace").split())[-300:]
                raise Unavailable(f"vLLM ended while it started: {words}")
            try:
                if httpx.get(f"{self.url}/health", timeout=5).is_success:
                    return
            except httpx.HTTPError:
                time.sleep(_POLL_SECONDS)
        self.end()
        raise Unavailable(f"vLLM is silent after {seconds:.0f} s")


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])
