"""Volumes, and how files come from and go to an object store (by rclone). Knows no role.

fetch   init container: what a pod reads from /storage, copied before it starts
restore init container of the learner: its newest whole checkpoint
upload  sidecar of the learner: checkpoints as they are written, `state.json` last and of those alone that had it
        before, so that a checkpoint that has it is whole; the newest `keep` stay. SIGTERM comes once the learner
        has ended: what is under way is finished, then all is uploaded once more, until it succeeds
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from orchestrator.cluster.kinds.storage import ModelCacheSpec, ObjectStoreSpec, PvcSpec
from orchestrator.cluster.names import STORAGE
from orchestrator.cluster.render.parts import Manifest, container_security, given

CACHE = "/cache"
UPLOAD_SECONDS = 20
_HELPER = {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}}

_BEGIN = """\
set -eu
trap 'kill "${!:-}" 2>/dev/null; exit 143' TERM INT
run() { "$@" & wait "$!"; }
"""
"""Whoever is asked to end ends: a shell that is PID 1 is deaf without a trap, and heeds one between commands alone."""
FETCH = (
    _BEGIN
    + """\
for path in "$@"; do
  run rclone copyto "$STORE/$path" "/storage/$path"
done
"""
)
RESTORE = (
    _BEGIN
    + """\
from="$STORE/$RUN"; to="/storage/$RUN"; mkdir -p "$to"
for path in "$@"; do
  run rclone copyto "$STORE/$path" "/storage/$path"
done
there=$(rclone lsf "$from/") || [ "$?" = 3 ] || exit 1
[ -n "$there" ] || exit 0
if echo "$there" | grep -qx checkpoints/; then
  steps=$(rclone lsf --dirs-only "$from/checkpoints/") || exit 1
  for step in $(echo "$steps" | sed -n '/^step-/p' | sort -r); do
    files=$(rclone lsf "$from/checkpoints/$step") || exit 1
    if echo "$files" | grep -qx state.json; then
      run rclone copy "$from/checkpoints/$step" "$to/checkpoints/$step" || exit 1
      break
    fi
  done
fi
run rclone copy --max-depth 1 "$from" "$to" || exit 1
"""
)
"""Only a folder that is not there (rclone's 3), or an empty one, is a run without a past. Whatever else cannot be read
ends the attempt: one that began at step 0 for it would upload over the checkpoints that are there, and purge them."""
UPLOAD = """\
ending=
trap 'ending=yes' TERM INT
from="/storage/$RUN"; to="$STORE/$RUN"
upload() {
  whole=$(cd "$from" && ls -d checkpoints/step-*/state.json 2>/dev/null)
  rclone copy --exclude '.*' --exclude '.*/**' --exclude '/checkpoints/*/state.json' "$from" "$to" &&
  for state in $whole; do
    [ ! -e "$from/$state" ] || rclone copyto "$from/$state" "$to/$state" || return
  done &&
  rclone lsf --dirs-only "$to/checkpoints/" | grep '^step-' | sort -r | tail -n "+$((KEEP + 1))" |
    while read -r step; do rclone purge "$to/checkpoints/$step"; done
}
pause() { sleep "$SECONDS_BETWEEN" & wait $!; }
failed() { echo "upload failed, trying again in $SECONDS_BETWEEN s" >&2; }
while [ -z "$ending" ]; do
  upload || failed
  [ -n "$ending" ] || pause
done
until upload; do failed; pause; done
"""


@dataclass(slots=True)
class Mounts:
    """Volumes of a pod, what its container mounts, and containers beside it."""

    volumes: list[Manifest] = field(default_factory=list)
    mounts: list[Manifest] = field(default_factory=list)
    before: list[Manifest] = field(default_factory=list)
    """Init containers; one with restartPolicy Always is a sidecar."""
    upload_seconds: int = 0
    """That a sidecar may take once the container has ended; 0: there is none."""

    def add(self, volume: Manifest, path: str, *, read_only: bool = False, sub_path: str = "") -> None:
        """A volume and its mount."""
        self.volumes.append(volume)
        mount = {"name": volume["name"], "mountPath": path}
        self.mounts.append(mount | given(subPath=sub_path) | ({"readOnly": True} if read_only else {}))

    def empty(self, name: str, path: str, **limits: str) -> None:
        """A folder of the pod's own."""
        self.add({"name": name, "emptyDir": dict(limits)}, path)

    def pvc(self, name: str, claim: str, path: str, *, read_only: bool = False, sub_path: str = "") -> None:
        """A volume that exists."""
        source = {"claimName": claim} | ({"readOnly": True} if read_only else {})
        self.add(
            {"name": name, "persistentVolumeClaim": source}, path, read_only=read_only, sub_path=sub_path
        )


def add_cache(mounts: Mounts, cache: ModelCacheSpec) -> None:
    """Where models of a hub are kept."""
    if cache.claim_name is not None:
        mounts.pvc("model-cache", cache.claim_name, CACHE)
    else:
        mounts.empty("model-cache", CACHE, **given(sizeLimit=cache.size_limit))


def add_claim(mounts: Mounts, claim: PvcSpec, *, read_only: bool) -> None:
    """The run's (or reward model's) volume at /storage."""
    mounts.pvc("storage", claim.claim_name, STORAGE, read_only=read_only, sub_path=claim.sub_path)


def add_fetched(mounts: Mounts, store: ObjectStoreSpec, paths: Sequence[str], image: str) -> None:
    """/storage with what of an object store the pod reads. `paths` lie below /storage."""
    mounts.empty("storage", STORAGE, sizeLimit=store.scratch)
    mounts.before.append(_transfer("fetch", store, image, FETCH, _below(paths)))


def add_run_folder(
    mounts: Mounts, store: ObjectStoreSpec, folder: str, paths: Sequence[str], image: str, keep: int
) -> None:
    """/storage of the learner: restored, and uploaded while it runs."""
    mounts.empty("storage", STORAGE, sizeLimit=store.scratch)
    run = folder.removeprefix(f"{STORAGE}/")
    env = {"RUN": run, "KEEP": str(keep), "SECONDS_BETWEEN": str(UPLOAD_SECONDS)}
    mounts.before.append(_transfer("restore", store, image, RESTORE, _below(paths), RUN=run))
    mounts.before.append(_transfer("upload", store, image, UPLOAD, (), **env) | {"restartPolicy": "Always"})
    mounts.upload_seconds = store.upload_seconds


def remote_of(store: ObjectStoreSpec) -> str:
    """rclone's name of the place, its settings included; credentials come from the environment."""
    scheme, _, place = store.url.partition("://")
    settings = {
        "s3": "s3,provider=AWS,env_auth=true",
        "gs": "gcs,env_auth=true,bucket_policy_only=true",
        "az": "azureblob,env_auth=true",
    }[scheme]
    if scheme == "s3" and store.endpoint:
        settings = f"s3,provider=Other,env_auth=true,endpoint='{store.endpoint}'"
    return f":{settings}:{place.rstrip('/')}"


def reads_storage(*paths: str) -> tuple[str, ...]:
    """Those of the paths that lie on the run's storage."""
    return tuple(dict.fromkeys(path for path in paths if path.startswith(f"{STORAGE}/")))


def _below(paths: Sequence[str]) -> tuple[str, ...]:
    return tuple(path.removeprefix(f"{STORAGE}/").rstrip("/") for path in paths)


def _transfer(
    name: str, store: ObjectStoreSpec, image: str, script: str, arguments: Sequence[str], **env: str
) -> Manifest:
    variables = {"STORE": remote_of(store), "HOME": "/tmp", **env}  # noqa: S108 the pod's own emptyDir
    credentials = [{"secretRef": {"name": store.credentials_secret}}] if store.credentials_secret else []
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["/bin/sh", "-c", script, name],
        **given(args=list(arguments)),
        "env": [{"name": key, "value": value} for key, value in variables.items()],
        **given(envFrom=credentials),
        "resources": _HELPER,
        "securityContext": container_security(),
        "volumeMounts": [
            {"name": "storage", "mountPath": STORAGE},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
        ],
    }
