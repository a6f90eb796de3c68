"""Owns how a model's text becomes HTML: never as it says itself. Pure.

    text ─▶ markdown-it-py, raw HTML shown as text, javascript: links shown as text ─▶ nh3: a short list of tags

Two libraries, so that a hole in one is not a hole in the page; the page's content security policy is the third.
"""

from __future__ import annotations

import functools
import html

import nh3
from markdown_it import MarkdownIt

_PARSER = (
    MarkdownIt("commonmark", {"html": False, "breaks": True})
    .enable(["table", "strikethrough"])
    .disable(["image", "html_block", "html_inline"])  # an image would tell a stranger who reads, and when
)
_TAGS = {
    *("p", "br", "hr", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "ul", "ol", "li"),
    *("em", "strong", "s", "code", "pre", "a", "table", "thead", "tbody", "tr", "th", "td"),
}
_SCHEMES = {"http", "https", "mailto"}
# Beyond this, reading is not made easier by markup, and parsing takes long.
_LONGEST = 50_000


@functools.lru_cache(maxsize=4096)
def to_html(text: str) -> str:
    """A text as Markdown, in HTML of a few harmless tags; links open elsewhere and tell nothing about us."""
    if len(text) > _LONGEST:
        return as_text(text)
    return nh3.clean(
        _PARSER.render(text),
        tags=_TAGS,
        attributes={"*": set(), "a": {"href"}},
        url_schemes=_SCHEMES,
        link_rel="noopener noreferrer nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}},
    )


def as_text(text: str) -> str:
    """A text as it is."""
    return f'<p class="plain">{html.escape(text)}</p>'
