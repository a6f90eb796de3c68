"""GET /docs: the OpenAPI page for people, one file of plain HTML. Needs no script and nothing from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from typing import Any

_STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
code,pre{font:14px/1.45 ui-monospace,monospace}pre{background:#f4f4f4;padding:.7rem;overflow-x:auto}
summary{cursor:pointer}b{display:inline-block;min-width:4.5rem}td{padding:.1rem 1rem .1rem 0;vertical-align:top}
@media(prefers-color-scheme:dark){body{background:#111;color:#ddd}pre{background:#222}a{color:#9cf}}"""


def page(openapi: dict[str, Any]) -> str:
    """The whole page."""
    title = escape(openapi["info"]["title"])
    operations = "\n".join(_operations(openapi))
    schemas = "\n".join(_schemas(openapi))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"<h1>{title}</h1><p>{escape(openapi['info'].get('description', ''))}</p>"
        f'<p>For programs: <a href="openapi.json">openapi.json</a>.</p>'
        f"<h2>Operations</h2>{operations}<h2>Bodies</h2>{schemas}</html>"
    )


def _operations(openapi: dict[str, Any]) -> Iterator[str]:
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            rows = "".join(
                f"<tr><td><code>{escape(status)}</code><td>{escape(response['description'])}"
                for status, response in operation["responses"].items()
            )
            parameters = "".join(
                f"<tr><td><code>{escape(one['name'])}</code> ({escape(one['in'])})"
                f"<td>{escape(one.get('description', ''))}"
                for one in operation.get("parameters", ())
            )
            yield (
                f"<details><summary><b>{method.upper()}</b><code>{escape(path)}</code> "
                f"{escape(operation.get('summary', ''))}</summary>"
                f"<p>{escape(operation.get('description', ''))}</p>{_body(operation)}"
                f"<table>{parameters}</table><table>{rows}</table></details>"
            )


def _body(operation: dict[str, Any]) -> str:
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if content is None:
        return ""
    name = content["schema"]["$ref"].rpartition("/")[2]
    return f'<p>Body: <a href="#{escape(name)}"><code>{escape(name)}</code></a></p>'


def _schemas(openapi: dict[str, Any]) -> Iterator[str]:
    for name, schema in sorted(openapi["components"]["schemas"].items()):
        text = escape(json.dumps(schema, indent=2))
        heading = f"<summary><code>{escape(name)}</code></summary>"
        yield f'<details id="{escape(name)}" open>{heading}<pre>{text}</pre></details>'
