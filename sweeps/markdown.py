"""The settings of a sweep for a README or a paper: `python sweeps/markdown.py NAME --figure FILE.svg`.

The table is Markdown: means with 95% intervals, below each its difference to the default setting, or to `--baseline`.
"""

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from sweeps.charts import interval_plot
from sweeps.folders import Sweep, SweepFolder, load_sweep
from sweeps.intervals import Estimate
from sweeps.locks import SweepError
from sweeps.page import STYLE
from sweeps.parameters import leaf
from sweeps.results import METRICS, Metric, SettingRow, compare_settings, format_estimate, parameters_of, read_results

GAP, TITLE_HEIGHT = 16, 24  # pixels
COLUMNS = 2  # charts side by side
FONT = "text { font-family: sans-serif; } .title { font-size: 14px; font-weight: 600; fill: var(--ink); }\n"
DELTA = (
    "Δ: paired difference to *{baseline}*, bold where an interval for {compared} comparisons at once leaves out zero"
    " (Bonferroni)."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 with one line that says what is wrong."""
    arguments = _parse(argv)
    try:
        folder = SweepFolder(arguments.storage / arguments.name)
        sweep = load_sweep(folder)
        if arguments.baseline is not None:
            sweep = dataclasses.replace(sweep, default=_find_setting(sweep, arguments.baseline))
        rows = compare_settings(sweep, read_results(sweep, folder))
        metrics = _find_metrics(arguments.metrics, rows)
        if arguments.figure:
            _write(arguments.figure, draw_figure(rows, metrics))
        print(format_markdown(rows, metrics))
    except ValueError as error:
        print(f"markdown: {error}", file=sys.stderr)
        return 2
    return 0


def format_markdown(rows: Sequence[SettingRow], metrics: Sequence[Metric]) -> str:
    """The table, and a sentence on what its intervals are."""
    parameters = parameters_of(rows)
    header = [leaf(key) for key in parameters] + [_title(metric) for metric in metrics]
    lines = [header, ["---"] * len(header)]
    for row in rows:
        labels = [row.labels.get(key, "-") for key in parameters]
        lines.append([*labels, *(_cell(metric, row) for metric in metrics)])
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    counts = [estimate.count for row in rows for metric in metrics if (estimate := row.means[metric.key]).count]
    pairs = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    means = f"Means over {pairs} prompt-seed pairs with 95% bootstrap intervals over prompts, then seeds."
    baseline = next((_name(row.labels) for row in rows if row.is_default), None)
    legend = "" if baseline is None or len(rows) < 2 else " " + DELTA.format(baseline=baseline, compared=len(rows) - 1)
    return f"{table}\n\n{means}{legend}"


def draw_figure(rows: Sequence[SettingRow], metrics: Sequence[Metric]) -> str:
    """Differences to the default setting, means where there is none: a chart a metric, in an SVG file by itself."""
    marked = next((i for i, row in enumerate(rows) if row.is_default), None)
    labels = [_name(row.labels) for row in rows]
    what = "" if marked is None else f", difference to {labels[marked]}"
    parts, width, height = [], 0, 0
    for index, metric in enumerate(metrics):
        shown = [row.means[metric.key] if marked is None else _difference(metric, row) for row in rows]
        plot = interval_plot(labels, shown, digits=metric.digits, marked=marked)
        if plot is None:
            raise SweepError(
                f"--figure: no run of {labels[marked or 0]} is finished, so nothing can be compared to it."
            )
        x = GAP + index % COLUMNS * (plot.width + GAP)
        y = GAP + index // COLUMNS * (TITLE_HEIGHT + plot.height + GAP)
        parts.append(f'<text class="title" x="{x}" y="{y + 14}">{escape(_title(metric) + what)}</text>')
        parts.append(f'<g class="chart" transform="translate({x} {y + TITLE_HEIGHT})">{plot.content}</g>')
        width, height = max(width, x + plot.width + GAP), y + TITLE_HEIGHT + plot.height + GAP
    paper = '<rect width="100%" height="100%" style="fill: var(--paper)"/>'
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{STYLE}{FONT}</style>{paper}{"".join(parts)}</svg>\n'


def _title(metric: Metric) -> str:
    return f"{metric.heading} {metric.arrow}"


def _cell(metric: Metric, row: SettingRow) -> str:
    text = format_estimate(row.means[metric.key], metric.digits)
    difference = _difference(metric, row)
    if row.is_default or not difference.count:
        return text
    signed = format_estimate(difference, metric.digits, signed=True)
    return f"{text}<br>Δ {f'**{signed}**' if difference.is_clear else signed}"


def _difference(metric: Metric, row: SettingRow) -> Estimate:
    """To the default setting; of that one to itself zero, without an interval."""
    return row.differences.get(metric.key, Estimate(row.means[metric.key].count if row.is_default else 0, 0.0))


def _name(labels: Mapping[str, str]) -> str:
    return ", ".join(labels.values()) or "the base"


def _find_setting(sweep: Sweep, name: str) -> dict[str, str]:
    known = {_name(trial.labels): dict(trial.labels) for trial in sweep.trials}
    if not any(known.values()):
        raise SweepError(f"--baseline: {sweep.name} varies nothing, so there is nothing to compare.")
    if name not in known:
        raise SweepError(f"--baseline: there is no setting {name!r} in {sweep.name}; it has {'; '.join(known)}.")
    return known[name]


def _find_metrics(keys: Sequence[str] | None, rows: Sequence[SettingRow]) -> list[Metric]:
    measured = {metric.key: metric for metric in METRICS if any(row.means[metric.key].count for row in rows)}
    if not measured:
        raise SweepError("no trial of this sweep is finished yet.")
    graded = [key for key, metric in measured.items() if metric.needs_truth] or list(measured)
    if unknown := [key for key in keys or () if key not in measured]:
        raise SweepError(f"--metrics: {unknown[0]!r} was not measured here; known are {', '.join(measured)}.")
    return [measured[key] for key in keys or graded]


def _write(path: Path, text: str) -> None:
    if path.suffix != ".svg":
        raise SweepError(f"--figure {path}: a figure is an SVG file; call it {path.stem}.svg.")
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SweepError(f"cannot write {path}: {error.strerror}; choose another --figure.") from error


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="sweeps/markdown.py", description="The settings of a sweep as Markdown.")
    parser.add_argument("name", metavar="NAME", help="the sweep")
    parser.add_argument("--storage", type=Path, default=Path("runs"), metavar="DIR", help="default: runs")
    parser.add_argument("--baseline", metavar="SETTING", help="what the others differ from (the default setting)")
    parser.add_argument(
        "--metrics", nargs="+", metavar="KEY", help="measures of the report (those that need the truth)"
    )
    parser.add_argument("--figure", type=Path, metavar="FILE.svg", help="draw the intervals")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
