"""Settings suggested by Optuna, one by one, from what the sweep's own files say of the settings before.

The study lives in memory and is built anew for every suggestion, so a resumed sweep, whose files say the same, goes on
with the same suggestions, and there is no database or pickle to lose.
"""

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import corrdream
from sweeps.folders import PlannedTrial, Sweep, SweepFolder, load_sweep, write_sweep
from sweeps.grids import Grid, search_of
from sweeps.halving import Group
from sweeps.locks import SweepError
from sweeps.parameters import Choice, Parameter, Setting, random_settings
from sweeps.standings import Key, Standing, group_of, key_of
from sweeps.trials import planned, trials_of

if TYPE_CHECKING:
    import optuna

MAX_ATTEMPTS = 20  # at a setting that is not there yet; then one is drawn


def check_optuna(sweep: Sweep) -> None:
    """SweepError with the line that installs it, where a sweep needs Optuna and it is not there."""
    if sweep.search.get("search") == "optuna":
        try:
            corrdream.require("optuna", "--search optuna")
        except ImportError as error:
            raise SweepError(str(error)) from error


class OptunaSuggest:
    """Adds settings to sweep.json until there are enough."""

    def __init__(self, folder: SweepFolder, grid: Grid) -> None:
        self._folder = folder
        self._grid = grid

    def __call__(self, standings: Sequence[Standing]) -> Sequence[PlannedTrial]:
        """The trials of another setting; they are in sweep.json before they are known here."""
        sweep, grid = load_sweep(self._folder), self._grid
        history: dict[Key, list[Standing]] = {}
        for standing in standings:
            history.setdefault(key_of(standing.trial), []).append(standing)
        if len(history) >= (grid.num_samples or 0):
            return []
        known = [(dict(labels), group_of(group), group[0].max_steps) for labels, group in history.items()]
        setting = suggest(grid.parameters, known, mode=grid.mode, seed=grid.search_seed)
        if setting is None:
            return []
        trials = tuple(map(planned, trials_of([setting], sweep.base, grid)))
        write_sweep(self._folder, dataclasses.replace(sweep, trials=sweep.trials + trials))
        return trials


def suggester(sweep: Sweep, folder: SweepFolder) -> OptunaSuggest | None:
    """What adds settings to the sweep as results arrive; None if all are known from the start."""
    return OptunaSuggest(folder, search_of(sweep)) if sweep.search.get("search") == "optuna" else None


def suggest(
    parameters: Sequence[Parameter], history: Sequence[tuple[Mapping[str, str], Group, int]], *, mode: str, seed: int
) -> Setting | None:
    """A setting that is not in the history of (labels, scores, steps of a whole trial); None if it finds none."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    seen = {tuple(labels.items()) for labels, _, _ in history}
    told = [_frozen(parameters, labels, group, max_steps) for labels, group, max_steps in history]
    for attempt in range(MAX_ATTEMPTS):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # Each suggestion has a seed of its own, for the study does not live from one to the next.
            sampler = optuna.samplers.TPESampler(seed=_mix(seed, len(history), attempt), constant_liar=True)
        study = optuna.create_study(direction=f"{mode}imize", sampler=sampler)
        study.add_trials(told)
        setting = _ask(study.ask(), parameters)
        if _labels(setting) not in seen:
            return setting
    return next((setting for setting in random_settings(parameters, seed) if _labels(setting) not in seen), None)


def _mix(*numbers: int) -> int:
    """One seed of several."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _labels(setting: Setting) -> tuple[tuple[str, str], ...]:
    return tuple((key, choice.label) for key, choice in setting.items())


def _ask(trial: "optuna.Trial", parameters: Sequence[Parameter]) -> Setting:
    """One choice of each parameter that applies."""
    setting: Setting = {}
    for parameter in parameters:
        if parameter.applies(setting):
            setting[parameter.key] = _draw(trial, parameter)
    return setting


def _draw(trial: "optuna.Trial", parameter: Parameter) -> Choice:
    distribution = parameter.distribution
    if distribution is None:
        label = trial.suggest_categorical(parameter.key, [choice.label for choice in parameter.choices])
        return next(choice for choice in parameter.choices if choice.label == label)
    if distribution.kind == "int_uniform":
        return parameter.number(trial.suggest_int(parameter.key, int(distribution.low), int(distribution.high)))
    is_log = distribution.kind == "log_uniform_values"
    drawn = trial.suggest_float(parameter.key, distribution.low, distribution.high, log=is_log)
    return parameter.number(distribution.rounded(drawn))


def _distribution(parameter: Parameter) -> "optuna.distributions.BaseDistribution":
    """The parameter as Optuna has it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    distribution = parameter.distribution
    if distribution is None:
        return CategoricalDistribution([choice.label for choice in parameter.choices])
    if distribution.kind == "int_uniform":
        return IntDistribution(int(distribution.low), int(distribution.high))
    return FloatDistribution(distribution.low, distribution.high, log=distribution.kind == "log_uniform_values")


def _frozen(
    parameters: Sequence[Parameter], labels: Mapping[str, str], group: Group, max_steps: int
) -> "optuna.trial.FrozenTrial":
    """A setting as Optuna remembers it: complete, pruned at a rung, failed, or still running."""
    from optuna.trial import TrialState, create_trial

    values: dict[str, Any] = {}
    for parameter in parameters:
        if parameter.key in labels:
            label, distribution = labels[parameter.key], parameter.distribution
            values[parameter.key] = label if distribution is None else distribution.rounded(float(label))
    scores = {step: score for step, score in group.scores.items() if math.isfinite(score)}
    if max_steps in scores:
        state, value = TrialState.COMPLETE, scores[max_steps]
    else:
        value = None
        has_nothing = group.has_failed or max_steps in group.scores
        state = TrialState.FAIL if has_nothing else TrialState.PRUNED if scores else TrialState.RUNNING
    return create_trial(
        state=state,
        value=value,
        params=values,
        distributions={parameter.key: _distribution(parameter) for parameter in parameters if parameter.key in values},
        intermediate_values=scores,
    )
