"""The HTML page of a sweep: one file that needs nothing else. The best trial, the settings, curves, every trial."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from sweeps.charts import Curve, color_of, curve_chart, interval_chart
from sweeps.faults import describe_faults
from sweeps.folders import Sweep, describe_size, flatten, write_text
from sweeps.intervals import MIN_PAIRS, Estimate, best_setting
from sweeps.page import STYLE, picture
from sweeps.parameters import describe
from sweeps.results import (
    METRICS,
    Metric,
    Result,
    SettingRow,
    best_trial,
    compare_settings,
    count_faults,
    describe_history,
    describe_skipped,
    describe_steps,
    format_estimate,
    parameters_of,
    read_rows,
    sort_key,
)

SIDE_WIDTH = 768  # pixels of a turntable strip in the side-by-side view
CURVES = {
    "loss/sds": "score distillation loss",
    "loss/correspondence": "correspondence loss",
    "correspondence/residual": "match residual, pixels",
    "opacity": "mean opacity",
    "grad_norm": "gradient norm",
}
TRIAL_CURVES = ("loss/sds", "correspondence/residual", "opacity")
Rows = Sequence[Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class _Page:
    """What the sections are made of."""

    sweep: Sweep
    results: Sequence[Result]  # best first
    settings: Sequence[SettingRow]
    best: Result | None
    logged: Mapping[str, Rows]  # of metrics.jsonl, by trial

    def color(self, result: Result) -> int:
        """The number of the trial's setting."""
        return next(i for i, row in enumerate(self.settings) if row.labels == result.trial.labels)

    def short_name(self, labels: Mapping[str, str]) -> str:
        """The label alone where there is one parameter, whose name stands above."""
        return (
            next(iter(labels.values())) if len(parameters_of(self.settings)) == len(labels) == 1 else describe(labels)
        )


def write_report(path: Path, sweep: Sweep, results: Sequence[Result]) -> None:
    """Writes the page from what the trials' folders hold now."""
    settings = compare_settings(sweep, results)
    page = _Page(
        sweep=sweep,
        results=sorted(results, key=lambda result: sort_key(result, sweep.metric, sweep.mode)),
        settings=settings,
        best=best_trial(sweep, results, settings),
        logged={result.trial.name: read_rows(result.folder) for result in results},
    )
    compared = [_comparison(page), _skipped(page), _side_by_side(page), _curves(page)]
    sections = [_head(page), _best(page), *compared, _trials(page)]
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head = f"<head>{meta}<title>{escape(sweep.name)}</title><style>{STYLE}</style></head>"
    write_text(path, f'<!doctype html>\n<html lang="en">{head}\n<body>\n{"".join(sections)}\n</body></html>\n')


def _head(page: _Page) -> str:
    sweep = page.sweep
    states = [result.status.state for result in page.results]
    counts = [
        f'<span class="tag {state.replace(" ", "-")}">{states.count(state)} {state}</span>'
        for state in ("finished", "stopped early", "running", "paused", "stopped", "pending", "failed")
        if state in states
    ]
    cached = sum(bool(result.status.source) for result in page.results)
    tags = [f"{cached} taken from other sweeps"] if cached else []
    tags += [f"{name} {number}" for name, number in sweep.versions.items()]
    counts += [f'<span class="tag">{escape(tag)}</span>' for tag in tags]
    size = describe_size(sweep.trials).replace(" x ", " &times; ")
    steps = describe_steps(page.results)
    spent = f'<p class="soft">Steps taken: {escape(steps)}.</p>' if steps else ""
    commands = "<br>".join(f"<code>python {escape(shlex.join(command))}</code>" for command in sweep.commands)
    return (
        f"<h1>{escape(sweep.name)}</h1>"
        f'<p class="soft">Grid {escape(sweep.grid)}: {size}. Started {escape(sweep.created)}.</p>{spent}'
        f'<div class="tags">{"".join(counts)}</div>{_faults(page)}<p>{commands}</p>\n'
    )


def _faults(page: _Page) -> str:
    """How often the sweep met each fault."""
    met = describe_faults(count_faults(page.results))
    return f'<p class="soft">Faults: {escape(met)}. What was running went on from its checkpoints.</p>' if met else ""


def _best(page: _Page) -> str:
    if page.best is None:
        return '<h2>Best trial</h2><p class="soft">No trial has a grade yet.</p>'
    mean = page.settings[page.color(page.best)].means[page.sweep.metric]
    setting, title = describe(page.best.trial.labels), _title(page.sweep.metric)
    caption = f"The best trial of the best setting: {setting}, mean {title} {mean.mean:.3f} over {mean.count} trials."
    return f'<h2>Best trial</h2><p class="soft">{escape(caption)}</p>{_card(page, page.best)}'


def _comparison(page: _Page) -> str:
    shown = [metric for metric in METRICS if any(row.means[metric.key].count for row in page.settings)]
    if not shown:
        return ""
    labels = [page.short_name(row.labels) for row in page.settings]
    marked = next((i for i, row in enumerate(page.settings) if row.is_default), None)
    charts = ""
    for metric in shown:
        means = [row.means[metric.key] for row in page.settings]
        chart = interval_chart(labels, means, digits=metric.digits, marked=marked)
        charts += f"<figure><figcaption>{escape(_column(metric))}{_direction(metric)}</figcaption>{chart}</figure>"
    pairs = max(row.means[metric.key].count for row in page.settings for metric in shown)
    note = (
        "Means with 95% bootstrap intervals, paired over prompts and then seeds."
        if pairs >= MIN_PAIRS
        else f"Means over {pairs} prompt-seed pairs a setting: too few for intervals (from {MIN_PAIRS} on), so "
        "differences may be chance."
    )
    if marked is not None:
        note += " Small figures: difference to the default setting (dashed line)"
        together = f"bold where one for {len(page.settings) - 1} comparisons at once does (Bonferroni)"
        note += f"; colored where its interval leaves out zero, {together}." if pairs >= MIN_PAIRS else "."
    return f'<h2>Settings</h2><p class="soft">{note}</p>{_table(page, shown)}<div class="grid2">{charts}</div>\n'


def _skipped(page: _Page) -> str:
    """What was not measured, a line each."""
    reasons = describe_skipped(page.results)
    lines = "".join(f"<li>{escape(title)}: {escape(reason)}</li>" for title, reason in reasons.items())
    return (
        f'<details><summary>Metrics that were skipped</summary><ul class="soft">{lines}</ul></details>' if lines else ""
    )


def _table(page: _Page, shown: Sequence[Metric]) -> str:
    best = best_setting([row.means[page.sweep.metric] for row in page.settings], page.sweep.mode)
    header = "".join(f"<th>{escape(_column(metric))}{_direction(metric)}</th>" for metric in shown)
    lines = []
    for index, row in enumerate(page.settings):
        name = escape(page.short_name(row.labels)) + (" <small>default</small>" if row.is_default else "")
        name += f" <small>{escape(row.note)}</small>" if row.note else ""
        count = max(estimate.count for estimate in row.means.values())
        cells = "".join(_cell(metric, row) for metric in shown)
        kind = ' class="best"' if index == best else ""
        lines.append(f"<tr{kind}><td>{name}</td><td>{count}</td>{cells}</tr>")
    names = escape(", ".join(key.rpartition(".")[2] for key in parameters_of(page.settings)) or "setting")
    return f'<div class="scroll"><table><tr><th>{names}</th><th>n</th>{header}</tr>{"".join(lines)}</table></div>'


def _cell(metric: Metric, row: SettingRow) -> str:
    mean, _, interval = format_estimate(row.means[metric.key], metric.digits).partition(" ")
    difference = row.differences.get(metric.key)
    small = ""
    if difference is not None and difference.count:
        text = format_estimate(difference, metric.digits, signed=True)
        clear = " clear" if difference.is_clear else ""
        small = f'<small class="{_verdict(metric, difference)}{clear}">&Delta; {text}</small>'
    return f"<td>{mean}<small>{interval}</small>{small}</td>"


def _verdict(metric: Metric, difference: Estimate) -> str:
    """Whether the interval of a difference lies on one side of zero."""
    if (
        difference.low is None
        or difference.high is None
        or metric.better == "one"
        or difference.low <= 0 <= difference.high
    ):
        return "open"
    return "better" if (difference.low > 0) == (metric.better == "max") else "worse"


def _side_by_side(page: _Page) -> str:
    """The same prompt and seed under every setting."""
    blocks = []
    for prompt, seed in sorted({(trial.prompt, trial.seed) for trial in page.sweep.trials}):
        same = sorted((r for r in page.results if (r.trial.prompt, r.trial.seed) == (prompt, seed)), key=page.color)
        lines = []
        for result in same:
            value = result.metrics.get(page.sweep.metric)
            state = result.status.state + (f" after {result.status.step} steps" if result.at_rung else "")
            figure = f"{_title(page.sweep.metric)} {value:.3f}" if value is not None else state
            strip = picture(result.folder / "turntable.png", alt=escape(prompt), width=SIDE_WIDTH)
            name = escape(describe(result.trial.labels))
            lines.append(f'<div>{name}<br><span class="soft">{escape(figure)}</span></div><div>{strip or "-"}</div>')
        blocks.append(
            f'<div class="card"><header><h3>{escape(prompt)}</h3><span class="soft">seed {seed}</span></header>'
            f'<div class="side">{"".join(lines)}</div></div>'
        )
    return f"<h2>Side by side</h2>{''.join(blocks)}\n"


def _curves(page: _Page) -> str:
    figures = "".join(_curve_figure(page, key, title, page.results) for key, title in CURVES.items())
    legend = "".join(
        f'<span><i style="background:{color_of(i)}"></i>{escape(describe(row.labels))}</span>'
        for i, row in enumerate(page.settings)
    )
    if not figures:
        return ""
    return (
        '<h2>Curves</h2><p class="soft">One line a trial, over optimizer steps.</p>'
        f'<div class="legend">{legend}</div><div class="grid2">{figures}</div>\n'
    )


def _curve_figure(page: _Page, key: str, title: str, results: Sequence[Result]) -> str:
    curves = []
    for result in results:
        rows = [row for row in page.logged[result.trial.name] if key in row]
        curves.append(
            Curve(
                label=f"{describe(result.trial.labels)}, {result.trial.prompt}, seed {result.trial.seed}",
                color=page.color(result),
                steps=[row["step"] for row in rows],
                values=[row[key] for row in rows],
            )
        )
    chart = curve_chart(curves)
    return f"<figure><figcaption>{escape(title)}</figcaption>{chart}</figure>" if chart else ""


def _trials(page: _Page) -> str:
    cards = "".join(_card(page, result) for result in page.results if result is not page.best)
    if not cards:
        return ""
    order = f"By {_title(page.sweep.metric)}, best first, whatever the prompt; what has none comes last."
    return f'<h2>All other trials</h2><p class="soft">{escape(order)}</p>{cards}'


def _card(page: _Page, result: Result) -> str:
    trial, status = result.trial, result.status
    place = f"trials/{trial.name}"
    state = f"{status.state}, {status.step} of {trial.config['max_steps']} steps"
    if status.attempts > 1:
        state += f", {status.attempts} attempts"
    if status.faults:
        state += f" ({describe_faults(status.faults)})"
    if status.source:
        state += f", taken from {status.source}"
    header = (
        f"<header><h3>{escape(describe(trial.labels))}</h3>"
        f"<span>{escape(trial.prompt)}, seed {trial.seed}</span>"
        f'<span class="{status.state.replace(" ", "-")}">{escape(state)}</span>'
        f'<a class="soft" href="{escape(place)}/">{escape(place)}</a></header>'
    )
    history = f'<p class="soft">{escape(describe_history(result.history))}</p>' if result.history else ""
    error = f'<p class="error">{escape(status.error)}</p>' if status.error else ""
    known = result.metrics or result.at_rung
    tiles = "".join(
        f'<div class="tile"><b>{known[m.key]:.{m.digits}f}</b><span>{escape(_column(m))}</span></div>'
        for m in METRICS
        if m.key in known
    )
    strips = "".join(
        picture(result.folder / f"{name}.png", alt=f"{name}: {escape(trial.prompt)}")
        for name in ("turntable", "normals")
    )
    charts = "".join(_curve_figure(page, key, CURVES[key], [result]) for key in TRIAL_CURVES)
    curves = f'<details><summary>Curves</summary><div class="grid2">{charts}</div></details>' if charts else ""
    body = f'{error}{history}<div class="tiles">{tiles}</div>{strips}{_difference(page, result)}{curves}'
    return f'<div class="card">{header}{body}</div>\n'


def _difference(page: _Page, result: Result) -> str:
    """The keys, besides prompt and seed, in which the trial's configuration differs from the base."""
    base, own = flatten(page.sweep.base), flatten(result.trial.config)
    changed = [key for key in own if own[key] != base.get(key) and key not in ("prompt", "seed")]
    lines = "".join(
        f"<tr><td><code>{escape(key)}</code></td><td><code>{escape(base.get(key, '-'))}</code></td>"
        f"<td><code>{escape(own[key])}</code></td></tr>"
        for key in changed
    )
    if not lines:
        return '<p class="soft">The configuration is the base.</p>'
    table = f"<table><tr><th>key</th><th>base</th><th>this trial</th></tr>{lines}</table>"
    summary = f"Configuration: {len(changed)} difference{'s' if len(changed) > 1 else ''} to the base"
    return f'<details open><summary>{summary}</summary><div class="scroll">{table}</div></details>'


def _title(key: str) -> str:
    return next((metric.title for metric in METRICS if metric.key == key), key)


def _column(metric: Metric) -> str:
    return f"{metric.title}, {metric.unit}" if metric.unit else metric.title


def _direction(metric: Metric) -> str:
    return f' <span class="soft">{metric.arrow}</span>'
