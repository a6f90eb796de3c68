"""The queue over TLS, on Debian's Redis 7 (the carried Valkey is built without): whom clients trust, who they are."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from orchestrator.certificates import authority, issue
from orchestrator.cluster.operator.network_probe import NetworkProbe
from orchestrator.cluster.operator.probe import Door, Pem
from orchestrator.local.ports import free_ports
from services.common.errors import ConfigError, Unavailable
from services.common.queue_worker import QueueWorker
from services.common.spec.service import QueueSpec
from services.common.stages.base import LEARNER_STAGE, NewEntry
from services.common.stages.redis_stages import RedisStages
from services.common.stages.rights import OPERATOR, VIEWER
from services.common.stages.tls_files import TlsFiles
from services.common.worker import Outcome
from tests.contract.queue_users import PASSWORD, SLIP, Users, whole_run
from tests.fakes.small_runs import program
from trimtab.rollout.v1.rollout_pb2 import RolloutGroup

SETTINGS = """\
bind 127.0.0.1
port 0
tls-port {port}
tls-cert-file {certs}/queue.pem
tls-key-file {certs}/queue.key
tls-ca-cert-file {certs}/ca.pem
tls-auth-clients yes
dir {folder}
save ""
user default on >admin ~* &* +@all
"""


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certs")
    signer, _ = authority(folder)
    for name in ("queue", "policy"):
        issue(signer, folder, name, (), days=1)
    stranger, _ = authority(folder / "strangers")
    issue(stranger, folder / "strangers", "policy", (), days=1)
    return folder


@pytest.fixture(scope="module")
def port(certs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("redis-server (Debian's Redis 7) is not installed on this machine")
    [number] = free_ports(1, "127.0.0.1")
    folder = tmp_path_factory.mktemp("tls")
    config = folder / "redis.conf"
    config.write_text(SETTINGS.format(port=number, certs=certs, folder=folder), encoding="utf-8")
    process = subprocess.Popen([binary, str(config)], stdout=subprocess.DEVNULL)
    ends = time.monotonic() + 30
    try:
        while True:
            try:
                with _admin(number, certs) as client:
                    client.ping()
                break
            except redis.ConnectionError:
                assert process.poll() is None
                assert time.monotonic() < ends
                time.sleep(0.02)
        yield number
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def admin(port: int, certs: Path) -> Iterator[Any]:
    with _admin(port, certs) as client:
        yield client


def _admin(port: int, certs: Path) -> Any:
    return redis.Redis(
        port=port,
        password="admin",  # noqa: S106 of this test
        ssl=True,
        ssl_ca_certs=str(certs / "ca.pem"),
        ssl_certfile=str(certs / "policy.pem"),
        ssl_keyfile=str(certs / "policy.key"),
    )


def _files(certs: Path) -> TlsFiles:
    return TlsFiles(certs / "ca.pem", certs / "policy.pem", certs / "policy.key")


async def test_a_whole_run_passes_over_tls_with_its_users(admin: Any, port: int, certs: Path) -> None:
    """Certificates and passwords together: every step of every role."""
    await whole_run(Users(admin, port, tls=_files(certs)))


async def test_a_service_works_over_tls_by_its_queue_table(admin: Any, port: int, certs: Path) -> None:
    """[queue] with ca_file, certificate_file and private_key_file is all that a worker needs."""
    users = Users(admin, port, tls=_files(certs))
    learner = RedisStages(
        users.url(LEARNER_STAGE), users.uid, consumer="learner", stages=SLIP, tls=_files(certs)
    )
    spec = QueueSpec(
        url=users.url("policy"),
        run_uid=users.uid,
        ca_file=certs / "ca.pem",
        certificate_file=certs / "policy.pem",
        private_key_file=certs / "policy.key",
    )

    class Passing:
        def process(self, groups: list[RolloutGroup], stopping: threading.Event) -> list[Outcome]:
            return [Outcome("done") for _ in groups]

    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        worker = QueueWorker(spec, "policy", Passing(), executor, replica="policy-0")
        await learner.start_epoch(at_least=0)
        group = RolloutGroup(group_id="g", slip=["policy", "learner"])
        await learner.admit(
            "policy", [NewEntry(group_id="g", admission_number=0, payload=group.SerializeToString())]
        )
        worker.start()
        [entry] = await learner.take(LEARNER_STAGE, limit=1, block_seconds=10)
        assert entry.group_id == "g"
        await worker.drain()
        await learner.close()


def test_a_person_looks_over_tls_by_flags(admin: Any, port: int, certs: Path) -> None:
    """`trimtab queue list` with --ca-file and a certificate; without them one line says what is wrong."""
    users = Users(admin, port, tls=_files(certs))
    where = ["queue", "list", "-o", "json", "--url", users.url(VIEWER), "--run-uid", users.uid]
    files = _files(certs)
    flags = [
        *("--ca-file", str(files.ca)),
        *("--certificate-file", str(files.certificate)),
        *("--private-key-file", str(files.private_key)),
    ]
    looked = program("orchestrator", *where, *flags)
    assert looked.returncode == 0, looked.stderr
    assert json.loads(looked.stdout) == {"sentinel": False, "stages": []}
    untrusted = program("orchestrator", *where)
    assert untrusted.returncode == 1
    assert "is away" in untrusted.stderr
    assert PASSWORD not in untrusted.stderr


@pytest.mark.parametrize("wrong", ["authority", "no certificate", "strangers' certificate", "no TLS"])
async def test_what_does_not_fit_is_refused_and_told(admin: Any, port: int, certs: Path, wrong: str) -> None:
    """Another authority's server, a client without a certificate or with a stranger's, plaintext: one clear line."""
    good, strange = _files(certs), _files(certs / "strangers")
    tls = {
        "authority": TlsFiles(strange.ca, good.certificate, good.private_key),
        "no certificate": TlsFiles(good.ca),
        "strangers' certificate": TlsFiles(good.ca, strange.certificate, strange.private_key),
        "no TLS": None,
    }[wrong]
    users = Users(admin, port, tls=tls)
    queue = RedisStages(users.url("policy"), users.uid, consumer="w", patience_seconds=0.1, tls=tls)
    with pytest.raises(Unavailable, match=r"^queue server rediss?://127\.0\.0\.1:\d+/0 is away: ") as told:
        await queue.take("policy", limit=1, block_seconds=0)
    if wrong == "authority":
        assert "certificate verify failed" in str(told.value)
    await queue.close()


async def test_certificates_rotate_with_the_next_connection(
    admin: Any, port: int, certs: Path, tmp_path: Path
) -> None:
    """A connection that stands goes on; the next one reads the files as they are then."""
    own = _files(tmp_path)
    for name in ("ca.pem", "policy.pem", "policy.key"):
        shutil.copy(certs / name, tmp_path / name)
    users = Users(admin, port, tls=own)
    queue = RedisStages(users.url("policy"), users.uid, consumer="w", patience_seconds=0.1, tls=own)
    await queue.take("policy", limit=1, block_seconds=0)
    for name in ("policy.pem", "policy.key"):
        shutil.copy(certs / "strangers" / name, tmp_path / name)
    await queue.take("policy", limit=1, block_seconds=0)
    admin.client_kill_filter(_type="normal", skipme=True)
    with pytest.raises(Unavailable):
        await queue.take("policy", limit=1, block_seconds=0)
    issue(authority(certs)[0], tmp_path, "policy", (), days=1)
    await asyncio.wait_for(queue.take("policy", limit=1, block_seconds=0), 10)
    await queue.close()


def test_the_operator_looks_by_an_authority_from_a_secret(admin: Any, port: int, certs: Path) -> None:
    """Texts rather than files: whom it trusts; the wrong one, and none, tell nothing and raise nothing."""
    users, probe = Users(admin, port, tls=_files(certs)), NetworkProbe()
    url = users.url(OPERATOR)
    try:
        admin.config_set("tls-auth-clients", "no")
        good = Pem(authority=(certs / "ca.pem").read_text())
        assert probe.backlog(Door(url, good), users.uid) == {}
        strange = Pem(authority=(certs / "strangers" / "ca.pem").read_text())
        assert probe.backlog(Door(url, strange), users.uid) is None
        assert probe.backlog(Door(url), users.uid) is None
        assert probe.backlog(Door(url.replace("rediss://", "redis://"), good), users.uid) is None
    finally:
        admin.config_set("tls-auth-clients", "yes")
        probe.close()


def test_files_that_cannot_serve_are_told_before_anything_is_sent(certs: Path, tmp_path: Path) -> None:
    """TLS files beside a plaintext URL, a file that is not there, half a pair."""
    with pytest.raises(ConfigError, match=r"queue\.ca_file: expected a rediss:// URL beside it"):
        RedisStages("redis://h:1/0", "u", consumer="w", tls=TlsFiles(certs / "ca.pem"))
    with pytest.raises(ConfigError, match=r"queue\.ca_file: .*absent.pem: No such file"):
        RedisStages("rediss://h:1/0", "u", consumer="w", tls=TlsFiles(tmp_path / "absent.pem"))
    with pytest.raises(ValueError, match="certificate_file and private_key_file together"):
        QueueSpec(url="rediss://h:1/0", run_uid="u", certificate_file=certs / "policy.pem")
