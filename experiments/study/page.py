"""A study as one page of HTML: figures, verdicts and what they mean, without anything from elsewhere."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from experiments import pages
from experiments.study.parts import Done
from experiments.study.runs import Studied
from neuralosc.version import __version__


def page(done: Sequence[Done], studied: Studied, figures: Mapping[str, bytes]) -> str:
    """The page.

    Args:
        done: the parts.
        studied: the runs.
        figures: of parts that have one, as PNG files.
    """
    config = studied.first.config
    runs = ", ".join(html.escape(path.name) for path in studied.paths)
    lead = f"""<p>Runs: {runs}. Everything below was measured on float64 copies of the trained weights, by neuralosc \
{__version__}. A
verdict is a sentence with the rule that gave it; where the evidence does not carry one, none is made.</p>"""
    sections = [pages.Section(one.name, _heading(one), _body(one, figures.get(one.name))) for one in done]
    return pages.page(f"What discretization does to {config.network} on {config.task}", lead, sections)


def _heading(one: Done) -> str:
    return one.part.title or (one.name if one.result is None else one.result.heading)


def _body(one: Done, picture: bytes | None) -> str:
    head = pages.paragraph(one.part.about, "about")
    if one.result is None:
        return head + pages.paragraph(f"Nothing was found: {one.why}", "verdict none")
    said = one.result.verdict
    text = head + pages.paragraph(str(said), "verdict" if said.claim else "verdict none")
    text += pages.paragraph(one.part.words(one.result)) + pages.bullets(one.result.notes())
    if picture is not None:
        text += pages.picture(picture, f"{one.part.title or one.result.heading}. {said}")
    of = f", of the {one.result.of}" if one.result.of else ""
    text += pages.paragraph(f"Rule: {said.rule}. {one.samples} sequences, {one.seconds:.0f} s{of}.", "rule")
    rows = one.result.rows()
    return text + (pages.folded("The numbers", pages.table(rows, f"numbers of {one.name}")) if rows else "")
