"""Schedules are data: a number, or a piecewise function of the optimizer step. Pure Python, no torch.

`steps` counts optimizer steps; `progress` counts in fractions of the run's planned length (`horizon`), so that a
short run passes through every phase of a long one.
"""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal


class ScheduleError(ValueError):
    """A schedule that does not describe a function of the step."""


@dataclass(frozen=True)
class Piecewise:
    """A function of the step through `values` at `steps` (or at `progress`), constant outside them."""

    values: list[float] = field(default_factory=list)
    steps: list[int] | None = None
    progress: list[float] | None = None
    interpolate: Literal["linear", "hold"] = "linear"

    def __str__(self) -> str:
        return _as_yaml(vars(self))

    def check(self, key: str) -> None:
        """ScheduleError, naming `key`, unless this is a function of the step."""
        if (self.steps is None) == (self.progress is None):
            raise ScheduleError(f"{key} must give exactly one of steps and progress, got {self}.")
        knots = self.knots(horizon=1)
        if len(knots) != len(self.values) or not knots:
            raise ScheduleError(f"{key} must have as many values as knots, at least one, got {self}.")
        if any(later <= earlier for earlier, later in pairwise(knots)):
            raise ScheduleError(f"{key} must have increasing knots, got {self}.")
        if self.progress is not None and not all(0.0 <= knot <= 1.0 for knot in self.progress):
            raise ScheduleError(f"{key}.progress must lie in [0, 1], got {self.progress}.")

    def knots(self, horizon: int) -> list[float]:
        """The knots in optimizer steps."""
        if self.steps is not None:
            return [float(step) for step in self.steps]
        return [fraction * horizon for fraction in self.progress or ()]


Schedule = int | float | Piecewise


@dataclass(frozen=True)
class Window:
    """Half-open range of steps [start, end), in steps or in progress."""

    steps: tuple[int, int] | None = None
    progress: tuple[float, float] | None = None

    def __str__(self) -> str:
        return _as_yaml(vars(self))

    def check(self, key: str) -> None:
        """ScheduleError, naming `key`, unless this is a range of steps."""
        bounds = self.steps if self.progress is None else self.progress
        if bounds is None or (self.steps is not None and self.progress is not None):
            raise ScheduleError(f"{key} must give exactly one of steps and progress, got {self}.")
        if not 0 <= bounds[0] <= bounds[1]:
            raise ScheduleError(f"{key} must be [start, end] with 0 <= start <= end, got {list(bounds)}.")
        if self.progress is not None and bounds[1] > 1:
            raise ScheduleError(f"{key}.progress must lie in [0, 1], got {list(bounds)}.")

    def contains(self, step: int, horizon: int) -> bool:
        """Whether the step falls into the window of a run planned for `horizon` steps."""
        if self.steps is not None:
            return self.steps[0] <= step < self.steps[1]
        start, end = self.progress or (0.0, 0.0)
        return start * horizon <= step < end * horizon


def value_at(schedule: Schedule, step: int, horizon: int) -> float:
    """The schedule's value at an optimizer step of a run planned for `horizon` steps."""
    if not isinstance(schedule, Piecewise):
        return float(schedule)
    knots = schedule.knots(horizon)
    index = bisect_right(knots, step)
    if index == 0:
        return float(schedule.values[0])
    if index == len(knots) or schedule.interpolate == "hold":
        return float(schedule.values[index - 1])
    fraction = (step - knots[index - 1]) / (knots[index] - knots[index - 1])
    return schedule.values[index - 1] + fraction * (schedule.values[index] - schedule.values[index - 1])


def _as_yaml(fields: Mapping[str, Any]) -> str:
    given = {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
    return f"{{{', '.join(f'{name}: {value}' for name, value in given.items() if value is not None)}}}"
