"""Each image is made in two stages, holds one service and what is shared, and runs as nobody special."""

from __future__ import annotations

import json
import re

import pytest

from orchestrator.cluster.render.options import IMAGES, PORTS, RenderOptions
from tests.fakes.images import FILES, ROOT, copied, stages

SHARED = {
    "pyproject.toml",
    "README.md",
    "constraints.txt",
    "protos",
    "services/__init__.py",
    "services/common",
}
WITH_MODELS = {"policy", "reference", "reward", "learner"}


@pytest.mark.parametrize("name", FILES)
def test_only_its_own_folder_and_what_is_shared_goes_in(name: str) -> None:
    """Never a sibling's folder; services/models where models are borne."""
    build, final = stages(FILES[name])
    own = {"orchestrator"} if name == "orchestrator" else {f"services/{name}"}
    models = {"services/models"} if name in WITH_MODELS else set()
    assert set(copied(build)) == SHARED | own | models
    assert copied(final) == []
    assert all((ROOT / path).exists() for path in copied(build))


@pytest.mark.parametrize("name", FILES)
def test_tools_and_sources_stay_in_the_first_stage(name: str) -> None:
    """The image has the finished environment; pip ran for its own extra, and what a run may ask for, with our pins."""
    build, final = stages(FILES[name])
    assert build.name == "build" and build.base == final.base
    [install] = [line for line in build.of("RUN") if "pip" in line]
    assert re.search(rf'"\.\[{name}[,\]]', install) and "-c constraints.txt" in install
    assert final.of("COPY") == ["--from=build /venv /venv"]
    assert not [line for line in final.of("RUN") if "pip" in line or "apt" in line]


def test_a_learner_has_what_its_run_may_ask_for() -> None:
    """Adapters, moments in a byte, rollouts that are kept and data in Parquet, metrics elsewhere."""
    [install] = [line for line in stages(FILES["learner"])[0].of("RUN") if "pip" in line]
    [extras] = re.findall(r"\.\[(.+?)\]", install)
    assert {"lora", "eight-bit", "data", "logging"} <= set(extras.split(","))


@pytest.mark.parametrize("name", FILES)
def test_it_runs_as_the_user_that_pods_name(name: str) -> None:
    """By number, so that runAsNonRoot can be checked, and without writing bytecode to a root that is read-only."""
    _, final = stages(FILES[name])
    assert final.of("USER") == [str(RenderOptions().user)]
    assert any(f"--uid {RenderOptions().user}" in line for line in final.of("RUN"))
    assert "PYTHONDONTWRITEBYTECODE=1" in " ".join(final.of("ENV"))
    assert final.steps.index(("USER", "10001")) < [step for step, _ in final.steps].index("ENTRYPOINT")


@pytest.mark.parametrize("name", FILES)
def test_it_starts_its_service_with_the_mounted_configuration(name: str) -> None:
    """Console script and path are what manifests say."""
    _, final = stages(FILES[name])
    [entry], [arguments] = final.of("ENTRYPOINT"), final.of("CMD")
    if name == "orchestrator":
        assert json.loads(entry) == ["trimtab"]
        assert json.loads(arguments) == ["operator", "--config", "/etc/trimtab/operator.toml"]
    else:
        assert json.loads(entry) == [f"trimtab-{name}"]
        assert json.loads(arguments) == ["--config", f"/etc/trimtab/{name}.toml"]


@pytest.mark.parametrize("name", PORTS)
def test_it_exposes_the_ports_of_its_service(name: str) -> None:
    """gRPC, health, metrics, and HTTP where there is one."""
    _, final = stages(FILES[name])
    ports, exposed = PORTS[name], set(" ".join(final.of("EXPOSE")).split())
    wanted = {ports.grpc, ports.health, ports.metrics} | ({ports.http} if ports.http else set())
    assert {str(number) for number in wanted} <= exposed


@pytest.mark.parametrize("name", FILES)
def test_its_first_lines_say_how_to_build_it(name: str) -> None:
    """With the name under which runs look for it."""
    text = FILES[name].read_text(encoding="utf-8")
    image = (
        IMAGES[name].partition(":")[0]
        if name in IMAGES
        else f"trimtab-{'operator' if name == 'orchestrator' else name}"
    )
    assert f"docker build -f {FILES[name].relative_to(ROOT)} -t {image} ." in text
