"""docs/operations.md says what is true: its commands exist, its arithmetic is right, every alarm has its line."""

from __future__ import annotations

import base64
import importlib.util
import json
import math
import re
import shlex
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from orchestrator.cluster import conditions
from orchestrator.cluster.kinds import TrainingRun
from orchestrator.cluster.names import RunNames
from orchestrator.cluster.render import redis_secret
from orchestrator.cluster.render.options import PORTS
from orchestrator.queue_users import QueueUsers
from services.learner.run import EARLY_STEPS, UNACKNOWLEDGED_BYTES
from tests.fakes.commands import flags, unknown_to_trimtab
from tests.integration.charts.examples import OBJECTS
from tests.integration.charts.rendering import ROOT, binary
from tests.unit.deploy.monitoring import ALERTS, rules

PAGE = ROOT / "docs" / "operations.md"
TEXT = PAGE.read_text(encoding="utf-8")
PROGRAMS = ("trimtab", "kubectl", "helm", "docker", "python")


def commands() -> Iterator[str]:
    """Lines of code blocks, and code within lines, that call a program."""
    for block in re.findall(r"^```\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE):
        yield from (line for line in block.splitlines() if line.strip())
    for inline in re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)):
        if inline.split()[0] in PROGRAMS and len(inline.split()) > 1:
            yield inline


def words(command: str) -> list[str]:
    """As the shell splits it; no comment, nothing after a redirection."""
    return shlex.split(command.partition(" > ")[0], comments=True)


COMMANDS = list(dict.fromkeys(commands()))


def of(program: str) -> list[str]:
    return [command for command in COMMANDS if words(command)[0] == program]


def test_every_line_of_a_block_calls_a_program_that_is_checked() -> None:
    """So that nothing on the page goes unseen."""
    assert {words(command)[0] for command in COMMANDS} <= set(PROGRAMS)
    assert len(COMMANDS) > 40


@pytest.mark.parametrize("command", of("trimtab"))
def test_our_commands_exist(command: str) -> None:
    """Subcommand and every flag, in the CLI as it is."""
    assert not unknown_to_trimtab(words(command)[1:]), command


@pytest.mark.parametrize("command", [*of("kubectl"), *of("helm")])
def test_commands_of_others_exist(command: str) -> None:
    """kubectl and helm know the subcommand and each flag of it."""
    program, *rest = words(command)
    nested = rest[0] in ("create", "rollout", "get") and program == "kubectl" and rest[0] != "get"
    nested |= (program, rest[0]) == ("helm", "get")
    told = _help(program, *rest[: 2 if nested else 1])
    if program == "kubectl":
        told += _help("kubectl", "options")
    missing = {flag for flag in flags(rest) if not re.search(rf"(^|[\s,]){re.escape(flag)}\b", told)}
    assert not missing, command


@pytest.mark.parametrize("command", [*of("docker"), *of("python")])
def test_files_and_modules_exist(command: str) -> None:
    """Dockerfiles and modules that are named."""
    arguments = words(command)
    if arguments[:2] == ["docker", "build"]:
        assert (ROOT / arguments[arguments.index("-f") + 1]).is_file()
    elif arguments[0] == "python":
        assert importlib.util.find_spec(arguments[arguments.index("-m") + 1]) is not None


def test_every_image_that_is_built_is_pushed() -> None:
    """Nodes pull from the registry, so that an image here alone is of no use."""
    built: list[str] = []
    pushed: list[str] = []
    for arguments in map(words, of("docker")):
        if arguments[1] == "build":
            built.append(arguments[arguments.index("-t") + 1])
        else:
            pushed += arguments[2:]
    assert built == pushed
    assert {re.sub(r".*/|:.*", "", image) for image in built} == {
        "trimtab-operator",
        *(f"trimtab-{role}" for role in PORTS),
    }


def test_reasons_in_the_table_are_those_that_conditions_have() -> None:
    """Each reason on which a run that does not move is looked up is one that conditions.py gives."""
    [table] = re.findall(r"^\| reason \|.*\n\|[-|]+\n((?:\|.*\n)+)", TEXT, re.MULTILINE)
    named = {reason for line in table.splitlines() for reason in re.findall(r"`(\w+)`", line.split("|")[1])}
    there = set(re.findall(r'"([A-Z]\w+)"', Path(conditions.__file__).read_text(encoding="utf-8")))
    assert len(named) > 5 and named <= there


def test_where_the_url_of_dead_letters_comes_from() -> None:
    """The Secret of a run's own server has a URL under the key, and its host gives way to the port-forward's."""
    [command] = [command for command in of("trimtab") if " queue dead " in command]
    run = next(
        item for item in OBJECTS if isinstance(item, TrainingRun) and item.spec.redis.owned is not None
    )
    names = RunNames.of(run)
    secret = redis_secret(run, names, QueueUsers.draw(names.run_uid, run.spec.rollout.slip))
    [key] = re.findall(r"\{\.data\.(\w+)\}", command)
    url = base64.b64decode(secret["data"][key]).decode()
    [(before, after)] = re.findall(r"'s/(.+?)/(.+)/'", command)
    assert re.fullmatch(r"redis://[^@]+@127\.0\.0\.1:6379/0", re.sub(before, after, url))


def test_paths_and_links_lead_somewhere() -> None:
    """Files of the repository in commands, links to files, links within the page."""
    for path in re.findall(r"(?<![\w/.])(?:deploy|services|orchestrator)/[\w./-]+", "\n".join(COMMANDS)):
        assert (ROOT / path).exists(), path
    headings = {
        re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in TEXT.splitlines()
        if line.startswith("#")
    }
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        path, _, anchor = target.partition("#")
        assert not path or (PAGE.parent / path).exists(), target
        assert not anchor or path or anchor in headings, target


def test_every_alarm_has_its_line_and_no_other() -> None:
    """What to do stands there for each alert of deploy/charts/trimtab/alerts."""
    there = {rule["alert"] for alerts in ALERTS.values() for rule in rules(alerts)}
    lines = re.findall(r"^\| `(Trimtab\w+)` \| (.+?) \| (.+?) \|$", TEXT, re.MULTILINE)
    assert sorted(name for name, _, _ in lines) == sorted(there)


def sizing() -> dict[str, list[str]]:
    """The table: row to the cells of 1B, 7B, 70B."""
    [block] = re.findall(r"<!-- sizing -->\n(.*?)<!-- /sizing -->", TEXT, re.DOTALL)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
    return {row[0]: row[1:] for row in rows}


def _numbers(cell: str) -> list[float]:
    return [float(number) for number in cell.split(" by ")]


@pytest.mark.parametrize("column", range(3), ids=["1B", "7B", "70B"])
def test_the_arithmetic_of_sizing_is_right(column: int) -> None:
    """Each figure follows from parameters and shape by the formulas below the table."""
    table = {row: cells[column] for row, cells in sizing().items()}
    parameters = float(table["parameters, 10⁹"])
    layers, width = _numbers(table["layers by width"])
    heads, head_width = _numbers(table["key-value heads by their width"])
    token = 2 * layers * heads * head_width * 2
    weights, cache, state = 2 * parameters, 64 * 1024 * token / 1e9, 20 * parameters
    gpus = math.ceil(state / (0.6 * 80))
    expected = {
        "weights, GB": f"{weights:.1f}",
        "KV cache of a token, KiB": f"{token / 1024:.0f}",
        "KV cache of 64 sequences of 1,024, GB": f"{cache:.1f}",
        "replica of policy, GB": f"{weights + cache:.1f}",
        "replica of reference or reward, GB": f"{weights:.1f}",
        "learner's state, GB": f"{state:.1f}",
        "activations of 4,096 tokens, GB": f"{34 * 4096 * width * layers / 1e9:.1f}",
        "learner's GPUs of 80 GB": f"{gpus if gpus <= 8 else math.ceil(gpus / 8) * 8}",
        "a checkpoint, GB": f"{14 * parameters:.1f}",
        "volume for 3 of them and one being written, GB": f"{4 * 14 * parameters:.0f}",
        "start of a replica at 0.5 GB/s, s": f"{weights / 0.5:.0f}",
        "new weights to one replica at 10 Gbit/s, s": f"{weights / 1.25:.1f}",
    }
    assert {row: table[row] for row in expected} == expected


def test_the_figures_in_the_text_are_right() -> None:
    """The network of eight policies of 7B, and the queue of a large batch."""
    last = json.loads((ROOT / "benchmarks/results/weights.json").read_text().splitlines()[-1])["figures"]
    text = TEXT.replace("\n", " ").replace("\N{MULTIPLICATION SIGN}", "x")
    assert f"{last['egress_copies_8']:.2f} times what one does" in text
    assert f"{last['delta_share_1e6']:.2%}".replace("%", " %") in text
    share, copies = round(last["delta_share_1e5"], 3), round(last["egress_copies_8"], 2)
    step = copies * share * 15.2
    assert f"{copies} x {share:.1%}".replace("%", " %") + f" x 15.2 GB = {step:.2f} GB" in text
    assert f"in 60 s {step * 8 / 60:.2f} Gbit/s" in text
    assert f"{256 * 4 * 1024 * 16 * 3 / 1e6:.0f} MB" in TEXT
    step = 256 * 4 * 1024 * 16 / 1e6
    assert f"10 x {step:.0f} MB = {10 * step:.0f} MB" in text
    assert f"{UNACKNOWLEDGED_BYTES >> 20} MiB and one step, or {EARLY_STEPS} steps" in text


@cache
def _help(program: str, *subcommand: str) -> str:
    arguments = ["options"] if subcommand == ("options",) else [*subcommand, "--help"]
    ran = subprocess.run([binary(program), *arguments], capture_output=True, text=True, timeout=30)
    assert ran.returncode == 0 and "unknown" not in ran.stdout.lower()[:80], ran.stderr
    return ran.stdout
