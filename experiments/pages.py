"""Pages of HTML that stand alone: read offline, on a phone, in the dark and by keyboard."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from neuralosc.analysis.results import cell

STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --soft: #555; --paper: #fff; --line: #d5d5d5; --mark: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #eee; --soft: #b5b5b5; --paper: #161616; --line: #3a3a3a; --mark: #56b4e9; }
  figure img { background: #fff; }
}
body { margin: 0 auto; max-width: 60rem; padding: 1rem; font: 1rem/1.55 system-ui, sans-serif;
  color: var(--ink); background: var(--paper); }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
a { color: var(--mark); } a:focus-visible, summary:focus-visible, [tabindex]:focus-visible {
  outline: 3px solid var(--mark); outline-offset: 2px; }
.skip { position: absolute; left: -99rem; } .skip:focus { position: static; }
.verdict { border-left: 0.3rem solid var(--mark); padding: 0.3rem 0 0.3rem 0.8rem; font-weight: 600; }
.verdict.none { border-color: var(--line); font-weight: 400; }
.rule, .about { color: var(--soft); } .rule { font-size: 0.9rem; }
figure { margin: 1rem 0; } figure img { width: 100%; height: auto; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.85rem; }
th, td { padding: 0.2rem 0.6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child, .words th, .words td { text-align: left; vertical-align: top; }
.beside { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); gap: 0 1.5rem;
  align-items: start; }
li, p, h1, h2, summary { overflow-wrap: anywhere; } pre { font-size: 0.85rem; margin: 0.5rem 0; padding: 0.5rem;
  border: 1px solid var(--line); }
"""


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        name: what it is linked by; unlike all others of the page.
        heading: as text.
        body: as HTML.
    """

    name: str
    heading: str
    body: str


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """A page.

    Args:
        title: as text.
        lead: what stands before the first section, as HTML.
        sections: its parts, each linked at the top.
    """
    title = html.escape(title)
    links = "".join(f'<li><a href="#{one.name}">{html.escape(one.heading)}</a></li>' for one in sections)
    parts = "".join(
        f'<section aria-labelledby="{one.name}">\n<h2 id="{one.name}">{html.escape(one.heading)}</h2>\n'
        f"{one.body}</section>\n"
        for one in sections
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
<a class="skip" href="#parts">To the parts</a>
<header>
<h1>{title}</h1>
{lead}
<nav aria-label="parts"><ul>{links}</ul></nav>
</header>
<main id="parts">
{parts}
</main>
</body>
</html>
"""


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of text; of a kind that the style knows, such as "about" or "rule"."""
    return f"<p{_kind(kind)}>{html.escape(text)}</p>\n"


def bullets(lines: Sequence[str]) -> str:
    """Lines of text as a list; nothing of none."""
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>\n" if items else ""


def picture(png: bytes, about: str) -> str:
    """A PNG file as a figure of the page, with what it shows in words."""
    data = base64.b64encode(png).decode()
    return f'<figure><img src="data:image/png;base64,{data}" alt="{html.escape(about, quote=True)}"></figure>\n'


def beside(parts: Sequence[str]) -> str:
    """Figures beside each other where the page is wide enough, below each other where it is not."""
    return f'<div class="beside">{"".join(parts)}</div>\n' if parts else ""


def verbatim(text: str, label: str) -> str:
    """Lines as they are, such as commands; scrolled where they are wider than the page."""
    label = html.escape(label, quote=True)
    return f'<pre class="scroll" tabindex="0" role="region" aria-label="{label}">{html.escape(text)}</pre>\n'


def table(rows: Sequence[Mapping[str, Any]], label: str, kind: str = "") -> str:
    """Rows that have the same columns; where they are wider than the page they are scrolled, by keyboard too.

    Args:
        rows: a cell for each column.
        label: what the table is, for those who do not see it.
        kind: one that the style knows; numbers are set to the right, "words" to the left.
    """
    head = "".join(f'<th scope="col">{html.escape(str(name))}</th>' for name in rows[0])
    lines = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell(value))}</td>" for value in row.values()) + "</tr>" for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(label, quote=True)}">'
        f"<table{_kind(kind)}><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def folded(summary: str, body: str) -> str:
    """What is shown when its summary is opened."""
    return f"<details><summary>{html.escape(summary)}</summary>{body}</details>\n"


def _kind(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
