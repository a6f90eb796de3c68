"""A whole run with every kind of secret, and then a look everywhere that others look: none of them is there."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import stat
import urllib.request
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from orchestrator.local.layout import RunLayout
from orchestrator.local.services import ROLES
from orchestrator.local.stack import Stack
from orchestrator.planning.processes import Limits
from services.common.access.keys import new_key
from tests.fakes.queue_admin import admin_url
from tests.fakes.small_runs import make_files, program, small_spec
from tests.integration.access.guarded import Keys, score
from trimtab.clients.errors import TrimtabClientError

SERVICES = ("policy", "reference", "reward", "learner")
QUICK = Limits(backoff_first_seconds=0.1, backoff_most_seconds=0.4)
# Where secrets are kept: for the owner's eyes alone.
KEPT = re.compile(r"config/[a-z]+\.toml|endpoints\.json|redis/server\.conf")


@pytest.mark.timeout(240)
async def test_no_secret_is_where_others_look(tmp_path: Path) -> None:
    """Queue passwords and API keys: not in logs, metrics, ps, errors, reports, or any file that others can read.

    The queue server dies meanwhile, keys are refused, a wrong password is tried: errors tell nothing either.
    """
    layout, spec = RunLayout.prepare(tmp_path / "run"), small_spec(make_files(tmp_path))
    keys, unknown, told = Keys(tmp_path), new_key(), list[str]()
    good = keys.add("trainer", scopes=["score"], models=["reward"])
    settings = {"reward": {"access": {"keys_file": str(keys.path)}}, "learner": {"linger_seconds": 0}}
    async with Stack(layout, spec, settings=settings, limits=QUICK, on_event=told.append) as stack:
        secrets = {good, unknown, *_passwords(layout.root)}
        for name in SERVICES[:3]:
            await stack.ready(name)
        seen = [await asyncio.to_thread(_page, stack.endpoint(name, "metrics")) for name in SERVICES[:3]]
        seen += [_arguments(one.pid) for one in stack.status() if one.pid is not None]
        for key in (good, unknown, f"{unknown}{unknown}"):
            try:
                seen.append(await score(stack.endpoint("reward"), key=key, model="reward"))
            except TrimtabClientError as error:
                seen.append(repr(error) + str(error) + str(error.__cause__))
        [server] = [one.pid for one in stack.status() if one.name == "queue"]
        assert server is not None
        os.kill(server, signal.SIGKILL)
        assert await stack.ended("learner") == 0
        wrong = stack.queue_url.replace("//:", "//policy:")
        done = await asyncio.to_thread(
            program, "orchestrator", "queue", "list", "--url", wrong, "--run-uid", stack.run_uid
        )
        assert (done.returncode, "queue server redis://127.0.0.1" in done.stderr) == (2, True)
        seen.append(done.stdout + done.stderr)
        out = ("--out", str(layout.root))
        for command in (
            ("status", *out),
            ("status", "-o", "json", *out),
            ("queue", "list", *out),
            ("report", str(layout.root)),
        ):
            done = await asyncio.to_thread(program, "orchestrator", *command)
            assert done.returncode == 0, done.stderr
            seen.append(done.stdout + done.stderr)
    assert len(secrets) >= 2 + 1 + 4 + 1
    assert any("queue" in line for line in told)
    for text in (*seen, *told):
        assert not [secret for secret in secrets if secret in text]
    assert _holders(layout.root, secrets) >= {"config/learner.toml", "endpoints.json", "redis/server.conf"}


def _passwords(root: Path) -> set[str]:
    """Of the queue: of who may do everything, of the operator, of each service; each knows its own alone."""
    configs = {name: (root / "config" / f"{name}.toml").read_text() for name in ROLES if name != "preference"}
    urls = {
        name: re.search(r'^url = "(redis://[^"]+)"$', text, re.MULTILINE) for name, text in configs.items()
    }
    found = {name: unquote(urlsplit(match[1]).password or "") for name, match in urls.items() if match}
    assert len(set(found.values())) == len(SERVICES)
    assert all(
        (password in text) == (name == whose)
        for name, text in configs.items()
        for whose, password in found.items()
    )
    operator = json.loads((root / "endpoints.json").read_text())["queue"]
    others = {unquote(urlsplit(url).password or "") for url in (operator, admin_url(root))}
    assert not others & set(found.values())
    return {*found.values(), *others}


def _holders(root: Path, secrets: set[str]) -> set[str]:
    """Files of the run with a secret in them; each is one that is meant to, and nobody else can read it."""
    holders = set()
    for path in (one for one in root.rglob("*") if one.is_file()):
        content = path.read_bytes()
        if any(secret.encode() in content for secret in secrets):
            name = str(path.relative_to(root))
            assert KEPT.fullmatch(name), name
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, name
            holders.add(name)
    assert {"logs/learner.log", "logs/reward.log", "metrics.jsonl", "report.html", "redis/server.log"} <= {
        str(path.relative_to(root)) for path in root.rglob("*")
    }
    return holders


def _page(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=20) as answer:
        return str(answer.read().decode())


def _arguments(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()
