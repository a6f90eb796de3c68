"""LitServe as its documentation advises: a LitAPI with max_batch_size and batch_timeout, one worker.

    python -m benchmarks.peers.litserve_server 8000

`POST /predict {"text": …}` answers `{"score": …}`.
"""

from __future__ import annotations

import sys
from typing import Any

import litserve  # type: ignore[import-not-found]  # in .venv-peers/litserve alone

from benchmarks.peers.scalar_model import ScalarModel, Settings, TextEncoder


class ScoreApi(litserve.LitAPI):  # type: ignore[misc]
    """One text a request; with batching on, `predict` gets a list of them."""

    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe hands it over
        """Load, in the worker process."""
        settings = Settings.from_environment()
        self._encoder = TextEncoder(settings)
        self._model = ScalarModel(settings)
        self._batched = settings.batch_rows > 1

    def decode_request(self, request: dict[str, str]) -> list[int]:
        """JSON to token ids."""
        return self._encoder.encode(request["text"])

    def batch(self, inputs: Any) -> Any:
        """Rows of different lengths stay a list; padding is the model's business."""
        return list(inputs)

    def predict(self, x: Any) -> Any:
        """Rows to scores, or one row to one score."""
        return self._model.scores(x) if self._batched else self._model.scores([x])[0]

    def unbatch(self, output: Any) -> Any:
        """One score for each request."""
        return output

    def encode_response(self, output: float) -> dict[str, float]:
        """A score to JSON."""
        return {"score": output}


def main() -> None:
    """Serve on the port of the command line until SIGTERM."""
    settings = Settings.from_environment()
    # LitServe takes a wait for a mistake where nothing is batched.
    wait = settings.wait_milliseconds / 1000 if settings.batch_rows > 1 else 0.0
    api = ScoreApi(max_batch_size=settings.batch_rows, batch_timeout=wait)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=600)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
