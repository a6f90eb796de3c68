"""`trimtab plan` and `trimtab simulate` as a person meets them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.planning.spec import Auto, Static
from orchestrator.planning_files import read_plan
from services.common.errors import ConfigError

RUN = """
rollout: {batchGroups: 60, maxStaleness: 6}
pools: {a100: 9}
roles:
  policy: {pool: a100, price: 2, slots: 4, startupSeconds: 200, scaling: {mode: Auto, min: 1, max: 20}}
  reference: {slots: 4, secondsPerGroup: 8, scaling: {mode: Static, replicas: 2}}
  reward: {price: 0.5, slots: 4, scaling: {mode: External}}
  learner: {price: 8}
"""
TRAINING_RUN = """
apiVersion: trimtab.dev/v1alpha1
kind: TrainingRun
metadata: {name: hh}
spec:
  model: {path: /models/policy}
  data: {prompts: /data/prompts.jsonl}
  rewards:
    - {stage: reward/helpful, path: /models/reward}
    - {stage: reward/short, rule: "repetition:n=4", role: {replicas: 3}}
  rollout: {batchGroups: 60, maxStaleness: 6, slip: [policy, reference, reward/helpful, reward/short]}
  storage: {pvc: {claimName: runs}}
  redis: {urlSecret: {name: queue, key: url}}
  roles:
    policy: {slots: 4, price: 2, pool: a100, scaling: {mode: Auto, min: 1, max: 8, poolLimit: 9}}
    reference: {slots: 4, replicas: 2}
    learner: {price: 8}
"""
OBSERVED = {
    "at": 1000.0,
    "roles": {
        "policy": {
            "desired": 3,
            "replicas": [{"name": "policy-0", "state": "ready", "held_groups": 4}],
            "metrics": {"busy_seconds": 640.0, "completed_groups": 32, "backlog_groups": 80},
        },
        "reference": {"desired": 2},
        "reward": {"desired": 4},
    },
    "learner": {"step_seconds": [30.0], "ready_groups": 300},
}


def invoke(folder: Path, *more: str, run: str = RUN, observed: object = OBSERVED) -> str:
    (folder / "run.yaml").write_text(run)
    (folder / "obs.json").write_text(json.dumps(observed))
    result = CliRunner().invoke(
        app,
        ["plan", "-f", str(folder / "run.yaml"), "--observed", str(folder / "obs.json"), *more],
        catch_exceptions=False,
    )
    assert result.exit_code == 0
    return result.stdout


def test_plan_prints_the_arithmetic(tmp_path: Path) -> None:
    """60 groups in 30 s are 2 groups/s; the static reference lets 1 through: five policy replicas of 20 s."""
    page = json.loads(invoke(tmp_path, "-o", "json"))
    assert page["flow"]["learner"] == pytest.approx(2.0)
    assert page["flow"]["planned"] == pytest.approx(1.0)
    assert page["flow"]["bound"] == "reference is held at 2"
    (action,) = page["actions"]
    assert (action["kind"], action["role"], action["replicas"]) == ("Scale", "policy", 5)
    text = invoke(tmp_path)
    assert "60 groups / 30 s = 2 groups/s" in text
    assert "scale policy to 5" in text
    assert "policy: 2 more: 5 must be there; reference is held at 2" in text


def test_a_training_run_is_read_as_the_operator_reads_it(tmp_path: Path) -> None:
    """Each reward stage is a role, Static is the default and its number stands at the role, pools have limits."""
    (tmp_path / "run.yaml").write_text(TRAINING_RUN)
    spec = read_plan(tmp_path / "run.yaml")
    assert {role.name: role.scaling for role in spec.roles} == {
        "policy": Auto(1, 8),
        "reference": Static(2),
        "reward-helpful": Static(1),
        "reward-short": Static(3),
    }
    assert (spec.pools, spec.learner_price, spec.max_staleness) == ({"a100": 9}, 8.0, 6)


def seen(**more: object) -> dict[str, object]:
    """OBSERVED with other values for the policy."""
    roles = OBSERVED["roles"]
    assert isinstance(roles, dict)
    return OBSERVED | {"roles": roles | {"policy": roles["policy"] | more}}


MODEL = """
apiVersion: trimtab.dev/v1alpha1
kind: RewardModel
metadata: {name: hh}
spec:
  source: {rule: sentiment}
  scaling: {mode: Auto, min: 1, max: 8}
"""
ASKED = {
    "at": 15.0,
    "role": {"desired": 1, "replicas": [{"name": "hh-0", "state": "ready", "held_groups": 2}]},
    "metrics": {
        "seconds": 15,
        "busy_seconds": 14,
        "rows": 1400,
        "passes": 50,
        "tokens": 140000,
        "waiting": 300,
    },
    "runs_will": 40,
}


def test_plan_of_a_reward_model(tmp_path: Path) -> None:
    """1,400 rows in 15 s, 40 more a second to come, 300 in a minute: 1.38 replicas of 10 ms a row, so two."""
    page = json.loads(invoke(tmp_path, "-o", "json", run=MODEL, observed=ASKED))
    assert page["load"] == pytest.approx((1400 / 15 + 40 + 300 / 60) * 0.01)
    assert [(action["kind"], action["replicas"]) for action in page["actions"]] == [("Scale", 2)]
    text = invoke(tmp_path, run=MODEL, observed=ASKED)
    assert "93.33 rows/s + 40 that runs will send" in text
    assert "(133.3 rows/s + 300 waiting / 60 s) * 0.01 s = 1.38 replicas" in text
    assert "scale hh to 2" in text


@pytest.mark.parametrize(
    ("run", "observed", "told"),
    [
        ("roles: {policy: {scaling: {mode: Auto, min: 3, max: 2}}}", OBSERVED, "0 <= min <= max"),
        ("roles: {policy: {scaling: {mode: Sometimes}}}", OBSERVED, "expected mode Auto, Static or External"),
        ("roles: {policy: {scaling: {min: 3}}}", OBSERVED, "policy.scaling: mode is missing"),
        ("roles: {policy: {slotz: 3}}", OBSERVED, "roles.policy.slotz: no such field"),
        ("roles: {policy: {slots: many}}", OBSERVED, "roles.policy.slots: expected a valid integer"),
        ("roles: {policy: {price: .nan}}", OBSERVED, "price: expected a finite number"),
        ("roles: {policy: }", OBSERVED, "roles.policy: expected fields"),
        ("{pools: {a100: -1}, roles: {policy: {}}}", OBSERVED, "pools.a100: expected a number greater"),
        ("roles: {learner: {}}", OBSERVED, "at least one beside the learner"),
        ("a: [", OBSERVED, "is not YAML"),
        ("- 1", OBSERVED, "expected a TrainingRun"),
        (TRAINING_RUN.replace("slots", "slotz"), OBSERVED, "slotz"),
        (RUN, {"roles": {}}, "at: is missing"),
        (RUN, [], "expected an object"),
        (RUN, OBSERVED | {"learner": {"redy_groups": 3}}, "learner.redy_groups: no such field"),
        (RUN, seen(desired=-1), "roles.policy.desired: expected a number of at least 0, found -1"),
        (RUN, seen(startup_seconds=float("nan")), "startup_seconds: expected a number of at least 0"),
        (RUN, seen(replicas=[{"name": "a", "state": "happy"}]), "replicas.0.state: expected 'starting'"),
        (RUN, OBSERVED | {"roles": {"polciy": {"desired": 1}}}, "roles.polciy: the run has no such role"),
        (MODEL, {"at": 1.0}, "role: is missing"),
        (MODEL, ASKED | {"runs_wil": 4}, "runs_wil: no such field"),
        (MODEL.replace("Auto", "Sometimes"), ASKED, "scaling.mode"),
    ],
)
def test_what_a_person_writes_wrong_is_one_line(
    tmp_path: Path, run: str, observed: object, told: str
) -> None:
    """File, field and what was expected; no stack trace (ConfigError ends with one line and status 2)."""
    with pytest.raises(ConfigError, match=told) as caught:
        invoke(tmp_path, run=run, observed=observed)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("run.yaml", None, "no such file"),
        ("obs.json", None, "no such file"),
        ("run.yaml", b"\xff", "expected UTF-8"),
        ("obs.json", b"\xff", "expected UTF-8"),
        ("obs.json", b'{"at": 1', "Invalid JSON: EOF"),
        ("obs.json", b"", "Invalid JSON: EOF"),
        ("run.yaml", b"[" * 5000, "is not YAML"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(
    tmp_path: Path, file: str, text: bytes | None, told: str
) -> None:
    """Missing, no text, cut off: the file and why."""
    (tmp_path / "run.yaml").write_text(RUN)
    (tmp_path / "obs.json").write_text(json.dumps(OBSERVED))
    (tmp_path / file).unlink()
    if text is not None:
        (tmp_path / file).write_bytes(text)
    with pytest.raises(ConfigError, match=f"{file}: .*{told}") as caught:
        CliRunner().invoke(
            app,
            ["plan", "-f", str(tmp_path / "run.yaml"), "--observed", str(tmp_path / "obs.json")],
            catch_exceptions=False,
        )
    assert "\n" not in str(caught.value)


def test_a_moment_before_the_observation_is_refused(tmp_path: Path) -> None:
    """--now is in the clock of the file."""
    with pytest.raises(ConfigError, match="--now: expected at least 1000"):
        invoke(tmp_path, "--now", "10")


def test_simulate_writes_its_report(tmp_path: Path) -> None:
    """Auto beside the three others, as JSON, and the page."""
    out = tmp_path / "page.html"
    result = CliRunner().invoke(
        app,
        ["simulate", "--hours", "1", "--shape", "steady", "--out", str(out), "-o", "json"],
        catch_exceptions=False,
    )
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert told["scalers"][0]["scaler"] == "Auto"
    assert len(told["scalers"]) == 4
    assert 0 < told["optimum_cost_per_thousand"] <= told["scalers"][0]["cost_per_thousand"]
    assert out.read_text().startswith("<!doctype html>")
