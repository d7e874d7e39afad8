"""What a person sees while a sweep runs: one plain line every few seconds, readable on a terminal and in a log."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from sweeps.folders import PlannedTrial, Sweep, SweepFolder, read_statuses
from sweeps.parameters import describe
from sweeps.results import Result, read_results, sort_key

SHOW_EVERY_SECONDS = 10.0
GRADE_SECONDS = 20.0  # turntable and grade of a trial, until one was seen


class Progress:
    """Counts trials and steps as they are reported."""

    def __init__(
        self,
        sweep: Sweep,
        folder: SweepFolder,
        *,
        steps: Mapping[str, int],
        seconds_per_step: float | None,
        concurrent: int,
        write: Callable[[str], None],
        steps_left: Callable[[Mapping[str, int]], Sequence[int]] | None = None,
    ) -> None:
        """`steps` says how many steps are left of each trial that is to run, `steps_left` how many it
        expects of each, given how far those have come that run.
        """
        self._sweep = sweep
        self._folder = folder
        self._trials = {trial.name: trial for trial in sweep.trials}
        self._left = dict(steps)
        self._planned_pace = seconds_per_step
        self._concurrent = concurrent
        self._write = write
        self._steps_left = steps_left or self._all_left
        self._begun = time.monotonic()
        self._shown = -math.inf
        self._steps_done = 0
        self._seconds_spent = 0.0
        self._spent_before: dict[str, float] = {}
        self._grade_seconds = GRADE_SECONDS  # of the trial that was graded last
        self._grading_since: dict[str, float] = {}
        self._finished: dict[str, Result] = {}  # read once: their files do not change any more
        self._read([trial for trial in sweep.trials if trial.name not in steps])
        self.running: set[str] = set()
        self.ended: set[str] = set()
        self.errors: dict[str, str] = {}

    def add(self, trial: PlannedTrial) -> None:
        """A trial may start; new ones count from here on."""
        if trial.name not in self._trials:
            self._trials[trial.name] = trial
            self._left[trial.name] = int(trial.config["max_steps"])

    def trial(self, name: str) -> PlannedTrial:
        """The trial of that name."""
        return self._trials[name]

    def start(self, name: str) -> None:
        """A process works on the trial (again)."""
        self.running.add(name)
        self._spent_before.pop(name, None)

    def retry(self, name: str) -> None:
        """The trial's process died; another one will continue it."""
        self.running.discard(name)
        error = read_statuses(self._folder, [self._trials[name]])[name].error
        reason = f"failed ({error})" if error else "lost its process"
        self._write(f"{self._clock()}  {name} {reason}; another one continues from the newest checkpoint")

    def report(self, name: str, status: Mapping[str, Any]) -> None:
        """The trial took some steps, or ended."""
        for text in status["warnings"]:
            self._write(f"{self._clock()}  {name}: {text}")
        left = self._max_steps(name) - int(status["step"])
        if name in self._spent_before:  # the first report of an attempt holds what earlier ones spent
            spent = status["seconds"] - self._spent_before[name]
            if self._left[name]:
                self._steps_done += max(0, self._left[name] - left)
                self._seconds_spent += spent
            else:
                self._grade_seconds = spent
        self._spent_before[name] = status["seconds"]
        self._left[name] = left
        if not left:
            self._grading_since.setdefault(name, time.monotonic())
        match status["state"]:
            case "failed":
                self.fail(name, status["error"])
            case "finished":
                self._end(name)
                self._read([self._trials[name]])
                self._write(f"{self._clock()}  finished {name} in {status['seconds']:.0f} s")
            case "stopped":
                self._end(name)
            case "paused":
                self.running.discard(name)

    def fail(self, name: str, error: str) -> None:
        """The trial is given up."""
        self._end(name)
        self.errors[name] = error
        self._write(f"{self._clock()}  failed {name}: {error}")

    def show(self, *, every: float = SHOW_EVERY_SECONDS) -> None:
        """Prints the line if it is time."""
        now = time.monotonic()
        if now - self._shown >= every:
            self._shown = now
            self._write(self.line())

    def line(self) -> str:
        """How far, how fast, how long, how good."""
        total = len(self._trials)
        ended = total - len(self._left) + len(self.ended)
        shown = [self._where(name) for name in sorted(self.running)[:4]]
        where = f" ({', '.join(shown)})" if shown else ""
        if not (shown or self.ended or self._spent_before):
            return f"{self._clock()}  {ended} of {total} trials done, processes are starting"
        parts = [f"{ended} of {total} trials done, {len(self.running)} running{where}"]
        pace = self._pace()
        if pace:
            parts.append(f"{1 / pace:.1f} steps/s each")
            parts.append(f"about {format_seconds(self._seconds_left(pace))} left")
        best = self._best()
        return f"{self._clock()}  " + ", ".join([*parts, best] if best else parts)

    def _where(self, name: str) -> str:
        if not self._left[name]:
            return "grading"
        return f"step {self._step(name)}/{self._max_steps(name)}" if name in self._spent_before else "starting"

    def _step(self, name: str) -> int:
        return self._max_steps(name) - self._left[name]

    def _max_steps(self, name: str) -> int:
        return int(self._trials[name].config["max_steps"])

    def _end(self, name: str) -> None:
        self.running.discard(name)
        self.ended.add(name)

    def _clock(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self._begun), 60)
        return f"{minutes:02d}:{seconds:02d}"

    def _pace(self) -> float | None:
        """Seconds a step of one trial: as measured so far, or as planned."""
        return self._seconds_spent / self._steps_done if self._steps_done else self._planned_pace

    def _seconds_left(self, pace: float) -> float:
        steps_left = self._steps_left({name: self._step(name) for name in self.running})
        left = [pace * steps + self._grade_seconds for steps in steps_left]
        since = [time.monotonic() - self._grading_since[name] for name in self.running & self._grading_since.keys()]
        graded = sum(min(seconds, self._grade_seconds) for seconds in since)
        longest = max((pace * steps + self._grade_seconds for steps in steps_left if steps), default=0.0)
        return max((sum(left) - graded) / self._concurrent, longest)

    def _all_left(self, _steps: Mapping[str, int]) -> list[int]:
        return [steps for name, steps in self._left.items() if name not in self.ended]

    def _read(self, finished: Sequence[PlannedTrial]) -> None:
        with suppress(OSError):  # the storage is away; they are read again for the report
            for result in read_results(dataclasses.replace(self._sweep, trials=tuple(finished)), self._folder):
                self._finished[result.trial.name] = result

    def _best(self) -> str:
        metric, mode = self._sweep.metric, self._sweep.mode
        best = min(self._finished.values(), key=lambda result: sort_key(result, metric, mode), default=None)
        if best is None or metric not in best.metrics:
            return ""
        return f"best {metric} {best.metrics[metric]:.3f} ({describe(best.trial.labels)}, {best.trial.prompt})"


def format_seconds(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
