"""HPA and KEDA against examples of their documentation and source."""

import pytest

from orchestrator.planning.observed import RoleMetrics
from orchestrator.simulation.contenders import DEFAULTS, grid
from orchestrator.simulation.engine import Scrape
from orchestrator.simulation.hpa import HpaScaler, HpaSettings, cpu_replicas, per_pod_replicas
from orchestrator.simulation.pools import Pool
from orchestrator.simulation.scenario import RoleModel

CPU = HpaSettings(metric="cpu", target=0.5)


@pytest.mark.parametrize(
    ("utilisation", "current", "ready", "wanted"),
    [
        (1.0, 3, 3, 6),  # twice the target: twice the pods
        (0.25, 4, 4, 2),
        (0.54, 4, 4, 4),  # within the tolerance of 0.1
        (0.56, 4, 4, 5),
        (1.0, 6, 3, 6),  # three on their way count as idle: the ratio is 1
        (1.0, 4, 3, 6),  # ratio 1.5 over four pods
        (0.6, 4, 3, 4),  # they would turn the direction round: stand
    ],
)
def test_cpu_replicas(utilisation: float, current: int, ready: int, wanted: int) -> None:
    """GetResourceReplicas by hand."""
    assert cpu_replicas(utilisation, CPU, current, ready) == wanted


def test_per_pod_replicas() -> None:
    """40 groups at 5 a pod are 8 pods; 41 are within the tolerance of 8 pods; from 0 the metric alone counts."""
    keda = HpaSettings(metric="stream", target=5)
    assert per_pod_replicas(40, keda, 2) == 8
    assert per_pod_replicas(41, keda, 8) == 8
    assert per_pod_replicas(50, keda, 8) == 10
    assert per_pod_replicas(3, keda, 0) == 1


class Seen:
    """A view with one role."""

    def __init__(self, desired: int) -> None:
        model = RoleModel(name="policy", slots=4, service_seconds=20)
        self.pool = Pool(model, [(60.0, 60.0, False)], 1.0)
        self.pool.desired = desired
        self.pools = {"policy": self.pool}
        self.scrape: Scrape | None = None

    def ask(self, scaler: HpaScaler, now: float, backlog: int) -> int:
        while len(self.pool.replicas) < self.pool.desired:
            self.pool.add(now, warm=True)
        metrics = RoleMetrics(busy_seconds=0, completed_groups=0, backlog_groups=backlog)
        self.scrape = Scrape(now, {"policy": metrics}, {"policy": backlog}, {"policy": 0.0}, None)
        for order in scaler.decide(self, now):
            self.pool.desired = order.replicas  # type: ignore[union-attr]
        del self.pool.replicas[self.pool.desired :]
        return self.pool.desired


def scaler(**more: object) -> HpaScaler:
    settings: dict[str, object] = {"metric": "stream", "target": 5.0}
    return HpaScaler("hpa", {"policy": HpaSettings(**(settings | more))})  # type: ignore[arg-type]


def test_scale_up_by_the_larger_of_four_pods_and_double_every_15_seconds() -> None:
    """From 1 towards 40: 5, 10, 20, 40."""
    seen, hpa = Seen(1), scaler()
    assert [seen.ask(hpa, 15.0 * tick, 200) for tick in range(1, 5)] == [5, 10, 20, 40]


def test_scale_down_waits_for_the_highest_of_300_seconds() -> None:
    """The number falls once the last high recommendation is 300 s old, and then at once."""
    seen, hpa = Seen(8), scaler()
    assert seen.ask(hpa, 15.0, 40) == 8
    numbers = [seen.ask(hpa, 15.0 * tick, 10) for tick in range(2, 23)]
    assert numbers[:19] == [8] * 19
    assert numbers[-1] == 2


def test_an_old_recommendation_holds_the_number_and_never_raises_it() -> None:
    """40 were wanted, the rate limit gave 5, and now 4 would do: it stays at 5."""
    seen, hpa = Seen(1), scaler()
    assert seen.ask(hpa, 15.0, 200) == 5
    assert seen.ask(hpa, 30.0, 20) == 5


def test_keda_goes_to_zero_after_the_cooldown_and_back_with_the_first_group() -> None:
    """An HPA alone stays at one."""
    seen, keda = Seen(1), scaler(minimum=0, cooldown_seconds=300.0)
    assert seen.ask(keda, 30.0, 3) == 1
    numbers = [seen.ask(keda, 30.0 * tick, 0) for tick in range(2, 14)]
    assert numbers[0] == 1
    assert numbers[-1] == 0
    assert seen.ask(keda, 450.0, 2) == 1
    alone, hpa = Seen(1), scaler()
    assert [alone.ask(hpa, 15.0 * tick, 0) for tick in range(1, 40)][-1] == 1


def test_without_metrics_an_hpa_stands_still() -> None:
    """As the controller does."""
    assert list(scaler().decide(Seen(3), 15.0)) == []


def test_the_grid_holds_every_family_and_names_are_unique() -> None:
    """Each family is tried with several targets and windows."""
    tried = grid()
    assert len(tried) == 126
    assert len({one.name for one in tried}) == len(tried)
    assert {one.family for one in tried} == set(DEFAULTS) == {"hpa-cpu", "hpa-backlog", "keda"}
