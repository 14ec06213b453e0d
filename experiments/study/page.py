"""A study as one page of HTML: figures, verdicts and what they mean, without anything from elsewhere."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence

from experiments.study.parts import Done
from experiments.study.runs import Studied
from neuralosc.analysis.results import cell
from neuralosc.version import __version__

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
th:first-child, td:first-child { text-align: left; }
"""


def page(done: Sequence[Done], studied: Studied, figures: Mapping[str, bytes]) -> str:
    """The page.

    Args:
        done: the parts.
        studied: the runs.
        figures: of parts that have one, as PNG files.
    """
    config = studied.first.config
    title = html.escape(f"What discretization does to {config.network} on {config.task}")
    links = "".join(f'<li><a href="#{one.name}">{_heading(one)}</a></li>' for one in done)
    runs = ", ".join(html.escape(path.name) for path in studied.paths)
    parts = "".join(_section(one, figures.get(one.name)) for one in done)
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
<p>Runs: {runs}. Everything below was measured on float64 copies of the trained weights, by neuralosc {__version__}. A
verdict is a sentence with the rule that gave it; where the evidence does not carry one, none is made.</p>
<nav aria-label="parts"><ul>{links}</ul></nav>
</header>
<main id="parts">
{parts}
</main>
</body>
</html>
"""


def _heading(one: Done) -> str:
    return html.escape(one.part.title or (one.name if one.result is None else one.result.heading))


def _section(one: Done, picture: bytes | None) -> str:
    head = f'<section aria-labelledby="{one.name}">\n<h2 id="{one.name}">{_heading(one)}</h2>\n'
    head += f'<p class="about">{html.escape(one.part.about)}</p>\n'
    if one.result is None:
        return f'{head}<p class="verdict none">Nothing was found: {html.escape(one.why)}</p>\n</section>\n'
    said = one.result.verdict
    style = "verdict" if said.claim else "verdict none"
    text = f'{head}<p class="{style}">{html.escape(str(said))}</p>\n'
    text += f"<p>{html.escape(one.part.words(one.result))}</p>\n"
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in one.result.notes())
    text += f"<ul>{notes}</ul>\n" if notes else ""
    if picture is not None:
        data = base64.b64encode(picture).decode()
        about = html.escape(f"{one.part.title or one.result.heading}. {said}", quote=True)
        text += f'<figure><img src="data:image/png;base64,{data}" alt="{about}"></figure>\n'
    text += f'<p class="rule">Rule: {html.escape(said.rule)}. '
    text += f"{one.samples} sequences, {one.seconds:.0f} s"
    text += f", of the {one.result.of}.</p>\n" if one.result.of else ".</p>\n"
    return text + _table(one) + "</section>\n"


def _table(one: Done) -> str:
    assert one.result is not None
    rows = one.result.rows()
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{html.escape(str(name))}</th>' for name in rows[0])
    lines = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell(value))}</td>" for value in row.values()) + "</tr>" for row in rows
    )
    label = html.escape(f"numbers of {one.name}", quote=True)
    return (
        f'<details><summary>The numbers</summary><div class="scroll" tabindex="0" role="region" aria-label="{label}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div></details>\n"
    )
