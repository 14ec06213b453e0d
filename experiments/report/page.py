"""A report as one page: what came out, the curves, the comparisons, the settings, and how to have it again."""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from experiments import pages
from experiments.report.pairs import Comparison
from experiments.report.runs import ALIKE, Group, Reported, Run, differing
from experiments.tasks.metrics import METRICS, OF_EACH, parted, shown, summary
from experiments.train.runs import RunFolder
from neuralosc.analysis.results import Row
from neuralosc.version import __version__

PROGRAM = "python -m experiments"


def title(reported: Reported) -> str:
    """What the report is of."""
    networks = dict.fromkeys(run.config.network for run in reported.runs)
    return f"{', '.join(networks)} on {reported.runs[0].config.task}"


def page(
    reported: Reported, compared: Sequence[Comparison], notes: Sequence[str], figures: Mapping[str, tuple[bytes, str]]
) -> str:
    """The page.

    Args:
        reported: the runs.
        compared: their groups in pairs.
        notes: which comparisons there are not, and why.
        figures: PNG files by name, with what they show in words.
    """
    runs, finished = reported.runs, sum(run.result is not None for run in reported.runs)
    seeds = sorted({run.config.seed for run in runs})
    lead = f"{len(runs)} run{'s' * (len(runs) != 1)}, {finished} of them finished, with seed "
    lead += f"{', '.join(map(str, seeds))}; put together by neuralosc {__version__}. Figures are of the weights that "
    lead += "were best on the validation set, or of the last epoch where keep is 'last'; ± is the standard "
    lead += "deviation of a sample, over runs that differ in their seed alone."
    curves = [pages.picture(png, about) for name, (png, about) in figures.items() if name.startswith("curve_")]
    others = [pages.picture(png, about) for name, (png, about) in figures.items() if not name.startswith("curve_")]
    sections = [pages.Section("figures-of-the-test-set", "What came out", _outcome(reported) + pages.beside(others))]
    if reported.left:
        sections.append(
            pages.Section("left-out", "What is left out", pages.bullets([str(one) for one in reported.left]))
        )
    sections.append(pages.Section("curves", "Learning curves", _about_curves(reported) + pages.beside(curves)))
    if len(reported.groups) > 1:
        sections.append(pages.Section("comparisons", "Paired comparisons", _pairs(compared, notes)))
    sections.append(pages.Section("settings", "Settings", _settings(reported.groups)))
    sections.append(pages.Section("machines", "Where and when", _places(runs)))
    sections.append(pages.Section("commands", "To have it again", _commands(runs)))
    return pages.page(title(reported), pages.paragraph(lead), sections)


def group_rows(reported: Reported) -> list[dict[str, Any]]:
    """A row of each group with finished runs: mean, deviation and number of seeds of every figure of all outputs."""
    rows = []
    names = [name for name in _figures(reported) if not parted(name)[1]]
    for group in reported.groups:
        ends = list(group.finished.values())
        if not ends:
            continue
        row: dict[str, Any] = {"network": group.label, "seeds": len(ends)}
        row |= {f"test {name}": _over(name, [end.test for end in ends]) for name in names}
        row[f"validation {reported.metric}"] = _over(reported.metric, [end.validation for end in ends])
        row["kept epoch"] = ", ".join(str(end.best_epoch) for end in ends)
        row["parameters"] = " to ".join(f"{count:,}" for count in sorted({end.parameters for end in ends}))
        row["time a run"] = f"{statistics.fmean(end.seconds for end in ends):.3g} s"
        rows.append(row)
    return rows


def _outcome(reported: Reported) -> str:
    rows = group_rows(reported)
    if not rows:
        return pages.paragraph("No run has finished: there are no figures of the test set.", "verdict none")
    text = pages.table(rows, "figures of each group")
    text += pages.paragraph("".join(_meaning(name) for name in _figures(reported) if name in METRICS), "rule")
    if not reported.one_loss:
        text += pages.paragraph(
            "The loss of these runs is not one function (class_weights, likelihood): it is not put into one column.",
            "rule",
        )
    ends = [(run, run.result) for run in reported.runs if run.result is not None]
    each = [
        {"run": run.name, "seed": run.config.seed}
        | {f"test {name}": _one(name, end.test) for name in _figures(reported)}
        | {"kept epoch": end.best_epoch, "of": end.epochs, "time": f"{end.seconds:.3g} s"}
        for run, end in ends
    ]
    text += pages.folded("Every run", pages.table(each, "figures of each run"))
    text += _outputs(reported) + _guesses(reported)
    return text


def _outputs(reported: Reported) -> str:
    """The figures of single outputs."""
    names = [name for name in _figures(reported) if parted(name)[1]]
    rows = []
    for group in (group for group in reported.groups if group.finished):
        for output in dict.fromkeys(parted(name)[1] for name in names):
            row: dict[str, Any] = {"network": group.label, "output": output}
            for metric in OF_EACH:
                row[metric] = _over(f"{metric}_{output}", [end.test for end in group.finished.values()])
            rows.append(row)
    return pages.folded("Every output", pages.table(rows, "figures of each output")) if rows else ""


def _guesses(reported: Reported) -> str:
    """Answers that need no network; of every run, since the data may depend on its seed."""
    rows: list[Row] = [
        {"run": run.name, "what": what}
        | {f"test {name}": _one(name, values) for name in _figures(reported) if not parted(name)[1]}
        for run in reported.runs
        if run.result is not None
        for what, values in run.result.baselines.items()
    ]
    return pages.folded("Without a network", pages.table(rows, "answers that need no network")) if rows else ""


def _figures(reported: Reported) -> list[str]:
    """The names of the figures of the test set, the one that runs are judged by first."""
    ends = [run.result for run in reported.runs if run.result is not None]
    names = dict.fromkeys((reported.metric, *(name for end in ends for name in end.test)))
    return [name for name in names if name != "loss" or reported.one_loss]


def _meaning(name: str) -> str:
    metric = METRICS[name]
    what = f"{metric.title[:1].lower()}{metric.title[1:]}, " if metric.title.lower() != name else ""
    return f"{name}: {what}{'more' if metric.larger else 'less'} is better. "


def _over(name: str, ends: Sequence[Mapping[str, float]]) -> str | None:
    """The mean of what the runs have of a figure; nothing where one of them lacks it."""
    return summary(name, [end[name] for end in ends]) if all(name in end for end in ends) else None


def _one(name: str, values: Mapping[str, float]) -> str | None:
    return shown(name, values[name]) if name in values else None


def _about_curves(reported: Reported) -> str:
    text = "After every epoch, of the training set while it was trained on and of the validation set."
    if any(len(group.finished) > 1 for group in reported.groups):
        text += " Thick lines are means over the finished runs of a group, as far as all of them go, in a band of one "
        text += "standard deviation to each side; thin lines are single runs."
    return pages.paragraph(text, "about")


def comparison_rows(compared: Sequence[Comparison]) -> list[Row]:
    """A row of each comparison."""
    return [
        {
            "paired by": one.by,
            "first": one.first,
            "second": one.second,
            "figure": one.figure,
            "second less first": _number(one, one.paired.difference),
            "from": _number(one, one.paired.low),
            "to": _number(one, one.paired.high),
            "pairs": one.paired.count,
            "p": None if math.isnan(one.paired.p) else f"{one.paired.p:.2g}",
            "": one.said,
        }
        for one in compared
    ]


def _number(one: Comparison, value: float) -> str | None:
    return None if math.isnan(value) else shown(one.figure, value)


def _pairs(compared: Sequence[Comparison], notes: Sequence[str]) -> str:
    about = "Pairs of runs with the same seed say what other trainings would give; pairs of answers to the same test "
    about += "sequence say what other sequences would give to these trainings, and nothing of other ones."
    text = pages.paragraph(about, "about")
    text += pages.table(comparison_rows(compared), "paired comparisons", "words") if compared else ""
    if not compared:
        text += pages.paragraph("No two groups have two seeds or a test set in common.", "verdict none")
    rule = "Intervals of 95 % of the mean difference; by seed, of Student's t. p is of a difference as large by chance "
    rule += (
        "alone: by seed, of the t test; by sample, of the exact test of McNemar where scores are right or wrong, else "
    )
    rule += f"of the normal approximation. Called better below 0.01. p is of one comparison, of {len(compared)} here: "
    rule += "of many, some are small by chance. Where all pairs of runs differ alike there is no interval. "
    rule += "Differences of shares are in points."
    return text + pages.bullets(notes) + pages.paragraph(rule, "rule")


def _settings(groups: Sequence[Group]) -> str:
    """What differs between groups, a row for each setting, and once what does not."""
    text = pages.paragraph("All but the seed and where a run ran, with what was left to defaults written out.", "about")
    settings = [
        {name: value for name, value in group.runs[0].settings.items() if name not in ALIKE} for group in groups
    ]
    different = differing(settings)
    if different:
        columns = {group.label: values for group, values in zip(groups, settings, strict=True)}
        rows = [
            {"": name} | {label: _value(values[name]) if name in values else "-" for label, values in columns.items()}
            for name in different
        ]
        text += pages.table(rows, "settings that differ", "words") + "\n"
    return text + _shared(settings, different, "settings")


def _places(runs: Sequence[Run]) -> str:
    """What differs between runs, a row for each, and once what does not."""
    values = [_where(run) for run in runs]
    different, text = differing(values), ""
    if different:
        rows = [
            {"run": run.name} | {name: _value(one[name]) if name in one else "-" for name in different}
            for run, one in zip(runs, values, strict=True)
        ]
        text = pages.table(rows, "machines and versions that differ", "words") + "\n"
    return text + _shared(values, different, "machines and versions")


def _where(run: Run) -> dict[str, Any]:
    """What a run ran on, flat, its seed and its time."""
    found: dict[str, Any] = {name: run.settings[name] for name in ALIKE if name in run.settings}
    found |= {name: run.ran_on.get(name) for name in ("started", "platform")}
    for part in ("device", "versions"):
        values = run.ran_on.get(part)
        found.update({f"{part}.{key}": value for key, value in values.items()} if isinstance(values, dict) else {})
    found["seconds in epochs"] = round(math.fsum(record["seconds"] for record in run.history), 2)
    return found


def _shared(values: Sequence[Mapping[str, Any]], different: Sequence[str], what: str) -> str:
    rows = [{"": name, "value": _value(value)} for name, value in values[0].items() if name not in different]
    return (
        pages.folded("The same in all" if len(values) > 1 else "All", pages.table(rows, what, "words")) if rows else ""
    )


def _value(value: Any) -> str:
    """A setting as a configuration file has it."""
    if isinstance(value, str):
        return value or "''"
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return str(text).removesuffix("...\n").strip()


def _commands(runs: Sequence[Run]) -> str:
    text = (
        "With the settings of a run, its seed and its threads among them, the same versions on the same machine give "
    )
    text += "the same run again. Where a folder is gone, its settings are below: save them as a file for --config."
    lines = [command(run) for run in runs]
    typed = [f"{run.name}: {run.ran_on['command']}" for run in runs if isinstance(run.ran_on.get("command"), str)]
    found = pages.paragraph(text, "about") + pages.verbatim("\n".join(lines), "commands")
    found += pages.folded("As it was typed then", pages.verbatim("\n".join(typed), "command lines")) if typed else ""
    for run in runs:
        found += pages.folded(
            f"Settings of {run.name}",
            pages.verbatim(
                yaml.safe_dump(run.config.to_dict(), sort_keys=False, allow_unicode=True), f"settings of {run.name}"
            ),
        )
    return found


def command(run: Run) -> str:
    """The command that gives a run again, or goes on with one that has not finished."""
    if run.result is None:
        return f"{PROGRAM} train --resume {shlex.quote(str(run.path))}"
    return f"{PROGRAM} train --config {shlex.quote(str(RunFolder(run.path).config_file))}"
