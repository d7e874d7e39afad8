"""The comparison of settings as text, for the end of a sweep."""

from collections.abc import Sequence

from sweeps.intervals import MIN_PAIRS
from sweeps.parameters import leaf
from sweeps.results import ALWAYS_SHOWN, METRICS, SettingRow, format_estimate, parameters_of


def hint_of(rows: Sequence[SettingRow]) -> str:
    """What the table's marks mean, and whether its differences can be trusted; empty without a result."""
    counts = [estimate.count for row in rows for estimate in row.means.values()]
    if not any(counts):
        return ""
    few = (
        f"n below {MIN_PAIRS}: too few for intervals, so differences may be chance." if max(counts) < MIN_PAIRS else ""
    )
    default = "* the default." if any(row.is_default for row in rows) else ""
    return " ".join(filter(None, [default, few]))


def format_table(rows: Sequence[SettingRow]) -> str:
    """The comparison as aligned text, one line a setting."""
    known = [metric for metric in METRICS if any(row.means[metric.key].count for row in rows)]
    graded = any(metric.needs_truth for metric in known)
    # What needs no truth is for prompts whose shape is unknown; the others' is in results.csv and in the report.
    metrics = [m for m in known if m.needs_truth or not graded or m.key in ALWAYS_SHOWN]
    parameters = parameters_of(rows)
    any_cached = any(row.cached for row in rows)
    header = [leaf(key) for key in parameters] + ["n"] + ["cached"] * any_cached
    header += [metric.heading for metric in metrics]
    lines = [[*header, ""]]
    for row in rows:
        mark = " *" if row.is_default else ""
        labels = [row.labels[key] + mark if key in row.labels else "-" for key in parameters]
        count = max(estimate.count for estimate in row.means.values())
        counts = [str(count)] + [str(row.cached)] * any_cached
        lines.append([*labels, *counts, *(format_estimate(row.means[m.key], m.digits) for m in metrics), row.note])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    texts = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([texts[0], "-" * len(texts[0]), *texts[1:]])
