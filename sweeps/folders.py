"""The truth about a sweep lies in plain files of its own; Ray only schedules.

STORAGE/.finished/          where finished trials lie, by identity
STORAGE/NAME/ sweep.json    what was asked for: options, versions, every trial with its whole configuration
              results.csv   report.html   driver.lock   STOP (while the sweep is being interrupted)
              trials/TRIAL/ status.json, trial.lock, rungs.json (metrics by step, where a scheduler compares midway),
                            history.json (values by step, in a population),
                            and corrdream's run folder: config.yaml metrics.jsonl checkpoints/
              .tune/        Tune's scratch; may be deleted

What is read here must have been pulled, and what is written must be pushed, if the storage is not a folder.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sweeps.locks import NameTakenError, SweepError
from sweeps.storage import FolderStorage, Storage

# paused: waits at a rung for the scheduler's decision. stopped: by a signal. stopped early: by the scheduler, for good.
State = Literal["pending", "running", "paused", "stopped", "finished", "stopped early", "failed"]
DONE = ("finished", "stopped early")  # what is not run again
HISTORY = "history.json"
FORMAT = 2


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
    source: str = ""  # the sweep that it was taken from, if it was not run in this one


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
    commands: list[list[str]]  # that started it, then those that extended it
    options: dict[str, Any]  # of the command line that decided the trials; what --extend does not give anew
    metric: str
    mode: Literal["max", "min"]
    default: dict[str, str] | None
    trials: tuple[PlannedTrial, ...]
    base: dict[str, Any]  # the base configuration, against which the report shows differences
    versions: dict[str, str]
    fingerprints: dict[str, str]  # of corrdream's sources and the base's prior
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
    """Names of the files of one sweep on this machine, and the storage that has them."""

    path: Path
    storage: Storage = field(default_factory=FolderStorage)

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
    place = folder.storage.uri(folder.path)
    try:
        folder.storage.create(folder.path)
        write_sweep(folder, sweep)
    except FileExistsError as error:
        raise NameTakenError(
            f"{place} exists; choose another --name, or continue it with --resume {folder.path.name}."
        ) from error
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise SweepError(f"cannot write to {place}: {reason}; choose another place with --storage.") from error


def write_sweep(folder: SweepFolder, sweep: Sweep) -> None:
    """Replaces sweep.json."""
    write_json(folder.sweep_file, {"format": FORMAT, **dataclasses.asdict(sweep)})
    folder.storage.push([folder.sweep_file])


def load_sweep(folder: SweepFolder) -> Sweep:
    """What sweep.json says; SweepError if there is none or it is not ours."""
    place = folder.storage.uri(folder.path)
    folder.storage.pull([folder.sweep_file])
    try:
        plain = json.loads(folder.sweep_file.read_text(encoding="utf-8"))
        if plain.pop("format") != FORMAT:
            raise SweepError(f"{place} was written by another version of this program; use that one.")
        trials = tuple(PlannedTrial(**trial) for trial in plain.pop("trials"))
        return Sweep(**plain, trials=trials)
    except FileNotFoundError as error:
        raise SweepError(f"there is no sweep in {place}; {_others(folder)}.") from error
    except (OSError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise SweepError(f"{folder.sweep_file} cannot be read: {error}; start a new sweep.") from error


def _others(folder: SweepFolder) -> str:
    root = folder.path.parent
    names = folder.storage.sweeps(root)
    return f"{folder.storage.uri(root)} has {', '.join(names[-5:]) if names else 'no sweeps'}"


def describe_size(trials: Sequence[PlannedTrial]) -> str:
    """`8 = 4 settings x 2 prompts x 1 seeds`; `of` in place of `=` where some combinations are not there."""
    settings = len({tuple(trial.labels.items()) for trial in trials})
    prompts, seeds = len({trial.prompt for trial in trials}), len({trial.seed for trial in trials})
    sign = "=" if len(trials) == settings * prompts * seeds else "of"
    return f"{len(trials)} {sign} {settings} settings x {prompts} prompts x {seeds} seeds"


def flatten(plain: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A configuration as dotted keys and values as text; a schedule counts as one value."""
    flat: dict[str, str] = {}
    for key, value in plain.items():
        if isinstance(value, dict) and not {"values", "progress", "steps"} & value.keys():
            flat |= flatten(value, f"{prefix}{key}.")
        elif isinstance(value, dict):
            flat[prefix + key] = json.dumps({name: part for name, part in value.items() if part is not None})
        else:
            flat[prefix + key] = json.dumps(value)
    return flat


def write_status(trial_folder: Path, status: Status) -> None:
    """Replaces the trial's status.json."""
    write_json(trial_folder / "status.json", dataclasses.asdict(status))


def read_statuses(folder: SweepFolder, trials: Sequence[PlannedTrial]) -> dict[str, Status]:
    """Where the trials stand now, by name."""
    folder.storage.pull(folder.trial(trial.name) / "status.json" for trial in trials)
    return {trial.name: read_status(folder.trial(trial.name), trial.identity) for trial in trials}


def read_status(trial_folder: Path, identity: str) -> Status:
    """The trial's status; pending if it has none, or if that of another configuration lies there."""
    try:
        status = Status(**json.loads((trial_folder / "status.json").read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
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
    write_json(trial_folder / HISTORY, history)


def read_history(trial_folder: Path) -> list[dict[str, Any]]:
    """`{step, source, values}` of every generation of a population: the values from that step on, and whose copy."""
    try:
        return list(json.loads((trial_folder / HISTORY).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return []


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
