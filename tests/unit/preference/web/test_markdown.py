"""Texts of models become harmless HTML, or text."""

from __future__ import annotations

import re

import pytest

from services.preference.web.markdown import as_text, to_html

_TAG = re.compile(r"<(/?)([a-z0-9]+)([^>]*)>")
_HARMLESS = {"p", "br", "em", "strong", "code", "pre", "ul", "ol", "li", "blockquote", "a", "h1", "h2"}


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "![x](javascript:alert(1))",
        "[x](javascript:alert(1))",
        "[x](JaVa\nScRiPt:alert(1))",
        "[x](&#106;avascript:alert(1))",
        "[x](data:text/html,<script>alert(1)</script>)",
        "<javascript:alert(1)>",
        "[x]: javascript:alert(1)\n\n[x]",
        '<a href="javascript:alert(1)" onclick="alert(1)">x</a>',
        "<svg onload=alert(1)>",
        "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
        "<style>*{display:none}</style>",
        "<math><mtext></p><style><img src=x onerror=alert(1)></style>",
        '[x](https://example.org "a\\" onmouseover=\\"alert(1)")',
        "<!--><script>alert(1)</script>-->",
        "```html\n<script>alert(1)</script>\n```",
    ],
)
def test_nothing_in_a_text_becomes_code(text: str) -> None:
    """Only harmless tags come out, the only attributes are of links, and no link leads into a script."""
    made = to_html(text)
    for _, name, attributes in _TAG.findall(made):
        assert name in _HARMLESS, made
        given = re.findall(r'\s([\w-]+)="([^"]*)"', attributes)
        assert {key for key, _ in given} <= ({"href", "rel", "target"} if name == "a" else set()), made
        for key, value in given:
            assert key != "href" or value.startswith(("https://", "http://", "mailto:")), made


def test_markdown_looks_like_markdown() -> None:
    """Emphasis, lists, code and tables are rendered; a line's end stays one; links leave nothing behind."""
    made = to_html(
        "**a** *b*\nc\n\n- d\n\n`e < f`\n\n|g|h|\n|-|-|\n|1|2|\n\n[i](https://example.org/?a=1&b=2)"
    )
    for part in (
        "<strong>a</strong> <em>b</em><br>",
        "<li>d</li>",
        "<code>e &lt; f</code>",
        "<td>1</td>",
        'href="https://example.org/?a=1&amp;b=2"',
        'rel="noopener noreferrer nofollow"',
        'target="_blank"',
    ):
        assert part in made


def test_an_image_is_never_asked_for() -> None:
    """Its address stays a link: opening the page tells nobody anything."""
    made = to_html("![a cat](https://example.org/cat.png)")
    assert "<img" not in made
    assert "a cat" in made


def test_text_stays_text_when_it_is_long_or_wanted() -> None:
    """Beyond 50,000 characters, and where Markdown is off, a text is shown as it is, escaped."""
    assert to_html("*x*" * 20_000).startswith('<p class="plain">*x**x*')
    assert as_text("<b>\n") == '<p class="plain">&lt;b&gt;\n</p>'
