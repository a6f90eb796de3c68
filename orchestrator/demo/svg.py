"""Writing SVG elements with everything escaped. Knows no chart."""

from __future__ import annotations

from markupsafe import Markup

Attribute = str | float


def _worded(value: Attribute) -> str:
    """Coordinates with at most two decimals: the page stays small and the eye sees no difference."""
    return value if isinstance(value, str) else f"{round(float(value), 2) + 0.0:g}"


def element(name: str, *content: str, **attributes: Attribute) -> Markup:
    """One element; `class_` becomes class, `aria_label` aria-label. `content` is escaped unless Markup."""
    written = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _worded(value))
        for key, value in attributes.items()
    )
    inner = Markup("").join(content)
    return Markup("<{0}{1}>{2}</{0}>").format(name, written, inner)


def text(content: str, x: float, y: float, kind: str) -> Markup:
    """A line of text with its baseline at y; `kind` are classes of the page's style sheet."""
    return element("text", content, class_=kind, x=x, y=y)


def line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    """A straight line."""
    return element("line", class_=kind, x1=x1, y1=y1, x2=x2, y2=y2)


def dot(kind: str, x: float, y: float, radius: float) -> Markup:
    """A circle."""
    return element("circle", class_=kind, cx=x, cy=y, r=radius)


def drawing(
    kind: str, width: float, height: float, spoken: str, *content: Markup, **more: Attribute
) -> Markup:
    """A whole picture, `spoken` being what it says to those who cannot see it."""
    return element(
        "svg",
        *content,
        class_=kind,
        viewBox=f"0 0 {_worded(width)} {_worded(height)}",
        role="img",
        aria_label=spoken,
        **more,
    )
