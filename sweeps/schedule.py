"""Which trial runs next and how far, from what lies in the trials' folders. Knows nothing of Ray.

Ray Tune has ASHA, population-based training and Optuna of its own. Their state is in its snapshots, which are pickles
and lag behind the checkpoints; here every decision is a function of rungs.json and status.json, so that a sweep that
lost its driver goes on as if it had not, and decisions are taken over settings, not over single trials.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, assert_never

from sweeps.folders import DONE, PlannedTrial, State, Sweep, SweepFolder
from sweeps.halving import expected_lengths, promote
from sweeps.parameters import leaf
from sweeps.population import end_generations, next_generation
from sweeps.schedulers import Asha, Fifo, Pbt, Scheduler, parse_scheduler
from sweeps.standings import Key, Standing, group_of, key_of, read_standings

ENDED = (*DONE, "failed")


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """A trial to run until it has taken so many steps, with some values changed."""

    trial: PlannedTrial
    until: int
    values: Mapping[str, float] = field(default_factory=dict)


class Suggest(Protocol):
    """Gives the trials of another setting, from all that is known; none once there are enough settings."""

    def __call__(self, standings: Sequence[Standing]) -> Sequence[PlannedTrial]:
        """The trials."""
        ...


class Schedule:
    """Hands out assignments and hears how they ended."""

    def __init__(
        self, sweep: Sweep, folder: SweepFolder, *, names: Sequence[str], suggest: Suggest | None = None
    ) -> None:
        """`names` are the trials that may run; the others only count."""
        self.metric = sweep.metric
        self._mode = sweep.mode
        self._folder = folder
        self._scheduler = parse_scheduler(sweep.search.get("scheduler"), f"{folder.sweep_file}: scheduler")
        self._suggest = suggest
        self._num_settings = int(sweep.search["num_samples"]) if suggest else 0
        self._is_complete = suggest is None  # whether there will be no more settings
        self._names = set(names)
        self._standings: dict[str, Standing] = {}
        self._groups: dict[Key, list[Standing]] = {}
        self._goals: dict[Key, int] | None = None  # None: to be decided anew
        for standing in read_standings(sweep, folder):
            if standing.state == "failed" and standing.trial.name in self._names:
                standing.state = "pending"  # it is tried again
            self._add(standing)

    @property
    def standings(self) -> list[Standing]:
        """Of every trial, in the order of the plan."""
        return list(self._standings.values())

    @property
    def decides_late(self) -> bool:
        """Whether what runs next depends on results, so that little should be handed out in advance."""
        return self._suggest is not None or not isinstance(self._scheduler, Fifo)

    @property
    def is_over(self) -> bool:
        """Whether nothing will be handed out any more."""
        if self._folder.stop_file.exists():
            return True
        may_change = self.decides_late and any(standing.is_running for standing in self._standings.values())
        return self._is_complete and not may_change and not self._candidates()

    def next(self) -> Assignment | None:
        """What to run now; None if there is nothing, or if it depends on what is running."""
        if self._folder.stop_file.exists():
            return None
        if not self._candidates() and not self._is_complete:
            self._ask()
        candidates = self._candidates()
        if not candidates:
            return None
        goals = self._decided()
        # A fixed set of settings: lower rungs first. A model that suggests learns most from what has gone far.
        sign = -1 if self._suggest else 1
        standing = min(candidates, key=lambda candidate: sign * self._level(goals[key_of(candidate.trial)]))
        standing.is_running = True
        return Assignment(trial=standing.trial, until=goals[key_of(standing.trial)], values=standing.values)

    def end(self, name: str, state: State | None = None, step: int = 0, metric: float | None = None) -> None:
        """The assignment is over: in that state, with the metric as measured there; None if it was not run."""
        standing = self._standings[name]
        standing.is_running = False
        if state is not None:
            standing.state, standing.step = state, step
            if state in ("paused", "finished"):
                standing.measured[step] = math.nan if metric is None else metric
        self._goals = None

    def stopped_early(self) -> list[PlannedTrial]:
        """The trials that wait at a rung and will not go on; one that waits for a failed trial may yet."""
        if not isinstance(self._scheduler, Asha) or self._folder.stop_file.exists() or not self.is_over:
            return []
        groups = [group for group in self._groups.values() if not group_of(group).has_failed]
        return [standing.trial for group in groups for standing in group if standing.state == "paused"]

    def steps_left(self, reported: Mapping[str, int] | None = None) -> list[int]:
        """Of each trial that is expected to go on; those that run have `reported` how far they have come."""
        first = next(iter(self._groups.values()))
        fresh = [Standing(trial=standing.trial, state="pending") for standing in first]
        groups = [*self._groups.values(), *[fresh] * max(self._num_settings - len(self._groups), 0)]
        match self._scheduler:
            case Fifo() | Pbt():
                lengths = [group[0].max_steps for group in groups]
            case Asha(rungs=rungs, reduction_factor=factor):
                lengths = expected_lengths(len(groups), rungs, factor)
                groups.sort(key=lambda group: -max(standing.step for standing in group))
            case _:
                assert_never(self._scheduler)
        return [
            max(length - _step(standing, reported or {}), 0)
            for group, length in zip(groups, lengths, strict=True)
            for standing in group
            if standing.state not in ENDED
        ]

    def _add(self, standing: Standing) -> None:
        self._standings[standing.trial.name] = standing
        self._groups.setdefault(key_of(standing.trial), []).append(standing)
        self._goals = None

    def _ask(self) -> None:
        """Adds another setting, if there is to be one."""
        assert self._suggest, "without, the settings are complete from the start"
        trials = self._suggest(self.standings)
        self._is_complete = not trials
        self._goals = None
        for trial in trials:
            self._names.add(trial.name)
            self._add(Standing(trial=trial, state="pending"))

    def _candidates(self) -> list[Standing]:
        goals = self._decided()
        return [
            standing
            for standing in self._standings.values()
            if standing.trial.name in self._names
            and not standing.is_running
            and standing.state not in ENDED
            and goals[key_of(standing.trial)] not in standing.measured
        ]

    def _level(self, goal: int) -> int:
        return 0 if isinstance(self._scheduler, Fifo) else goal

    def _decided(self) -> dict[Key, int]:
        """How far each setting may go by now."""
        if self._goals is None:
            self._goals = self._decide(self._scheduler)
        return self._goals

    def _decide(self, scheduler: Scheduler) -> dict[Key, int]:
        match scheduler:
            case Fifo():
                return {key: group[0].max_steps for key, group in self._groups.items()}
            case Asha():
                goals = promote(
                    [group_of(group) for group in self._groups.values()],
                    scheduler.rungs,
                    factor=scheduler.reduction_factor,
                    mode=self._mode,
                    is_complete=self._is_complete,
                )
                return dict(zip(self._groups, goals, strict=True))
            case Pbt():
                end_generations(list(self._groups.values()), self._folder, scheduler, mode=self._mode)
                return {key: next_generation(group, scheduler) for key, group in self._groups.items()}
            case _:
                assert_never(scheduler)


def _step(standing: Standing, reported: Mapping[str, int]) -> int:
    return reported.get(standing.trial.name, standing.step) if standing.is_running else standing.step


def describe_search(sweep: Sweep) -> str:
    """`random; asha: compared by viou_solid after 22, 66 of 200 steps, 1 in 3 settings goes on`."""
    scheduler = parse_scheduler(sweep.search.get("scheduler"), "scheduler")
    search = str(sweep.search.get("search", "grid"))
    match scheduler:
        case Fifo():
            return f"{search}; every trial to its end"
        case Asha(rungs=(*rungs, budget), reduction_factor=factor):
            steps = ", ".join(map(str, rungs))
            return f"{search}; asha: compared by {sweep.metric} after {steps} of {budget} steps, 1 in {factor} goes on"
        case Pbt(rungs=(*rungs, budget), ranges=ranges):
            return (
                f"{search}; pbt: the worst settings copy the best by {sweep.metric} and change"
                f" {', '.join(map(leaf, ranges))} after {', '.join(map(str, rungs))} of {budget} steps"
            )
        case _:
            raise AssertionError(f"a scheduler without a description: {scheduler}")
