"""The preference service as a process with pages, and a browser to look at them: for tests and for screenshots."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.preference.accounts import Person, Role, new_person
from services.preference.database import Database
from trimtab.clients.preference import PreferenceClient

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CHROMIUM = Path(os.environ.get("TRIMTAB_CHROMIUM", "/usr/bin/chromium"))


class Pages:
    """One process over a folder, at the same HTTP port whenever it is started again."""

    def __init__(self, folder: Path, toml: str = "", database_url: str = "") -> None:
        self._endpoints = folder / "endpoints.json"
        self._log = folder / "log"
        self._config = folder / "preference.toml"
        self._database_url = database_url or f"sqlite:///{folder / 'p.db'}"
        self._toml = f'database_url = "{self._database_url}"\nendpoints_file = "{self._endpoints}"\n'
        self._more = toml
        self._http_port = 0
        self.target = ""
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> PreferenceClient:
        """A client of the started service."""
        self._endpoints.unlink(missing_ok=True)
        # Fields of the whole come before the first table of a TOML file.
        whole, table, tables = self._more.partition("[")
        self._config.write_text(
            f"{self._toml}{whole}\n[server]\nhttp_port = {self._http_port}\n{table}{tables}"
        )
        command = [sys.executable, "-m", "services.preference", "--config", str(self._config)]
        with self._log.open("a") as log:
            self.process = subprocess.Popen(command, stderr=log, stdout=log, text=True)
        ends = time.monotonic() + 60
        while not self._endpoints.exists():
            assert self.process.poll() is None, self._log.read_text()
            assert time.monotonic() < ends
            time.sleep(0.02)
        endpoints = json.loads(self._endpoints.read_text())
        self._http_port = int(endpoints["http"].rpartition(":")[2])
        self.target = str(endpoints["grpc"])
        client = PreferenceClient(self.target, attempts=20)
        client.statistics()
        return client

    @property
    def url(self) -> str:
        """Where the pages are."""
        return f"http://127.0.0.1:{self._http_port}"

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Its exit code."""
        if self.process is None or self.process.poll() is not None:
            return 0
        self.process.send_signal(number)
        return self.process.wait(30)

    def link(self, name: str, role: Role = "annotator", campaign: str = "") -> str:
        """A personal link, made beside the running service."""
        person = Person(name=name, role=role, campaign=campaign)
        database = Database(self._database_url)
        try:
            token = database.transaction(lambda session: new_person(session, person, now=time.time()))
        finally:
            database.close()
        return f"{self.url}/join#{token}"


@contextmanager
def browser() -> Iterator[Browser]:
    """Debian's Chromium."""
    from playwright.sync_api import sync_playwright

    options: dict[str, Any] = {"executable_path": str(CHROMIUM), "args": ["--no-sandbox", "--disable-gpu"]}
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(**options)
        try:
            yield opened
        finally:
            opened.close()
