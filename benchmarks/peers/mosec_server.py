"""mosec as its documentation advises: tokenising in a stage of its own, dynamic batching in the model's stage.

    python -m benchmarks.peers.mosec_server --address 127.0.0.1 --port 8000 --timeout 600000

`POST /inference {"text": …}` answers `{"score": …}`. Wait: its example's and its own default, 10 ms.
"""

from __future__ import annotations

from typing import Any

from mosec import Server, Worker  # type: ignore[import-not-found]  # in .venv-peers/mosec alone

from benchmarks.peers.scalar_model import ScalarModel, Settings, TextEncoder


class Encode(Worker):  # type: ignore[misc]
    """JSON to token ids."""

    def __init__(self) -> None:
        super().__init__()
        self._encoder = TextEncoder(Settings.from_environment())

    def forward(self, data: dict[str, str]) -> list[int]:
        """One request."""
        return self._encoder.encode(data["text"])


class Score(Worker):  # type: ignore[misc]
    """Token ids to scores."""

    def __init__(self) -> None:
        super().__init__()
        self._settings = Settings.from_environment()
        self._model = ScalarModel(self._settings)

    def forward(self, data: Any) -> Any:
        """A list of rows where batching is on, else one row."""
        rows = data if self._settings.batch_rows > 1 else [data]
        scores = [{"score": score} for score in self._model.scores(rows)]
        return scores if self._settings.batch_rows > 1 else scores[0]


def main() -> None:
    """Serve until SIGTERM."""
    settings = Settings.from_environment()
    server = Server()
    server.append_worker(Encode)
    server.append_worker(Score, max_batch_size=settings.batch_rows, max_wait_time=settings.wait_milliseconds)
    server.run()


if __name__ == "__main__":
    main()
