"""A run whose services speak mTLS, over real processes: it trains, and nobody else gets in."""

from __future__ import annotations

import asyncio
import json
import stat
from pathlib import Path

import pytest

from orchestrator.local.layout import RunLayout
from orchestrator.local.stack import Stack
from orchestrator.planning.processes import Limits
from tests.fakes.small_runs import make_files, program, rows_of, small_spec
from trimtab import AsyncLearnerClient, AsyncPolicyClient
from trimtab.clients.errors import PermissionDeniedError, TrimtabClientError, UnavailableError

QUICK = Limits(backoff_first_seconds=0.1, backoff_most_seconds=0.4)
ENDLESS = "steps=1000"


def of(layout: RunLayout, who: str) -> dict[str, Path]:
    """As a client's options."""
    pair = {"certificate_file": f"run-{who}.pem", "private_key_file": f"run-{who}.key", "ca_file": "ca.pem"}
    return {option: layout.tls / name for option, name in pair.items()}


async def status(layout: RunLayout, address: str, who: str) -> int:
    async with AsyncLearnerClient(address, **of(layout, who)) as client:
        return int((await client.status()).step)


@pytest.mark.timeout(240)
async def test_a_run_trains_over_mtls_and_keeps_everybody_else_out(tmp_path: Path) -> None:
    """Weights come by certificates; each caller may do what its name allows, strangers and plaintext nothing."""
    layout, spec = RunLayout.prepare(tmp_path / "run"), small_spec(make_files(tmp_path), ENDLESS)
    other = RunLayout.prepare(tmp_path / "other")
    # By gRPC rather than by the folder that a learner shares with its policies here.
    settings = {"policy": {"weights": {"folder": ""}}}
    async with Stack(layout, spec, settings=settings, limits=QUICK, tls=True) as stack:
        learner, policy = await stack.ready("learner"), await stack.ready("policy")
        while len(rows_of(layout.root) if (layout.root / "metrics.jsonl").exists() else []) < 3:
            stack.supervisor.raise_failures()
            await asyncio.sleep(0.1)
        assert await status(layout, learner, "operator") >= 3
        assert await status(layout, learner, "client") >= 3
        for who in ("policy", "client"):
            async with AsyncLearnerClient(learner, **of(layout, who)) as client:
                with pytest.raises(PermissionDeniedError, match=f"run-{who} lacks the scope admin"):
                    await client.stop()
        async with AsyncPolicyClient(policy, **of(layout, "client")) as client:
            assert await client.generate(["Count"], max_new_tokens=2)
        async with AsyncPolicyClient(policy, **of(layout, "learner")) as client:
            with pytest.raises(TrimtabClientError, match="run-learner is not in the keys file"):
                await client.generate(["Count"], max_new_tokens=2)
        Stack(other, spec, limits=QUICK, tls=True)
        for access in ({}, of(other, "operator") | {"ca_file": layout.tls / "ca.pem"}):
            async with AsyncLearnerClient(learner, **access) as client:
                with pytest.raises(UnavailableError):
                    await client.status()
        said = await asyncio.to_thread(
            program, "orchestrator", "status", "-o", "json", "--out", str(layout.root)
        )
        assert json.loads(said.stdout)["run"]["step"] >= 3, said.stderr
        files = [f"--{option.replace('_', '-')}={path}" for option, path in of(layout, "client").items()]
        asked = ("generate", "--address", policy, "--prompt", "Count", "--max-new-tokens", "2", *files)
        said = await asyncio.to_thread(program, "orchestrator", *asked)
        assert said.returncode == 0, said.stderr
        said = await asyncio.to_thread(program, "orchestrator", *asked[:7])
        assert (said.returncode, "no policy service answers at" in said.stderr) == (1, True)
        async with AsyncLearnerClient(learner, **of(layout, "operator")) as client:
            await client.stop()
        assert await stack.ended("learner") == 0
    arrived = [
        json.loads(line)
        for line in (layout.logs / "policy.log").read_text().splitlines()
        if '"weights arrived"' in line
    ]
    assert any(one["encoding"] == "full" for one in arrived if one["tensors"])
    assert {stat.S_IMODE(path.stat().st_mode) for path in layout.tls.glob("*.key")} == {0o600}
