"""More trials for a sweep that exists: grid points, prompts or seeds. What was there stays as it is."""

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from sweeps.folders import PlannedTrial, Sweep, flatten
from sweeps.locks import SweepError
from sweeps.parameters import describe

DECIDING = (
    "grid",
    "config",
    "prompts",
    "seeds",
    "max_steps",
    "search",
    "num_samples",
    "scheduler",
    "overrides",
)  # options that decide which trials there are
FREE = ("prompt", "seed")  # keys that differ from trial to trial
FINGERPRINTS = {"sources": "sources of corrdream", "prior": "prior", "weights": "start weights"}


def with_defaults(arguments: argparse.Namespace, sweep: Sweep) -> argparse.Namespace:
    """The command line with what the sweep was started with, where it says nothing else."""
    given = {name: getattr(arguments, name) or sweep.options[name] for name in DECIDING}
    given["overrides"] = [*sweep.options["overrides"], *arguments.overrides]
    return argparse.Namespace(**{**vars(arguments), **given})


def extend(sweep: Sweep, more: Sweep) -> Sweep:
    """The sweep with those trials of `more` that it lacks; SweepError if there are none, or if something else differs.

    Its own prompts and seeds, once given by option, are what a later extension starts from.
    """
    refuse_other_fingerprints(sweep, more.fingerprints)
    _refuse_other_search(sweep, more)
    _refuse_other_base(sweep, more)
    known = {trial.identity for trial in sweep.trials}
    added = tuple(trial for trial in more.trials if trial.identity not in known)
    _refuse_other_meaning(sweep, added)
    trials = (*sweep.trials, *added)
    extended = dataclasses.replace(
        sweep,
        trials=trials,
        search=more.search,
        commands=[*sweep.commands, *more.commands],
        options=_options(sweep, more, trials),
        default=sweep.default or more.default,
    )
    if not added and not extended.trials_to_come:
        raise SweepError(
            f"sweep {sweep.name} has all {len(more.trials)} trials of that already; give other --prompts, --seeds or"
            f" --grid, or continue it with --resume {sweep.name}."
        )
    return extended


def _options(sweep: Sweep, more: Sweep, trials: Sequence[PlannedTrial]) -> dict[str, Any]:
    options = dict(sweep.options) | {"num_samples": more.options["num_samples"]}
    if more.options["prompts"]:
        options["prompts"] = list(dict.fromkeys(trial.prompt for trial in trials))
    if more.options["seeds"]:
        options["seeds"] = [str(seed) for seed in sorted({trial.seed for trial in trials})]
    return options


def refuse_other_fingerprints(sweep: Sweep, now: Mapping[str, str]) -> None:
    """SweepError that names what the sweep was computed with and what is here."""
    for key, was in sweep.fingerprints.items():
        if now[key] != was:
            raise SweepError(
                f"sweep {sweep.name} was computed with other {FINGERPRINTS[key]} ({was or 'none'}; here is"
                f" {now[key] or 'none'}); go back to those, or start a new sweep."
            )


def _refuse_other_search(sweep: Sweep, more: Sweep) -> None:
    """Trials that compete must do so under one scheduler; suggested settings know the prompts and seeds of before."""
    kind = str((sweep.search.get("scheduler") or {}).get("kind", "fifo"))
    if kind == "pbt":
        raise SweepError(f"sweep {sweep.name} is a population (scheduler pbt), which cannot grow; start a new sweep.")
    suggests = sweep.search.get("search") == "optuna"
    for key in ("search", "scheduler", *["parameters"] * suggests):
        was, now = (json.dumps(one.search.get(key)) for one in (sweep, more))
        if was != now:
            raise SweepError(
                f"sweep {sweep.name} was started with {key} {was} (here {now}); give the same, or start a new sweep."
            )
    same_runs = [{(trial.prompt, trial.seed) for trial in one.trials} for one in (sweep, more)]
    if suggests and same_runs[0] != same_runs[1]:
        raise SweepError(f"sweep {sweep.name} suggests its settings; it can grow by --num-samples only.")


def _refuse_other_meaning(sweep: Sweep, added: Sequence[PlannedTrial]) -> None:
    """Under one name in the tables there must be one configuration."""
    known = {_place(trial): trial for trial in sweep.trials}
    for trial in added:
        if old := known.get(_place(trial)):
            raise SweepError(
                f"sweep {sweep.name} ran {describe(trial.labels)} with {_differences(old.config, trial.config)}; give"
                " the new choice a label of its own, or start a new sweep."
            )


def _place(trial: PlannedTrial) -> tuple[object, ...]:
    return tuple(sorted(trial.labels.items())), trial.prompt, trial.seed


def _refuse_other_base(sweep: Sweep, more: Sweep) -> None:
    """What is the same for all trials must be so for the new ones; `output` does not change what is computed."""
    if differences := _differences(sweep.base, more.base):
        raise SweepError(f"sweep {sweep.name} was started with {differences}; give the same, or start a new sweep.")


def _differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """`max_steps=40 (here 100)`; an empty text if only prompt, seed or output differ."""
    old, new = _comparable(was), _comparable(now)
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return ", ".join(f"{key}={old.get(key)} (here {new.get(key)})" for key in keys)


def _comparable(config: Mapping[str, Any]) -> dict[str, str]:
    return {key: value for key, value in flatten(config).items() if key not in FREE and not key.startswith("output.")}
