"""Where the trials of a sweep stand, as their folders say."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from sweeps.folders import PlannedTrial, State, Sweep, SweepFolder, read_history, read_rungs, read_status
from sweeps.halving import Group
from sweeps.results import pull_results, read_result

Key = tuple[tuple[str, str], ...]  # a setting's labels


@dataclass(kw_only=True)
class Standing:
    """Where a trial stands."""

    trial: PlannedTrial
    state: State
    step: int = 0
    measured: dict[int, float] = field(default_factory=dict)  # the sweep's metric by step; NaN where it has none
    is_running: bool = False
    generations: set[int] = field(default_factory=set)  # of a population: steps after which it was told how to go on
    values: dict[str, float] = field(default_factory=dict)  # in place of its configuration's

    @property
    def max_steps(self) -> int:
        """Those of its configuration."""
        return int(self.trial.config["max_steps"])


def read_standings(sweep: Sweep, folder: SweepFolder) -> list[Standing]:
    """Of every trial, in the order of the plan, as the storage has them now."""
    pull_results(folder, sweep.trials)
    return [read_standing(trial, folder, sweep.metric) for trial in sweep.trials]


def read_standing(trial: PlannedTrial, folder: SweepFolder, metric: str) -> Standing:
    """What the trial's folder says."""
    path = folder.trial(trial.name)
    status = read_status(path, trial.identity)
    standing = Standing(trial=trial, state=status.state, step=status.step)
    if status.state != "pending":  # else nothing there is of this trial
        history = read_history(path)
        standing.generations = {entry["step"] for entry in history}
        standing.values = dict(history[-1]["values"]) if history else {}
        standing.measured = {step: metrics.get(metric, math.nan) for step, metrics in read_rungs(path).items()}
    if status.state == "finished":
        standing.measured[standing.max_steps] = read_result(trial, path).metrics.get(metric, math.nan)
    return standing


def group_of(standings: Sequence[Standing]) -> Group:
    """A setting by the means over its trials."""
    common = set.intersection(*(set(standing.measured) for standing in standings))
    return Group(
        scores={step: sum(standing.measured[step] for standing in standings) / len(standings) for step in common},
        steps=max(standing.step for standing in standings),
        has_failed=any(standing.state == "failed" for standing in standings),
        is_closed=any(standing.state == "stopped early" for standing in standings),
    )


def is_twin(trial: PlannedTrial, other: PlannedTrial) -> bool:
    """Whether they differ by their setting only."""
    return (trial.prompt, trial.seed) == (other.prompt, other.seed)


def key_of(trial: PlannedTrial) -> Key:
    """The trial's setting."""
    return tuple(trial.labels.items())
