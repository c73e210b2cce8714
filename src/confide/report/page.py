"""The skeleton of every page: one file, no network, escaped text, readable on a phone, on a desk and on paper."""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from confide.report.format import escape

# Nothing may be fetched or run, even if a text that someone typed were to slip through unescaped.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
UNPROTECTED = "unprotected figures, must not leave"


@dataclass(frozen=True)
class Section:
    """A heading and its finished HTML; sections without content are left out."""

    anchor: str
    heading: str
    body: str


def page(
    title: str, sections: Sequence[Section], *, subtitle: str = "", opening: str = "", stamp: str = "", footer: str = ""
) -> str:
    """Put a page together.

    Parameters
    ----------
    title, subtitle : str
        Escaped here.
    sections : sequence of Section
        Their bodies are HTML made by this package.
    opening : str
        HTML before the first section.
    stamp : str
        Warning at the top of the page and of every printed page.
    footer : str
        Escaped here.

    Returns
    -------
    str
        A complete HTML document.
    """
    shown = [s for s in sections if s.body]
    links = "".join(f'<li><a href="#{escape(s.anchor)}">{escape(s.heading)}</a></li>' for s in shown)
    body = "".join(f'<section id="{escape(s.anchor)}"><h2>{escape(s.heading)}</h2>{s.body}</section>' for s in shown)
    mark = f'<div class="stamp" role="note"><p>{escape(stamp)}</p></div>' if stamp else ""
    below = f'<p class="sub">{escape(subtitle)}</p>' if subtitle else ""
    contents = f'<nav aria-label="On this page"><ul>{links}</ul></nav>' if len(shown) > 2 else ""
    ending = f"<footer>{escape(footer)}</footer>" if footer else ""
    tab = f"{title} ({stamp})" if stamp else title
    kind = "page internal" if stamp else "page"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="robots" content="noindex">'
        '<meta name="referrer" content="no-referrer"><meta name="color-scheme" content="light">'
        f"<title>{escape(tab)}</title><style>{_css()}</style></head>\n"
        f'<body><div class="{kind}">{mark}<main><div><header><h1>{escape(title)}</h1>{below}</header>'
        f"{opening}{contents}{body}{ending}</div></main></div></body></html>\n"
    )


def paragraph(text: str, css: str = "") -> str:
    """Return an escaped paragraph."""
    return f'<p class="{css}">{escape(text)}</p>' if css else f"<p>{escape(text)}</p>"


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Return a list of (name, value), escaped."""
    return (
        '<dl class="facts">' + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in pairs) + "</dl>"
        if pairs
        else ""
    )


def bullets(items: Sequence[str]) -> str:
    """Return an escaped list."""
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>" if items else ""


def cards(items: Sequence[tuple[str, str]]) -> str:
    """Return a row of (figure, meaning), escaped."""
    return (
        '<ul class="cards">'
        + "".join(f"<li><b>{escape(k)}</b><span>{escape(v)}</span></li>" for k, v in items)
        + "</ul>"
    )


def beside(items: Sequence[str]) -> str:
    """Put figures beside each other where there is room."""
    return f'<div class="figures">{"".join(items)}</div>' if items else ""


def code(text: str) -> str:
    """Return an escaped block of code."""
    return f"<pre><code>{escape(text)}</code></pre>"


@cache
def _css() -> str:
    return importlib.resources.files("confide.report").joinpath("page.css").read_text(encoding="utf-8")
