"""kubectl and helm against the control plane, and whether it is one. Knows no run."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
TOOLS = ROOT / ".venv-helm" / "4"
Object = dict[str, Any]


class Trouble(AssertionError):
    """Something is not as it must be; the message is for people."""


class Plane:
    """A control plane, by its kubeconfig."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig

    def run(self, tool: str, *arguments: str, given: str = "", seconds: float = 180) -> str:
        """kubectl or helm; what it says. Trouble with its last words where it fails."""
        try:
            done = subprocess.run(
                [TOOLS / tool, "--kubeconfig", str(self.kubeconfig), *arguments],
                input=given or None,
                capture_output=True,
                text=True,
                timeout=seconds,
                cwd=ROOT,
            )
        except subprocess.TimeoutExpired:
            raise Trouble(f"{tool} {' '.join(arguments[:6])}: no end within {seconds:g} s") from None
        if done.returncode != 0:
            raise Trouble(f"{tool} {' '.join(arguments[:6])}: {done.stderr.strip()[-1500:]}")
        return done.stdout

    def kubectl(self, *arguments: str, given: str = "", seconds: float = 180) -> str:
        """kubectl."""
        return self.run("kubectl", *arguments, given=given, seconds=seconds)

    def helm(self, *arguments: str, given: str = "", seconds: float = 300) -> str:
        """helm."""
        return self.run("helm", *arguments, given=given, seconds=seconds)

    def apply(self, *manifests: Object) -> None:
        """Server-side, as a user."""
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifests)})
        self.kubectl("apply", "--server-side", "-f", "-", given=text)

    def get(self, *arguments: str) -> Object:
        """An object or list."""
        found: Object = json.loads(self.kubectl("get", *arguments, "-o", "json"))
        return found

    def items(self, *arguments: str) -> list[Object]:
        """Of a list."""
        found: list[Object] = self.get(*arguments)["items"]
        return found

    def check(self) -> str:
        """What kind of control plane this is. Trouble names the part that does not work."""
        version = json.loads(self.kubectl("version", "-o", "json", seconds=20))["serverVersion"]["gitVersion"]
        name = f"trimtab-check-{time.time_ns() % 10**9}"
        self.kubectl("create", "namespace", name)
        try:
            account = lambda: self._there("serviceaccount", "default", "-n", name)  # noqa: E731
            if not holds(account, 30):
                raise Trouble("no controller manager runs: a new namespace got no service account")
            self.kubectl("run", "nowhere", "--image=none", "-n", name, "--overrides", _NOWHERE)
            if not holds(lambda: self._was_scheduled(name), 30):
                raise Trouble("no scheduler runs: a pod for a node that is not there was not looked at")
        finally:
            self.kubectl("delete", "namespace", name, "--wait=false")
        return str(version)

    def _there(self, *arguments: str) -> bool:
        return bool(self.kubectl("get", *arguments, "--ignore-not-found", "-o", "name").strip())

    def _was_scheduled(self, namespace: str) -> bool:
        pod = self.get("pod", "nowhere", "-n", namespace)
        return any(one["type"] == "PodScheduled" for one in pod["status"].get("conditions") or ())


_NOWHERE = json.dumps({"spec": {"nodeSelector": {"trimtab.dev/nowhere": "true"}}})


def holds(question: Callable[[], Any], seconds: float, *, every: float = 0.3) -> Any:
    """The first answer that is something; the last one when time is over."""
    ends = time.monotonic() + seconds
    while not (answer := question()) and time.monotonic() < ends:
        time.sleep(every)
    return answer


def until(what: str, question: Callable[[], Any], seconds: float, *, every: float = 0.3) -> Any:
    """The same, but Trouble when time is over."""
    answer = holds(question, seconds, every=every)
    if not answer:
        raise Trouble(f"not within {seconds:g} s: {what}")
    return answer
