"""A grid's trials, each with a whole, checked configuration."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import corrdream
from sweeps.folders import PlannedTrial
from sweeps.grids import Grid
from sweeps.parameters import (
    Choice,
    GridError,
    Parameter,
    Setting,
    all_settings,
    describe,
    leaf,
    refuse_repeats,
    value_of,
)
from sweeps.results import AT_END, measurable_goal
from sweeps.schedulers import Fifo, Pbt

CHOSEN_BY_OPTION = {"prompt": "--prompts", "seed": "--seeds"}
MAX_NAME = 100  # characters of a trial's folder, before its identity


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of a sweep. `identity` tells whether two runs would give the same result."""

    name: str
    labels: Mapping[str, str]
    prompt: str
    seed: int
    config: corrdream.Config
    identity: str


def expand(grid: Grid, overrides: Sequence[str] = ()) -> list[Trial]:
    """Every trial, checked; `overrides` are `key=value` texts for all of them. Settings change fastest, then prompts.

    So the same prompt and seed of all settings run near to each other, and a sweep that is not finished already
    compares settings.
    """
    _check_overrides(grid, overrides)
    grid = _with_whole_prompts(grid, overrides)
    base = corrdream.config_to_dict(base_config(grid, overrides))
    if grid.search == "optuna":  # what it will suggest lies between these
        for setting in all_settings(grid.parameters):
            resolve(base, setting, grid.name)
    return trials_of(grid.settings(), base, grid)


def planned(trial: Trial) -> PlannedTrial:
    """The trial as sweep.json keeps it."""
    return PlannedTrial(
        **{**vars(trial), "labels": dict(trial.labels), "config": corrdream.config_to_dict(trial.config)}
    )


def trials_of(settings: Sequence[Setting], base: Mapping[str, Any], grid: Grid) -> list[Trial]:
    """The settings' trials, checked; `base` is the plain base configuration."""
    resolved = [(setting, resolve(base, setting, grid.name)) for setting in settings]
    _check_metric(grid, [config for _, config in resolved])
    _check_ranges(grid, [config for _, config in resolved])
    _check_prompts(grid, [config for _, config in resolved])  # imports torch, so after all that needs none
    trials: dict[str, Trial] = {}
    for seed, prompt, (setting, config) in product(grid.seeds, grid.prompts, resolved):
        labels = {key: choice.label for key, choice in setting.items()}
        config = dataclasses.replace(config, prompt=prompt, seed=seed)
        known = corrdream.identity(config)
        if known in trials:
            twins = f"{describe(labels)} and {describe(trials[known].labels)}"
            raise GridError(f"grid {grid.name}: {twins} are the same run; remove one.")
        parts = [*(f"{leaf(key)}={label}" for key, label in labels.items()), prompt, f"seed={seed}"]
        name = f"{'_'.join(map(_slug, parts))[:MAX_NAME]}_{known[:8]}"
        trials[known] = Trial(name=name, labels=labels, prompt=prompt, seed=seed, config=config, identity=known)
    return list(trials.values())


def _with_whole_prompts(grid: Grid, overrides: Sequence[str]) -> Grid:
    """The grid with each `lib:WORDS` replaced by the prompt that a single run would take from its library."""
    whole = [
        base_config(dataclasses.replace(grid, prompts=(prompt,)), overrides).prompt
        if prompt.startswith(corrdream.LIBRARY_PREFIX)
        else prompt
        for prompt in grid.prompts
    ]
    return dataclasses.replace(grid, prompts=tuple(refuse_repeats(whole, f"grid {grid.name}: prompts")))


def _check_prompts(grid: Grid, configs: Sequence[corrdream.Config]) -> None:
    for prompt, config in product(grid.prompts, configs):
        try:
            corrdream.check_prompt(dataclasses.replace(config, prompt=prompt))
        except ValueError as error:
            raise GridError(f"grid {grid.name}: {error}") from error


def _check_metric(grid: Grid, configs: Sequence[corrdream.Config]) -> None:
    """Where settings are compared midway, there is something to compare."""
    if isinstance(grid.scheduler, Fifo):
        return
    if grid.metric in AT_END:
        raise GridError(f"grid {grid.name}: {grid.metric} is measured at the end only; choose another metric, or fifo.")
    first = grid.scheduler.rungs[0]
    for config in configs:
        metric, _ = measurable_goal(grid.metric, grid.mode, has_truth=config.prior.kind == "blocks")
        window = config.correspondence.window
        is_there = config.correspondence.enabled and any(
            window.contains(step, config.schedule_steps) for step in range(first)
        )
        if metric == "match_residual" and not is_there:
            raise GridError(
                f"grid {grid.name}: match_residual is compared after {first} steps, of which none is a correspondence"
                " step; choose another metric, such as hull_gap, or compare later."
            )


def _check_ranges(grid: Grid, configs: Sequence[corrdream.Config]) -> None:
    """What population-based training will change is a number, and may take both ends of its range."""
    if not isinstance(grid.scheduler, Pbt):
        return
    for key, distribution in grid.scheduler.ranges.items():
        for config in configs:
            plain = corrdream.config_to_dict(config)
            for end in (0.0, 1.0):
                resolve(
                    plain, {key: Parameter(key=key, distribution=distribution).number(distribution.at(end))}, grid.name
                )
            value = value_of(plain, key)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise GridError(f"grid {grid.name}: scheduler.ranges.{key} needs a number to change, it is {value!r}.")


def base_config(grid: Grid, overrides: Sequence[str] = ()) -> corrdream.Config:
    """What the settings change: the base configuration with the grid's and the given overrides."""
    layers: dict[str, Any] = {**grid.overrides, "prompt": grid.prompts[0], "seed": grid.seeds[0]}
    if grid.scheduler.budget is not None:
        layers["max_steps"] = grid.scheduler.budget
    # JSON is YAML, so that values of any type go the way of `key=value` on the command line.
    texts = [f"{key}={json.dumps(value)}" for key, value in layers.items()]
    try:
        return corrdream.load_config([grid.config], [*texts, *overrides])
    except corrdream.PromptError as error:
        raise GridError(f"grid {grid.name}: prompts: {error}") from error
    except ValueError as error:
        raise GridError(f"grid {grid.name}: {error}") from error


def default_labels(grid: Grid, overrides: Sequence[str] = ()) -> dict[str, str] | None:
    """The setting that changes nothing, to which the others are compared; None if there is none."""
    base = base_config(grid, overrides)
    plain = corrdream.config_to_dict(base)
    for setting in grid.settings():
        if resolve(plain, setting, grid.name) == base:
            return {key: choice.label for key, choice in setting.items()}
    return None


def resolve(base: Mapping[str, Any], setting: Mapping[str, Choice], name: str) -> corrdream.Config:
    """The setting's configuration: the plain configuration `base`, changed."""
    changes = {key: value for choice in setting.values() for key, value in choice.overrides.items()}
    if "max_steps" in changes and base["schedule_steps"] == base["max_steps"]:
        changes = {"schedule_steps": 0, **changes}  # a run of another length has schedules of that length
    try:
        return corrdream.load_config((), {**base, **changes})
    except ValueError as error:
        labels = describe({key: choice.label for key, choice in setting.items()})
        raise GridError(f"grid {name}: {labels}: {error}") from error


def _check_overrides(grid: Grid, overrides: Sequence[str]) -> None:
    """Each has a key and a value that fit, and does not undo what the grid varies: that left a table of equal rows."""
    try:
        corrdream.check_overrides(overrides)
    except corrdream.ConfigError as error:
        raise GridError(str(error)) from error
    varied = {key for parameter in grid.parameters for choice in parameter.extremes() for key in choice.overrides}
    if isinstance(grid.scheduler, Pbt):
        varied |= grid.scheduler.ranges.keys()
    for text in overrides:
        key = text.partition("=")[0]
        if key in CHOSEN_BY_OPTION:
            raise GridError(f"override {text} is chosen by the grid; use {CHOSEN_BY_OPTION[key]}.")
        if grid.scheduler.budget is not None and key in ("max_steps", "schedule_steps"):
            raise GridError(f"override {text} is decided by scheduler.budget; use --max-steps.")
        clash = next(
            (name for name in varied if f"{name}.".startswith(f"{key}.") or f"{key}.".startswith(f"{name}.")), ""
        )
        if clash:
            raise GridError(f"override {text}: grid {grid.name} varies {clash}; drop the override or use another grid.")


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.=]+", "-", text).strip("-.")
