"""The table of a chart's values, made from the lines `# -- …` above its keys. `make chart-docs` writes it there.

A key that has such a line is a row; a map without one is a heading of the keys below it. So a key that nobody explained
is missing from the table, which a test notices.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

BEGIN, END = "<!-- values -->", "<!-- /values -->"
_MARK = "# -- "


def rows(text: str) -> Iterator[tuple[str, Any, str]]:
    """Path, default and meaning of each key that has a line of its own, in the file's order."""
    root = yaml.compose(text)
    if isinstance(root, yaml.MappingNode):
        yield from _rows(root, text.splitlines(), "")


def table(text: str) -> str:
    """The Markdown table for the text of a values.yaml."""
    lines = ["| value | default | meaning |", "|---|---|---|"]
    for path, default, meaning in rows(text):
        shown = json.dumps(default, ensure_ascii=False).replace("|", "\\|")
        lines.append(f"| `{path}` | `{shown}` | {meaning} |")
    return "\n".join(lines)


def with_table(readme: str, values: str) -> str:
    """The README with the table between its two marks."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table(values)}\n{END}{after}"


def _rows(node: yaml.MappingNode, lines: list[str], prefix: str) -> Iterator[tuple[str, Any, str]]:
    for key, value in node.value:
        path = f"{prefix}{key.value}"
        meaning = _above(lines, key.start_mark.line)
        if meaning:
            yield path, _plain(value), meaning
        elif isinstance(value, yaml.MappingNode):
            yield from _rows(value, lines, f"{path}.")


def _above(lines: list[str], number: int) -> str:
    line = lines[number - 1].strip() if number else ""
    return line.removeprefix(_MARK) if line.startswith(_MARK) else ""


def _plain(node: yaml.Node) -> Any:
    return yaml.safe_load(yaml.serialize(node))


def main() -> None:
    """Write the table into the README of the chart whose folder is given."""
    chart = Path(sys.argv[1])
    readme = chart / "README.md"
    readme.write_text(with_table(readme.read_text(), (chart / "values.yaml").read_text()))


if __name__ == "__main__":
    main()
