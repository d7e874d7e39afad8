"""The truth about a sweep lies in plain files of its own; Ray only schedules.

STORAGE/NAME/ sweep.json    what was asked for: options, versions, every trial with its whole configuration
              results.csv   report.html   driver.lock   STOP (while the sweep is being interrupted)
              trials/TRIAL/ status.json, trial.lock, rungs.json (metrics by step, where a scheduler compares midway),
                            history.json (values by step, in a population),
                            and corrdream's run folder: config.yaml metrics.jsonl checkpoints/
              .tune/        Tune's scratch; may be deleted

A lock is held through the operating system, so that it ends with the process that held it, however that ended.
"""

import dataclasses
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

# paused: waits at a rung for the scheduler's decision. stopped: by a signal. stopped early: by the scheduler, for good.
State = Literal["pending", "running", "paused", "stopped", "finished", "stopped early", "failed"]
DONE = ("finished", "stopped early")  # what is not run again
FORMAT = 1


class SweepError(ValueError):
    """A sweep that cannot be started or continued: one line that names the thing and the cure."""


class NameTakenError(SweepError):
    """A sweep of that name exists."""


class LockedError(SweepError):
    """Another process holds the lock."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """Where a trial stands. `seconds` is time spent in steps over all attempts."""

    identity: str
    state: State = "pending"
    step: int = 0
    max_steps: int = 0
    seconds: float = 0.0
    attempts: int = 0
    error: str = ""
    faults: dict[str, int] = field(default_factory=dict)  # how often each of `faults.KINDS` was met
    session: str = ""  # of the driver that ran the last attempt
    ray_chunk: int = 0  # rays at a time since the memory ran out; 0: all


@dataclass(frozen=True, kw_only=True)
class PlannedTrial:
    """A trial as sweep.json keeps it."""

    name: str
    labels: dict[str, str]
    prompt: str
    seed: int
    identity: str
    config: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What was asked for, complete enough to be finished by another process on another day."""

    name: str
    grid: str
    created: str
    command: list[str]
    metric: str
    mode: Literal["max", "min"]
    default: dict[str, str] | None
    trials: tuple[PlannedTrial, ...]
    base: dict[str, Any]  # the base configuration, against which the report shows differences
    versions: dict[str, str]
    search: dict[str, Any] = dataclasses.field(default_factory=dict)  # `Grid.search_to_plain`
    measured: dict[str, float] | None = None  # `plan.Measurement` of a trial, so that it is taken once

    @property
    def trials_to_come(self) -> int:
        """How many trials a search that suggests them one by one will still add."""
        if self.search.get("search") != "optuna":
            return 0
        settings = len({tuple(trial.labels.items()) for trial in self.trials})
        return (int(self.search["num_samples"]) - settings) * (len(self.trials) // settings)


@dataclass(frozen=True)
class SweepFolder:
    """Names of the files of one sweep."""

    path: Path

    @property
    def sweep_file(self) -> Path:
        """What was asked for."""
        return self.path / "sweep.json"

    @property
    def results(self) -> Path:
        """One row a trial."""
        return self.path / "results.csv"

    @property
    def report(self) -> Path:
        """The page for people."""
        return self.path / "report.html"

    @property
    def stop_file(self) -> Path:
        """Exists while running trials are asked to save and stop."""
        return self.path / "STOP"

    @property
    def driver_lock(self) -> Path:
        """Held by the process that runs the sweep."""
        return self.path / "driver.lock"

    @property
    def tune(self) -> Path:
        """Scratch of Ray Tune; nothing is read from it."""
        return self.path / ".tune"

    def trial(self, name: str) -> Path:
        """A trial's run folder."""
        return self.path / "trials" / name


def create_sweep(folder: SweepFolder, sweep: Sweep) -> None:
    """Makes the folder and writes sweep.json; NameTakenError if it exists, SweepError if it cannot."""
    try:
        folder.path.parent.mkdir(parents=True, exist_ok=True)
        folder.path.mkdir()
        write_sweep(folder, sweep)
    except FileExistsError as error:
        raise NameTakenError(
            f"{folder.path} exists; choose another --name, or continue it with --resume {folder.path.name}."
        ) from error
    except OSError as error:
        raise SweepError(
            f"cannot write to {folder.path}: {error.strerror}; choose another place with --storage."
        ) from error


def write_sweep(folder: SweepFolder, sweep: Sweep) -> None:
    """Replaces sweep.json."""
    write_json(folder.sweep_file, {"format": FORMAT, **dataclasses.asdict(sweep)})


def load_sweep(folder: SweepFolder) -> Sweep:
    """What sweep.json says; SweepError if there is none or it is not ours."""
    try:
        plain = json.loads(folder.sweep_file.read_text(encoding="utf-8"))
        if plain.pop("format") != FORMAT:
            raise SweepError(f"{folder.sweep_file} was written by another version of this program.")
        trials = tuple(PlannedTrial(**trial) for trial in plain.pop("trials"))
        return Sweep(**plain, trials=trials)
    except FileNotFoundError as error:
        raise SweepError(f"there is no sweep to resume in {folder.path}; {_others(folder)}.") from error
    except (OSError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise SweepError(f"{folder.sweep_file} cannot be read: {error}; start a new sweep.") from error


def _others(folder: SweepFolder) -> str:
    names = sorted(path.parent.name for path in folder.path.parent.glob("*/sweep.json"))
    return f"{folder.path.parent} has {', '.join(names[-5:]) if names else 'no sweeps'}"


def write_status(trial_folder: Path, status: Status) -> None:
    """Replaces the trial's status.json."""
    write_json(trial_folder / "status.json", dataclasses.asdict(status))


def read_status(trial_folder: Path, identity: str) -> Status:
    """The trial's status; pending if it has none, or if that of another configuration lies there."""
    try:
        status = Status(**json.loads((trial_folder / "status.json").read_text(encoding="utf-8")))
    except (FileNotFoundError, json.JSONDecodeError, TypeError):
        return Status(identity=identity)
    return status if status.identity == identity else Status(identity=identity)


def write_rung(trial_folder: Path, step: int, metrics: Mapping[str, float]) -> None:
    """Adds what was measured at a step to the trial's rungs.json."""
    rungs = read_rungs(trial_folder) | {step: dict(metrics)}
    write_json(trial_folder / "rungs.json", {str(key): rungs[key] for key in sorted(rungs)})


def read_rungs(trial_folder: Path) -> dict[int, dict[str, float]]:
    """Metrics by the step at which they were measured; only where a scheduler compares trials midway."""
    try:
        plain = json.loads((trial_folder / "rungs.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return {int(step): metrics for step, metrics in plain.items()}


def write_history(trial_folder: Path, history: list[dict[str, Any]]) -> None:
    """Replaces the trial's history.json."""
    write_json(trial_folder / "history.json", history)


def read_history(trial_folder: Path) -> list[dict[str, Any]]:
    """`{step, source, values}` of every generation of a population: the values from that step on, and whose copy."""
    try:
        return list(json.loads((trial_folder / "history.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        return []


@contextmanager
def hold_lock(path: Path, *, wait_seconds: float = 0.0) -> Iterator[None]:
    """Holds the lock while inside; LockedError, naming the holder, if it is not free within `wait_seconds`."""
    deadline = time.monotonic() + wait_seconds
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    file.seek(0)
                    holder = file.read().strip() or "another process"
                    raise LockedError(f"{path.parent} is in use by {holder}; wait for it, or end it.") from error
                time.sleep(0.2)
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        file.flush()
        yield


def write_json(path: Path, plain: Any) -> None:
    """Writes the whole file or nothing."""
    write_text(path, json.dumps(plain, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes the whole file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
