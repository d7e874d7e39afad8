"""A sweep on Weights & Biases: what its trials are called there, and one run with the table of results."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import corrdream
from sweeps.folders import PlannedTrial, Sweep
from sweeps.parameters import describe
from sweeps.results import METRICS, Result, compare_settings

# A tracker of TensorBoard alone.
UNTRACKED: dict[str, Any] = {"mode": "disabled", "run": {"run_id": "none", "name": "none"}, "config": {}}


def tracking_of(sweep: Sweep, trial: PlannedTrial, mode: corrdream.WandbMode) -> dict[str, Any]:
    """What a trial's tracker needs, as JSON: mode, the W&B run, and what its configuration holds beside the trial's."""
    prompts, seeds = ({getattr(other, name) for other in sweep.trials} for name in ("prompt", "seed"))
    name = [describe(trial.labels)] if trial.labels else []
    name += [trial.prompt] if len(prompts) > 1 else []
    name += [f"seed {trial.seed}"] if len(seeds) > 1 else []
    run = {
        "run_id": _run_id(sweep, trial.name),
        "name": ", ".join(name) or "the base",
        "group": sweep.name,
        "job_type": "trial",
        "tags": [sweep.grid, trial.prompt, f"seed {trial.seed}", *map(_tag, trial.labels.items())],
    }
    labels = {_slug(key): _number(label) for key, label in trial.labels.items()}
    return {"mode": mode, "run": run, "config": {"sweep": sweep.name, "grid": sweep.grid, "labels": labels}}


def config_key(sweep: Sweep, parameter: str) -> str:
    """Where W&B finds a parameter's value: its own key, or, of schedules and such, `labels.KEY`."""
    values = [_value_at(trial.config, parameter) for trial in sweep.trials]
    is_plain = all(isinstance(value, int | float | str) for value in values)
    return parameter if is_plain else f"labels.{_slug(parameter)}"


def publish_summary(folder: Path, sweep: Sweep, results: Sequence[Result], mode: corrdream.WandbMode) -> None:
    """One run with the trials and the settings as tables; where W&B fails, a line says so and all else goes on."""
    try:
        _publish(folder, sweep, results, mode)
    except Exception as error:  # whatever W&B raises, the results are on the disk
        line = (str(error).splitlines() or [type(error).__name__])[0]
        print(f"W&B has no summary of this sweep: {line}", file=sys.stderr)


def _publish(folder: Path, sweep: Sweep, results: Sequence[Result], mode: corrdream.WandbMode) -> None:
    import wandb

    states = [result.status.state for result in results]
    called = corrdream.WandbRun(
        run_id=_run_id(sweep, ""),
        name=f"{sweep.name}: summary",
        group=sweep.name,
        job_type="summary",
        tags=(sweep.grid, "summary"),
    )
    config = {"sweep": sweep.name, "grid": sweep.grid, "commands": sweep.commands, "versions": dict(sweep.versions)}
    run = corrdream.open_wandb_run(folder, called, mode=mode, config={**config, "base": dict(sweep.base)})
    columns, rows = trial_table(results)
    run.log(
        {
            "trials": wandb.Table(columns=columns, data=rows),
            "settings": wandb.Table(*setting_table(sweep, results)),
        }
    )
    run.summary.update({f"trials/{state}": states.count(state) for state in sorted(set(states))})
    run.finish()


def trial_table(results: Sequence[Result]) -> tuple[list[str], list[list[Any]]]:
    """Columns and one row a trial: parameters, prompt, seed, state, metrics."""
    parameters = list(dict.fromkeys(key for result in results for key in result.trial.labels))
    metrics = [metric.key for metric in METRICS]
    rows = [
        [
            result.trial.name,
            *(result.trial.labels.get(key) for key in parameters),
            result.trial.prompt,
            result.trial.seed,
            result.status.state,
            result.status.step,
            *(result.metrics.get(key) for key in metrics),
            result.status.error,
        ]
        for result in results
    ]
    return ["trial", *parameters, "prompt", "seed", "state", "step", *metrics, "error"], rows


def setting_table(sweep: Sweep, results: Sequence[Result]) -> tuple[list[str], list[list[Any]]]:
    """Columns and one row a setting: mean and interval of every metric."""
    settings = compare_settings(sweep, results)
    measured = [metric.key for metric in METRICS if any(row.means[metric.key].count for row in settings)]
    columns = [*settings[0].labels, "pairs"]
    columns += [f"{key}{part}" for key in measured for part in ("", " low", " high")]
    rows = []
    for row in settings:
        estimates = [row.means[key] for key in measured]
        figures = [part for e in estimates for part in (e.mean if e.count else None, e.low, e.high)]
        rows.append([*row.labels.values(), max((e.count for e in estimates), default=0), *figures])
    return columns, rows


def _run_id(sweep: Sweep, trial: str) -> str:
    """Of this trial of this sweep: another sweep that runs the same trial has another."""
    return corrdream.fingerprint([sweep.name, sweep.created, trial])


def _value_at(config: Mapping[str, Any], key: str) -> Any:
    node: Any = config
    for name in key.split("."):
        node = node.get(name) if isinstance(node, Mapping) else None
    return node


def _slug(key: str) -> str:
    return key.replace(".", "_")


def _tag(item: tuple[str, str]) -> str:
    return f"{item[0].rpartition('.')[2]}={item[1]}"


def _number(label: str) -> str | float:
    try:
        return float(label)
    except ValueError:
        return label
