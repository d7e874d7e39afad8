"""Starts or joins Ray and lets Tune schedule trials. Nothing is ever restored from Tune's own snapshots.

They lag behind the checkpoints, they are pickles, and they ignore trials that were added. A sweep that continues gets a
new Tuner with the unfinished trials instead, and each of these finds its newest checkpoint in its own folder.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune.experiment import Trial as TuneTrial

from sweeps.folders import SweepError, SweepFolder
from sweeps.progress import Progress
from sweeps.trainable import CorrDreamTrainable, Spec

OBJECT_STORE_BYTES = 100_000_000  # only scalars travel
MAX_RETRIES = 2  # of a trial whose process dies


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
    except (RuntimeError, ConnectionError, ValueError, OSError, RayError) as error:
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
    specs: Sequence[Spec],
    folder: SweepFolder,
    progress: Progress,
    *,
    cpus: int,
    gpus: float,
    max_concurrent: int | None,
) -> None:
    """Runs every trial to its end, or until there is a stop file and all running ones have saved and stopped."""
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # `progress` and the trials' status say it
    tuner = tune.Tuner(
        tune.with_resources(CorrDreamTrainable, {"cpu": cpus, "gpu": gpus}),
        param_space={"spec": tune.grid_search([spec.to_text() for spec in specs])},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=max_concurrent,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=f"attempt-{time.time_ns()}",
            storage_path=str(folder.tune),
            failure_config=tune.FailureConfig(max_failures=MAX_RETRIES),
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
    return Spec.from_text(trial.config["spec"]).identity


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
