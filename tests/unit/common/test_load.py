"""Configuration files: what is read, and the exact line that a mistake gives."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field, SecretStr

from services.common.errors import ConfigError
from services.common.spec.base import Spec
from services.common.spec.load import load_toml
from services.common.spec.run import RunSpec
from services.common.spec.service import ServerSpec, ServiceSpec


class Row(Spec):
    name: str
    weight: float = Field(1.0, ge=0)


class Link(Spec):
    url: SecretStr


class Document(ServiceSpec):
    """Everything that a real configuration has: tables, arrays of tables, bounds, secrets."""

    required: str
    rows: tuple[Row, ...] = ()
    link: Link | None = None
    label: str = Field("", pattern="^[a-z]*$")


def write(folder: Path, text: str) -> Path:
    path = folder / "a.toml"
    path.write_text(text, encoding="utf-8")
    return path


def message(folder: Path, text: str, *overrides: str) -> str:
    """The error's text with the file's folder taken off."""
    with pytest.raises(ConfigError) as caught:
        load_toml(write(folder, text), Document, overrides)
    return str(caught.value).replace(f"{folder}/", "")


def test_file_and_overrides(tmp_path: Path) -> None:
    """Fields come from the file, and --set wins; values are TOML, or plain text where they are none."""
    path = write(tmp_path, 'required = "a"\n[server]\nport = 1\n[[rows]]\nname = "x"\n[[rows]]\nname = "y"\n')
    overrides = ["server.port=7", "rows.1.weight=2.5", "required=some/path", 'log.level="debug"']
    document = load_toml(path, Document, overrides)
    assert document.server == ServerSpec(port=7)
    assert document.required == "some/path"
    assert [row.weight for row in document.rows] == [1.0, 2.5]
    assert document.log.level == "debug"


def test_without_a_file() -> None:
    """A configuration may come from flags alone."""
    assert load_toml(None, Document, ["required=x"]).required == "x"


ERRORS = [
    pytest.param(
        'required = "a"\n\n[server]\nport = "many"\n',
        "a.toml:4: server.port: expected a valid integer, got 'many'",
        id="type",
    ),
    pytest.param(
        'required = "a"\n[server]\n# a comment\nport = 70000\n',
        "a.toml:4: server.port: expected less than or equal to 65535, got 70000",
        id="bound",
    ),
    pytest.param(
        'required = "a"\n[server]\nprot = 1\n', "a.toml:3: server.prot: there is no such field", id="unknown"
    ),
    pytest.param(
        "[server]\nport = 1\n", "a.toml:1: required: expected a value, none is given", id="missing at the top"
    ),
    pytest.param(
        'required = "a"\n[[rows]]\nname = "x"\n[[rows]]\nweight = 1\n',
        "a.toml:4: rows.1.name: expected a value, none is given",
        id="missing in the second of an array of tables",
    ),
    pytest.param(
        'required = """\n[server]\nport = 3\n"""\n[[rows]]\nname = "x"\nweight = -1\n',
        "a.toml:7: rows.0.weight: expected greater than or equal to 0, got -1",
        id="after a text of many lines",
    ),
    pytest.param(
        'required = "a"\nserver.port = 1.5\n',
        "a.toml:2: server.port: expected a valid integer, got 1.5",
        id="dotted key",
    ),
    pytest.param(
        'required = "a"\nserver = { max_message_mib = 0 }\n',
        "a.toml:2: server.max_message_mib: expected greater than or equal to 1, got 0",
        id="inline table",
    ),
    pytest.param(
        'required = "a"\nlabel = "Capital"\n',
        "a.toml:2: label: expected a string that matches pattern '^[a-z]*$', got 'Capital'",
        id="pattern",
    ),
    pytest.param(
        'required = "a"\n[log]\nlevel = "loud"\n',
        "a.toml:3: log.level: expected 'debug', 'info', 'warning' or 'error', got 'loud'",
        id="choice",
    ),
    pytest.param(
        'required = "a"\n[link]\nurl = ["redis://:hunter2@host"]\n',
        "a.toml:3: link.url: expected a valid string, got another value",
        id="a secret is not shown",
    ),
    pytest.param(
        'required = "a"\nlink = "redis://:hunter2@host"\n',
        "a.toml:2: link: expected a valid dictionary or instance of Link, got another value",
        id="a URL with a password is shown nowhere",
    ),
    pytest.param(
        'required = 1\n[server]\nport = "x"\n',
        "a.toml:1: required: expected a valid string, got 1 (and 1 more)",
        id="several",
    ),
    pytest.param(
        "[server]\nport = 12x\n",
        "a.toml:2: server.port: expected valid TOML: expected newline or end of document after a statement "
        "at column 10",
        id="syntax",
    ),
    pytest.param(
        "[server]\nport =\n",
        "a.toml:2: server.port: expected valid TOML: invalid value at column 7",
        id="no value",
    ),
    pytest.param(
        '[server]\nhost = "unclosed\n',
        "a.toml:2: server.host: expected valid TOML: illegal character '\\n' at column 17",
        id="unclosed text",
    ),
    pytest.param(
        "[server\nport = 1\n",
        "a.toml:1: server: expected valid TOML: expected ']' at the end of a table declaration at column 8",
        id="unclosed table",
    ),
]


@pytest.mark.parametrize(
    ("lease", "renew", "fits"), [(5, 1.25, True), (2, 1, True), (2, 1.25, False), (1, 3, False)]
)
def test_a_lease_is_renewed_before_it_ends(tmp_path: Path, lease: float, renew: float, fits: bool) -> None:
    """Else whoever works longer than a lease loses its groups: a renewal may be late, so there is time for two."""
    queue = f'[queue]\nurl = "redis://h"\nrun_uid = "r"\nlease_seconds = {lease}\nrenew_seconds = {renew}\n'
    text = f'required = "a"\n{queue}'
    if fits:
        assert load_toml(write(tmp_path, text), Document).queue is not None
        return
    expected = f"expected renew_seconds of at most half of lease_seconds = {lease}, got {renew}"
    assert message(tmp_path, text) == f"a.toml:2: queue: {expected}"


RUN = 'reward_model = "rule:sentiment"\nmodel.path = "m"\ndata.prompts = "p.jsonl"\n'
RUN_ERRORS = [
    pytest.param(
        "[sampling]\nmin_new_tokens = 40\n",
        "a.toml:4: sampling: expected min_new_tokens of at most max_new_tokens = 32, got 40",
        id="no completion has so many tokens",
    ),
    pytest.param(
        '[rollout]\nslip = ["policy", "reward", "reward"]\n',
        "a.toml:1: configuration: rollout.slip: expected each stage once; a score that is given twice counts twice",
        id="a stage twice",
    ),
    pytest.param(
        '[rollout]\nslip = ["reference", "policy", "reward"]\n',
        "a.toml:1: configuration: rollout.slip: expected policy first; the others work on what it generates",
        id="a stage before there is anything",
    ),
    pytest.param(
        '[rollout]\nslip = ["reward"]\n',
        "a.toml:1: configuration: rollout.slip: expected policy first; the others work on what it generates",
        id="nobody generates",
    ),
]


@pytest.mark.parametrize(("text", "expected"), RUN_ERRORS)
def test_what_no_run_can_do_is_told(tmp_path: Path, text: str, expected: str) -> None:
    """Before anything is started, in words."""
    with pytest.raises(ConfigError) as caught:
        load_toml(write(tmp_path, RUN + text), RunSpec)
    assert str(caught.value).replace(f"{tmp_path}/", "") == expected


@pytest.mark.parametrize(("text", "expected"), ERRORS)
def test_error_names_file_line_field(tmp_path: Path, text: str, expected: str) -> None:
    """A mistake gives one line: file, line, field, what was expected."""
    assert message(tmp_path, text) == expected


def test_mistake_in_an_override(tmp_path: Path) -> None:
    """A mistake on the command line is reported as such, not with a line of the file."""
    text = 'required = "a"\n[server]\nport = 1\n'
    assert message(tmp_path, text, "server.port=-1") == (
        "--set server.port: expected greater than or equal to 0, got -1"
    )
    assert message(tmp_path, text, "server.port") == (
        "--set server.port: expected field=value, for example server.port=50053"
    )
    assert message(tmp_path, text, "server.port.x=1") == "--set server.port.x=1: x: there is no such field"
    assert message(tmp_path, text, "rows.0.name=x") == "--set rows: expected a valid tuple, got a table"


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    """A file that is not there, is a folder or is no text gives one line."""
    with pytest.raises(ConfigError, match=r"^nope\.toml: no such file or directory$"):
        load_toml(Path("nope.toml"), Document)
    with pytest.raises(ConfigError, match=r": is a directory$"):
        load_toml(tmp_path, Document)
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"b\.toml: expected UTF-8 text$"):
        load_toml(tmp_path / "b.toml", Document)


def test_a_variable_of_the_environment_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """--set-env puts text, never TOML, and wins over --set: a secret needs to stand in no command line."""
    monkeypatch.setenv("PLACE", "12 'quoted\" = 3")
    document = load_toml(
        None, Document, ["required=x", "link.url=none"], ["link.url=PLACE", "required=PLACE"]
    )
    assert document.link is not None
    assert document.link.url.get_secret_value() == document.required == "12 'quoted\" = 3"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("link.url=ABSENT", "--set-env link.url=ABSENT: the variable ABSENT is not set"),
        ("link.url", "--set-env link.url: expected field=VARIABLE, for example queue.url=QUEUE_URL"),
        (".url=HOME", "--set-env .url=HOME: expected field=value, for example server.port=50053"),
    ],
)
def test_a_variable_that_is_not_there_is_told(said: str, told: str) -> None:
    """The line names the flag and the variable, never what it holds."""
    with pytest.raises(ConfigError) as caught:
        load_toml(None, Document, ["required=x"], [said])
    assert str(caught.value) == told
