"""What the trials of a sweep gave: rows read from their folders, results.csv, and the table that compares settings."""

import csv
import dataclasses
import io
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

import corrdream
from sweeps.folders import (
    PlannedTrial,
    Status,
    Sweep,
    SweepFolder,
    read_history,
    read_rungs,
    read_status,
    read_statuses,
    write_text,
)
from sweeps.intervals import Estimate, best_setting, estimate_differences, estimate_means
from sweeps.parameters import describe, short


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A column of the table."""

    key: str
    title: str
    better: Literal["max", "min", "one"]  # one: the closer to 1 the better
    digits: int = 3
    unit: str = ""
    needs_truth: bool = True  # a grade; the others are measured of every run

    @property
    def heading(self) -> str:
        """Title and unit."""
        return f"{self.title} {self.unit}".strip()

    @property
    def arrow(self) -> str:
        """Where better is."""
        return {"max": "↑", "min": "↓", "one": "→ 1"}[self.better]


ALWAYS_SHOWN = ("match_residual", "seconds")
WITHOUT_TRUTH: tuple[str, Literal["max", "min"]] = (
    "match_residual",
    "min",
)  # what is best of prompts whose shape is unknown
READ_FILES = (
    "grade.json",
    "quality.json",
    "metrics.jsonl",
    "rungs.json",
    "history.json",
    "clip.npz",
    "turntable.png",
    "normals.png",
)  # of a trial, by results and report
RESIDUAL = "correspondence/residual"
IN_POOL = ("clip_precision", "clip_precision_laion")  # depend on the other prompts of the sweep
AT_END = (*IN_POOL, "clip_score", "clip_score_laion", "adjacent_lpips", "consistency_error", "consistent_share")
NO_POOL = "the sweep has one prompt only, or one of which no trial has embeddings"
METRICS = (
    Metric(key="viou_solid", title="vIoU", better="max"),
    Metric(key="silhouette_iou", title="silhouette IoU", better="max"),
    Metric(key="dent_error", title="dent error", better="min", digits=4),
    Metric(key="color_error", title="color error", better="min", digits=1, unit="ΔE"),
    Metric(key="saturation_ratio", title="saturation ratio", better="one", digits=2),
    Metric(key="floaters", title="floaters", better="min", digits=4),
    Metric(key="hull_gap", title="hull gap", better="min", needs_truth=False),
    Metric(key="floater_share", title="floater share", better="min", digits=4, needs_truth=False),
    Metric(key="fuzziness", title="fuzziness", better="min", needs_truth=False),
    Metric(key="saturation_distance", title="saturation distance", better="min", needs_truth=False),
    Metric(key="contrast_ratio", title="contrast ratio", better="one", digits=2, needs_truth=False),
    Metric(key="match_residual", title="match residual", better="min", digits=2, unit="px", needs_truth=False),
    Metric(key="clip_score", title="CLIP-S", better="max", needs_truth=False),
    Metric(key="clip_precision", title="CLIP-R", better="max", needs_truth=False),
    Metric(key="clip_score_laion", title="CLIP-S (LAION)", better="max", needs_truth=False),
    Metric(key="clip_precision_laion", title="CLIP-R (LAION)", better="max", needs_truth=False),
    Metric(key="adjacent_lpips", title="A-LPIPS", better="min", digits=4, needs_truth=False),
    Metric(key="consistency_error", title="feature consistency error", better="min", digits=4, needs_truth=False),
    Metric(key="consistent_share", title="consistent features", better="max", needs_truth=False),
    Metric(key="seconds", title="time", better="min", digits=0, unit="s", needs_truth=False),
)


@dataclass(frozen=True, kw_only=True)
class Result:
    """One trial: what was planned, where it stands, and its metrics."""

    trial: PlannedTrial
    folder: Path
    status: Status
    metrics: Mapping[str, float]  # of a finished trial, which others can be compared with
    skipped: Mapping[str, str] = field(default_factory=dict)  # why a metric is missing
    at_rung: Mapping[str, float] = field(default_factory=dict)  # of one that was stopped early, after its steps
    history: Sequence[Mapping[str, Any]] = ()  # `read_history`, of a member of a population


@dataclass(frozen=True, kw_only=True)
class SettingRow:
    """One row of the comparison: a setting and its estimates by metric key."""

    labels: Mapping[str, str]
    means: Mapping[str, Estimate]
    differences: Mapping[str, Estimate]  # to the default setting; empty for that one and where there is none
    is_default: bool
    cached: int  # trials that were taken from other sweeps
    note: str = ""  # how far it went, if it was stopped early


def read_results(sweep: Sweep, folder: SweepFolder) -> list[Result]:
    """Every planned trial as the storage has it now, in the order of the plan."""
    pull_results(folder, sweep.trials)
    return _with_precision([read_result(trial, folder.trial(trial.name)) for trial in sweep.trials])


def pull_results(folder: SweepFolder, trials: Sequence[PlannedTrial]) -> None:
    """Brings what `read_result`, the report and a schedule read of the trials."""
    statuses = read_statuses(folder, trials)
    begun = [folder.trial(name) for name, status in statuses.items() if status.state != "pending"]
    folder.storage.pull(path / name for path in begun for name in READ_FILES)


def read_result(trial: PlannedTrial, trial_folder: Path) -> Result:
    """One trial; metrics only where it is finished."""
    status = read_status(trial_folder, trial.identity)
    metrics: dict[str, float] = {}
    found: dict[str, Any] = {}
    if status.state == "finished":
        for name in ("grade.json", "quality.json"):
            with suppress(FileNotFoundError, json.JSONDecodeError):  # a prompt without a true shape has no grade
                found |= json.loads((trial_folder / name).read_text(encoding="utf-8"))
        metrics = collect_metrics(trial_folder, found, status.seconds)
    at_rung = read_rungs(trial_folder).get(status.step, {}) if status.state == "stopped early" else {}
    return Result(
        trial=trial,
        folder=trial_folder,
        status=status,
        metrics=metrics,
        skipped=found.get("skipped", {}),
        at_rung=at_rung,
        history=read_history(trial_folder) if status.state != "pending" else (),
    )


def collect_metrics(trial_folder: Path, measured: Mapping[str, Any], seconds: float) -> dict[str, float]:
    """A trial's metrics by key: its grade and quality, and what its rows and its clock say."""
    metrics = {key: float(value) for key, value in measured.items() if isinstance(value, int | float)}
    if "match_residual" not in metrics:  # it was measured midway
        metrics |= match_residual(read_rows(trial_folder))
    return metrics | {"seconds": seconds}


def _with_precision(results: Sequence[Result]) -> list[Result]:
    """The results with CLIP's R-precision, over all prompts of the sweep, where trials have left embeddings."""
    runs = [result for result in results if result.metrics and (result.folder / "clip.npz").is_file()]
    if not runs:
        return list(results)
    pool = list(dict.fromkeys(result.trial.prompt for result in results))
    found = corrdream.precision_in_pool([(run.trial.prompt, run.folder / "clip.npz") for run in runs], pool)
    precision = {run.trial.name: values for run, values in zip(runs, found, strict=True)}
    return [
        dataclasses.replace(
            result,
            metrics={**result.metrics, **(values := precision[result.trial.name])},
            skipped={**{key: NO_POOL for key in IN_POOL if key not in values}, **result.skipped},
        )
        if result.trial.name in precision
        else result
        for result in results
    ]


def describe_skipped(results: Sequence[Result]) -> dict[str, str]:
    """Why metrics are missing, the first trial's reason for each, by title."""
    found: dict[str, str] = {}
    for result in results:
        found = {**result.skipped, **found}
    return {metric.title: found[metric.key] for metric in METRICS if metric.key in found}


def count_faults(results: Sequence[Result]) -> dict[str, int]:
    """How often the sweep met each fault; a driver's death is that of each trial it ran."""
    return dict(sum((Counter(result.status.faults) for result in results), Counter()))


def read_rows(trial_folder: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl, one a step; a last line that was cut short is left out."""
    try:
        lines = (trial_folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def match_residual(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean over the last quarter of the correspondence steps that had matches; nothing without such steps."""
    residuals = [row[RESIDUAL] for row in rows if math.isfinite(row.get(RESIDUAL, math.nan))]
    last = residuals[-math.ceil(len(residuals) / 4) :] if residuals else []
    return {"match_residual": sum(last) / len(last)} if last else {}


def measurable_goal(metric: str, mode: Literal["max", "min"], *, has_truth: bool) -> tuple[str, Literal["max", "min"]]:
    """The goal, or WITHOUT_TRUTH for one that no run of the sweep could be measured by."""
    needs_truth = any(known.key == metric and known.needs_truth for known in METRICS)
    return WITHOUT_TRUTH if needs_truth and not has_truth else (metric, mode)


def sort_key(result: Result, metric: str, mode: str) -> tuple[bool, float]:
    """Best first; those without the metric last."""
    value = result.metrics.get(metric, math.nan)
    return math.isnan(value), -value if mode == "max" else value


def best_trial(sweep: Sweep, results: Sequence[Result], settings: Sequence[SettingRow]) -> Result | None:
    """The best one of the best setting, for the best of all trials is that of the easiest prompt; None without any."""
    best = best_setting([row.means[sweep.metric] for row in settings], sweep.mode)
    if best is None:
        return None
    trials = [result for result in results if result.trial.labels == settings[best].labels]
    return min(trials, key=lambda result: sort_key(result, sweep.metric, sweep.mode))


def compare_settings(sweep: Sweep, results: Sequence[Result]) -> list[SettingRow]:
    """One row a setting, in the order of the plan."""
    settings = list(dict.fromkeys(tuple(result.trial.labels.items()) for result in results))
    default = next((i for i, labels in enumerate(settings) if dict(labels) == sweep.default), None)
    means: list[dict[str, Estimate]] = [{} for _ in settings]
    differences: list[dict[str, Estimate]] = [{} for _ in settings]
    for metric in METRICS:
        table = _table(results, settings, metric.key)
        for row, estimate in zip(means, estimate_means(table), strict=True):
            row[metric.key] = estimate
        if default is not None:
            for row, estimate in zip(differences, estimate_differences(table, default), strict=True):
                row[metric.key] = estimate
    return [
        SettingRow(
            labels=dict(labels),
            means=means[i],
            differences={} if i == default else differences[i],
            is_default=i == default,
            cached=sum(bool(r.status.source) for r in results if tuple(r.trial.labels.items()) == labels),
            note=_note([result for result in results if tuple(result.trial.labels.items()) == labels], sweep.metric),
        )
        for i, labels in enumerate(settings)
    ]


def _note(results: Sequence[Result], metric: str) -> str:
    """`stopped early after 22 steps, vIoU 0.312 there`, or how a population changed it; else nothing."""
    copied = [entry for result in results[:1] for entry in result.history if entry["source"]]
    if copied:
        return f"from step {copied[-1]['step']} on a copy with {_values(copied[-1])}"
    stopped = [result for result in results if result.status.state == "stopped early"]
    if not stopped:
        return ""
    steps = max(result.status.step for result in stopped)
    values = [result.at_rung[metric] for result in stopped if metric in result.at_rung]
    known = next((known for known in METRICS if known.key == metric), None)
    if known is None or not values:
        return f"stopped early after {steps} steps"
    return f"stopped early after {steps} steps, {known.title} {sum(values) / len(values):.{known.digits}f} there"


def describe_history(history: Sequence[Mapping[str, Any]]) -> str:
    """`50: copy of TRIAL, guidance_scale=4.8; 100: guidance_scale=4.8`."""
    copies = [f"copy of {entry['source']}, " if entry["source"] else "" for entry in history]
    return "; ".join(f"{entry['step']}: {copy}{_values(entry)}" for entry, copy in zip(history, copies, strict=True))


def _values(entry: Mapping[str, Any]) -> str:
    return describe({key: short(value) for key, value in entry["values"].items()})


def describe_steps(results: Sequence[Result]) -> str:
    """`1,440 of 4,800 (30%): 6 trials were stopped early`; nothing if none was."""
    stopped = sum(result.status.state == "stopped early" for result in results)
    if not stopped:
        return ""
    taken = sum(result.status.step for result in results)
    whole = sum(int(result.trial.config["max_steps"]) for result in results)
    return f"{taken:,} of {whole:,} ({taken / whole:.0%}): {stopped} trials were stopped early"


def _table(results: Sequence[Result], settings: list[tuple[tuple[str, str], ...]], key: str) -> np.ndarray:
    """The metric as [settings, prompts, seeds], NaN where a run has none."""
    prompts = sorted({result.trial.prompt for result in results})
    seeds = sorted({result.trial.seed for result in results})
    table = np.full((len(settings), len(prompts), len(seeds)), np.nan)
    for result in results:
        place = settings.index(tuple(result.trial.labels.items()))
        table[place, prompts.index(result.trial.prompt), seeds.index(result.trial.seed)] = result.metrics.get(
            key, math.nan
        )
    return table


def write_csv(path: Path, results: Sequence[Result]) -> None:
    """One row a trial: parameters, prompt, seed, status, steps, every metric any trial has, and where it was run."""
    parameters = list(dict.fromkeys(key for result in results for key in result.trial.labels))
    metrics = list(dict.fromkeys([m.key for m in METRICS] + [key for result in results for key in result.metrics]))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    last = ["attempts", "faults", "source", "identity", "history", "error"]
    writer.writerow(["trial", *parameters, "prompt", "seed", "status", "steps", *metrics, *last])
    for result in results:
        trial, status = result.trial, result.status
        known = result.metrics or result.at_rung  # either way as measured after `steps`
        measured = [f"{known[key]:.6g}" if key in known else "" for key in metrics]
        labels = [trial.labels.get(key, "") for key in parameters]
        state = [trial.prompt, trial.seed, status.state, status.step]
        met = " ".join(f"{kind}={count}" for kind, count in sorted(status.faults.items()))
        last = [
            str(status.attempts),
            met,
            status.source,
            trial.identity,
            describe_history(result.history),
            status.error,
        ]
        writer.writerow([trial.name, *labels, *state, *measured, *last])
    write_text(path, text.getvalue())


def format_estimate(estimate: Estimate, digits: int, *, signed: bool = False) -> str:
    """`0.79 [0.75, 0.83]`, the mean alone where pairs are few, a dash where there are none."""
    if not estimate.count:
        return "-"
    form = f"{'+' if signed else ''}.{digits}f"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.mean:{form}}"
    return f"{estimate.mean:{form}} [{estimate.low:{form}}, {estimate.high:{form}}]"


def parameters_of(rows: Sequence[SettingRow]) -> list[str]:
    """Every parameter that some setting has; one that is conditional, or came with an extension, is not in all."""
    return list(dict.fromkeys(key for row in rows for key in row.labels))
