"""mTLS inside a run: which Secrets pods mount, and what their configuration says of them. Knows no stage.

/run/trimtab/tls        the service's own tls.crt, tls.key, and ca.crt, by which it knows the others
/etc/trimtab            callers.toml: whose certificates may call it
/run/trimtab/queue-ca   ca.crt of a queue server elsewhere
"""

from __future__ import annotations

from typing import Any

from orchestrator.cluster.kinds import TrainingRun
from orchestrator.cluster.kinds.base import SecretKey
from orchestrator.cluster.names import CONFIG, RunNames
from orchestrator.cluster.render.storage import Mounts
from orchestrator.local.toml import to_toml
from orchestrator.mutual_tls import OwnFiles, callers, common_name, reading_weights, serving

OWN = "/run/trimtab/tls"
CALLERS = "callers.toml"
FILES = OwnFiles(
    certificate=f"{OWN}/tls.crt",
    private_key=f"{OWN}/tls.key",
    authority=f"{OWN}/ca.crt",
    callers=f"{CONFIG}/{CALLERS}",
)
QUEUE_CA = "/run/trimtab/queue-ca/ca.crt"


def prefix_of(run: TrainingRun, names: RunNames) -> str:
    """Of the names of Secrets and certificates; empty: the run speaks plaintext."""
    if run.spec.tls is None:
        return ""
    return run.spec.tls.secret_prefix or names.tls


def secret_of(run: TrainingRun, names: RunNames, who: str) -> str:
    """Name of a Secret, and its certificate's common name; empty: there is none."""
    prefix = prefix_of(run, names)
    return common_name(prefix, who) if prefix else ""


def server_tables(run: TrainingRun, names: RunNames) -> dict[str, Any]:
    """[tls] and [access] of a service; empty where NetworkPolicies alone say who may connect."""
    return serving(FILES) if prefix_of(run, names) else {}


def weights_fields(run: TrainingRun, names: RunNames) -> dict[str, Any]:
    """Of a policy's [weights]: how it reaches the learner and its peers."""
    prefix = prefix_of(run, names)
    return reading_weights(FILES, prefix) if prefix else {}


def queue_fields(run: TrainingRun, names: RunNames) -> dict[str, str]:
    """Of [queue]: whom to trust, where the server is asked for its certificate."""
    if run.spec.redis.ca_secret is not None:
        return {"ca_file": QUEUE_CA}
    own = run.spec.redis.owned is not None and prefix_of(run, names)
    return {"ca_file": FILES.authority} if own else {}


def caller_files(run: TrainingRun, names: RunNames, role: str) -> dict[str, str]:
    """More files of a service's ConfigMap."""
    prefix = prefix_of(run, names)
    return {CALLERS: to_toml(callers(role, prefix))} if prefix else {}


def add_certificates(mounts: Mounts, run: TrainingRun, names: RunNames, who: str) -> None:
    """Mount what `who` needs of Secrets; nothing in a run of plaintext."""
    secret = secret_of(run, names, who)
    if secret:
        # Others must not read the private key.
        mounts.add(
            {"name": "tls", "secret": {"secretName": secret, "defaultMode": 0o440}}, OWN, read_only=True
        )
    if run.spec.redis.ca_secret is not None:
        add_key(mounts, "queue-ca", run.spec.redis.ca_secret, QUEUE_CA)


def add_key(mounts: Mounts, name: str, secret: SecretKey, path: str) -> None:
    """Mount one key of a Secret as a file."""
    folder, _, file = path.rpartition("/")
    one = {"secretName": secret.name, "items": [{"key": secret.key, "path": file}]}
    mounts.add({"name": name, "secret": one}, folder, read_only=True)
