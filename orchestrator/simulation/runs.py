"""One scenario under Auto and the documented defaults of the others, for `trimtab simulate`. Draws nothing."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.simulation.contenders import DEFAULTS, FAMILIES, auto
from orchestrator.simulation.engine import Result, Scaler, Simulation
from orchestrator.simulation.scenario import Scenario
from orchestrator.simulation.shapes import SHAPES, day
from services.common.errors import InvalidInput


def scenario_of(shape: str, seed: int, seconds: float) -> Scenario:
    """The scenario of a shape's name. Raises InvalidInput for a name that is none."""
    shapes = SHAPES | {"day": day}
    if shape not in shapes:
        raise InvalidInput(f"--shape: no {shape}; there are {', '.join(shapes)}", {"shape": "a shape's name"})
    return shapes[shape](seed, seconds)


def simulate_all(shape: str, seed: int, seconds: float) -> tuple[Scenario, list[Result]]:
    """Auto first, then HPA on CPU, HPA on backlog and KEDA with their defaults, all with their series."""
    scenario = scenario_of(shape, seed, seconds)
    makers: dict[str, Callable[[Scenario], Scaler]] = {"Auto": auto}
    makers |= {FAMILIES[family]: one.scaler for family, one in DEFAULTS.items()}
    results = []
    for name, make in makers.items():
        result = Simulation(scenario, make(scenario), series=True).run()
        result.scaler = name
        results.append(result)
    return scenario, results
