"""Starts or joins Ray and lets Tune schedule trials. Nothing is ever restored from Tune's own snapshots.

They lag behind the checkpoints, they are pickles, and they ignore trials that were added. A sweep that continues gets a
new Tuner instead, and each trial finds its newest checkpoint in its own folder. What runs next is decided by
`schedule.py`; to Tune that is a searcher, and a trial that pauses at a rung is one trial of Tune's before it and
another after it.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.search import Searcher

from sweeps.faults import FaultPolicy
from sweeps.folders import SweepFolder
from sweeps.locks import SweepError
from sweeps.progress import Progress
from sweeps.schedule import Assignment, Schedule
from sweeps.trainable import CorrDreamTrainable, Spec

OBJECT_STORE_BYTES = 100_000_000  # only scalars travel
MAX_PENDING = 200  # trials that wait for a place


class SchedulingError(RuntimeError):
    """Ray or Tune gave up; what the trials have saved is not touched by that."""


@contextmanager
def ray_session(address: str | None, *, num_cpus: int, num_gpus: int) -> Iterator[dict[str, float]]:
    """Ray's resources by name: a new instance on this machine, or the cluster at `address`."""
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
    try:
        if address:
            ray.init(address=address, **quiet)
        else:
            ray.init(
                address="local",
                num_cpus=num_cpus,
                num_gpus=num_gpus,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                **quiet,
            )
    except Exception as error:  # Ray raises bare ones too, as when a loaded machine takes longer than 30 s to start it
        what = f"cannot join Ray at {address}" if address else "cannot start Ray"
        raise SweepError(f"{what}: {_one_line(error)}") from error
    try:
        yield ray.cluster_resources()
    finally:
        ray.shutdown()


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "ersion mismatch" in text:
        text += " Use the same versions on all machines, or leave --address out to start an own Ray."
    return text


def run_trials(
    schedule: Schedule,
    to_spec: Callable[[Assignment], Spec],
    folder: SweepFolder,
    progress: Progress,
    *,
    cpus: int,
    gpus: float,
    max_concurrent: int | None,
    max_failures: int = FaultPolicy.lost,
    trainable: type[tune.Trainable] = CorrDreamTrainable,  # another one, and no reuse, only to measure overhead
    reuse_actors: bool = True,
) -> None:
    """Runs what the schedule hands out, until it is over or there is a stop file and all running trials have saved."""
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # `progress` and the trials' status say it
    if max_concurrent is None:  # how much to ask of a cluster that grows
        os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "1" if schedule.decides_late else str(MAX_PENDING))
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": cpus, "gpu": gpus}),
        tune_config=tune.TuneConfig(
            search_alg=_Assignments(schedule, to_spec),
            num_samples=-1,  # until it is over
            max_concurrent_trials=max_concurrent,
            reuse_actors=reuse_actors,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=f"attempt-{time.time_ns()}",
            storage_path=folder.storage.uri(folder.tune),
            failure_config=tune.FailureConfig(max_failures=max_failures),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            stop=_StopTogether(folder, progress),
            callbacks=[_ProgressCallback(progress)],
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    except Exception as error:  # whatever Tune raises, what the trials have saved is still to be reported
        raise SchedulingError(f"{type(error).__name__}: {_one_line(error)}") from error


def _trial_name(trial: TuneTrial) -> str:
    spec = _spec(trial)
    return f"{spec.identity}-{spec.until}"


class _Assignments(Searcher):  # type: ignore[misc]  # Ray has no types
    """The schedule as Tune sees it. Its state is in the trials' folders, so Tune's snapshots hold none of it."""

    def __init__(self, schedule: Schedule, to_spec: Callable[[Assignment], Spec]) -> None:
        super().__init__()
        self._schedule = schedule
        self._to_spec = to_spec
        self._names: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing."""

    def suggest(self, trial_id: str) -> dict[str, str] | str | None:
        """The next assignment; None where that depends on what is running."""
        if self._schedule.is_over:
            return str(Searcher.FINISHED)
        assignment = self._schedule.next()
        if assignment is None:
            return str(Searcher.FINISHED) if self._schedule.is_over else None
        self._names[trial_id] = assignment.trial.name
        return {"spec": self._to_spec(assignment).to_text()}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """How it ended; `result` is None where no process reported anything."""
        name = self._names.pop(trial_id)
        if error:
            self._schedule.end(name, "failed")
        elif result and "state" in result:
            metric = result.get(f"measured/{self._schedule.metric}")
            self._schedule.end(name, result["state"], int(result["step"]), metric)
        else:
            self._schedule.end(name)


class _StopTogether(tune.Stopper):  # type: ignore[misc]  # Ray has no types
    """Ends the experiment once there is a stop file and no running trial is still about to save."""

    def __init__(self, folder: SweepFolder, progress: Progress) -> None:
        self._folder = folder
        self._progress = progress

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._folder.stop_file.exists() and not self._progress.running


class _ProgressCallback(tune.Callback):  # type: ignore[misc]  # Ray has no types
    """Passes on what Tune hears of the trials."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._progress.start(_spec(trial).trial)

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        self._progress.report(_spec(trial).trial, result)

    def on_trial_recover(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._progress.retry(_spec(trial).trial)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._progress.fail(_spec(trial).trial, _cause(trial))

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        self._progress.show()


def _spec(trial: TuneTrial) -> Spec:
    return Spec.from_text(trial.config["spec"])


def _cause(trial: TuneTrial) -> str:
    """One line: the exception of the trial, or how its process died."""
    lines = [line.strip() for line in str(trial.get_error() or "").splitlines() if line.strip()]
    return (lines or ["its process died"])[-1][:500]
