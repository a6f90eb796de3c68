"""What the chart starts as its queue server is one that a run can use: its own command, settings and Secret."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from orchestrator.local.ports import free_ports
from orchestrator.local.queue_server import find_binary
from services.common.stages.base import NewEntry
from services.common.stages.redis_stages import RedisStages
from tests.integration.charts.matrix import MATRIX
from tests.integration.charts.rendering import named, render


class Server:
    """The container of the chart's StatefulSet, with its mounts in a folder."""

    def __init__(self, root: Path) -> None:
        manifests = render(MATRIX["valkey"])
        [self.port] = free_ports(1)
        secret = named(manifests, "Secret", "trimtab-queue", "trimtab-system")["data"]
        self.password = base64.b64decode(secret["password"]).decode()
        self.url = base64.b64decode(secret["url"]).decode()
        [container] = named(manifests, "StatefulSet", "trimtab-valkey")["spec"]["template"]["spec"][
            "containers"
        ]
        folders = {mount["name"]: root / mount["name"] for mount in container["volumeMounts"]}
        for folder in folders.values():
            folder.mkdir()
        conf = named(manifests, "ConfigMap", "trimtab-valkey")["data"]["valkey.conf"]
        (folders["password"] / "password").write_text(self.password)
        (folders["config"] / "valkey.conf").write_text(self._moved(conf, container, folders))
        [script] = container["args"]
        programs = root / "bin"
        programs.mkdir()
        (programs / "valkey-server").symlink_to(find_binary())
        self.users = folders["users"] / "users.acl"
        self.process = subprocess.Popen(
            [*container["command"], self._moved(script, container, folders)],
            env={"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"},
            stdout=subprocess.DEVNULL,
        )

    def _moved(self, text: str, container: dict[str, list[dict[str, str]]], folders: dict[str, Path]) -> str:
        places = {mount["mountPath"]: str(folders[mount["name"]]) for mount in container["volumeMounts"]}
        pattern = "|".join(sorted(places, key=len, reverse=True))
        text = re.sub(rf"(?<= )(?:{pattern})\b", lambda found: places[found[0]], text)
        return text.replace("port 6379", f"port {self.port}").replace("bind * -::*", "bind 127.0.0.1")

    def here(self) -> str:
        """The Secret's URL, at this machine."""
        return self.url.replace("trimtab-valkey.trimtab-system.svc:6379", f"127.0.0.1:{self.port}")

    def answers(self) -> bool:
        try:
            with redis.Redis.from_url(self.here()) as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("valkey"))
    try:
        for _ in range(200):
            if made.answers():
                break
            time.sleep(0.05)
        yield made
    finally:
        made.process.terminate()
        made.process.wait(20)


def test_the_password_of_the_secret_opens_it_and_nothing_else_does(server: Server) -> None:
    """Without it, or with another, nobody is let in."""
    for wrong in (f"redis://127.0.0.1:{server.port}/0", f"redis://:wrong@127.0.0.1:{server.port}/0"):
        with redis.Redis.from_url(wrong) as client, pytest.raises(redis.AuthenticationError):
            client.ping()


def test_the_password_is_nowhere_in_plain(server: Server) -> None:
    """Neither in the users' file, which has its hash, nor in the process' arguments; the file is its owner's alone."""
    assert server.password not in server.users.read_text()
    assert server.users.stat().st_mode & 0o077 == 0
    assert server.password not in Path(f"/proc/{server.process.pid}/cmdline").read_text()


def test_it_is_set_as_the_stages_ask(server: Server) -> None:
    """It never evicts, and what it took is on the disk within a second."""
    wanted = {"maxmemory-policy": "noeviction", "appendonly": "yes", "appendfsync": "everysec", "save": ""}
    with redis.Redis.from_url(server.here(), decode_responses=True) as client:
        assert {name: client.config_get(name)[name] for name in wanted} == wanted


async def test_a_run_works_on_it(server: Server) -> None:
    """A group goes in and comes out at the other end."""
    run = "helpful-01234567"
    learner = RedisStages(server.here(), run, consumer="learner", stages=("reward", "learner"))
    worker = RedisStages(server.here(), run, consumer="reward-0")
    try:
        await learner.start_epoch(at_least=1)
        await learner.admit("reward", [NewEntry(group_id="g1", admission_number=1, payload=b"a prompt")])
        [entry] = await worker.take("reward", limit=8, block_seconds=5)
        assert (entry.group_id, entry.payload) == ("g1", b"a prompt")
    finally:
        await worker.close()
        await learner.close()
