"""Adapter between corrdream's trainer and Ray Tune.

Tune schedules. What was computed lies in the trial's own folder (`folders.py`), so an attempt that follows a kill, a
lost node or another driver continues from the newest valid checkpoint there, whatever Tune remembers.
"""

import dataclasses
import json
import os
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from typing import Any, NoReturn

import torch
from ray import tune
from ray.exceptions import RayActorError

import corrdream
from sweeps import faults
from sweeps.cache import record_finished
from sweeps.faults import FaultPolicy, preemption_notice
from sweeps.folders import State, Status, SweepFolder, read_status, write_rung, write_status
from sweeps.locks import LockedError, SweepError
from sweeps.logs import Warnings, trial_log
from sweeps.places import sweep_at
from sweeps.results import collect_metrics
from sweeps.summary import UNTRACKED

PREEMPTED = "told to leave (SIGTERM); a checkpoint was saved"
LOCK_WAIT_SECONDS = 90.0  # the workers of a killed driver live on for some seconds; a lost node's claim for 60

# What another attempt would only repeat. Anything else (a lost GPU, a file server that hung) is raised, and Tune tries
# again in a new process.
HOPELESS = (ValueError, corrdream.TrainingDivergedError)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """What a worker needs to run one trial. Tune carries it as one text, into which it does not look."""

    sweep_folder: str
    trial: str
    identity: str
    config: dict[str, Any]
    cpus: int
    gpus: float
    report_seconds: float
    until: int = 0  # pause after so many steps; 0 runs to the end
    values: dict[str, float] = dataclasses.field(default_factory=dict)  # that a population has changed since
    tracking: dict[str, Any] = dataclasses.field(default_factory=lambda: UNTRACKED)  # `summary.tracking_of`
    session: str = ""  # of the driver
    policy: dict[str, Any] = dataclasses.field(default_factory=dict)  # of `FaultPolicy`

    def to_text(self) -> str:
        """JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_text(cls, text: str) -> "Spec":
        """What `to_text` gave."""
        return cls(**json.loads(text))


class CorrDreamTrainable(tune.Trainable):  # type: ignore[misc]  # Ray has no types
    """One trial after another in one process; the frozen prior stays loaded between them."""

    def setup(self, config: dict[str, Any]) -> None:
        """Only hears of the first trial: Tune may give it to a process that comes free while this one starts."""
        self._prior: Any = None
        self._prior_config: Any = None
        self._hear_of(Spec.from_text(config["spec"]))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Lets the trial go and hears of another one, which will have the prior that is loaded."""
        self._let_go()
        self._hear_of(Spec.from_text(new_config["spec"]))
        return True

    def step(self) -> dict[str, Any]:
        """Trains for some seconds; the last call grades, so that the report before it says that this comes."""
        self._open()
        if self._status.state == "running":
            begun = time.monotonic()
            try:
                self._advance()
            except Exception as error:
                self._give_up_or_raise(error)
            self._record(seconds=self._status.seconds + time.monotonic() - begun)
            self._mirror.update()
        is_done = self._status.state != "running"
        if is_done:
            self._resources.close()
        return dataclasses.asdict(self._status) | {
            "done": is_done,
            "warnings": self._warnings.take(),
            "measured": self._measured,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Saves in the trial's own folder; Tune gets the step."""
        self._trainer.save_to(self._run)
        return {"step": self._trainer.step}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Nothing: opening the trial has already loaded its newest checkpoint, which is never older than Tune's."""

    def cleanup(self) -> None:
        """Lets the trial go, before Ray ends the process and all that it started."""
        self._let_go()
        corrdream.end_wandb()

    def _let_go(self) -> None:
        """Tune may take a trial that runs to another process; only one that dies leaves it as running."""
        if self._status.state == "running":
            self._record(state="stopped")
        self._resources.close()

    def _hear_of(self, spec: Spec) -> None:
        self._spec, self._is_open = spec, False
        self._status = Status(identity=spec.identity)
        self._resources = ExitStack()

    def _open(self) -> None:
        """Once: continues the trial where its folder says, or starts it; not if the sweep is being stopped."""
        if self._is_open:
            return
        self._is_open = True
        spec = self._spec
        sweep_folder = sweep_at(spec.sweep_folder)
        self._sweep_folder = sweep_folder
        self._folder = sweep_folder.trial(spec.trial)
        self._stop_file = sweep_folder.stop_file
        self._report_seconds = spec.report_seconds
        self._trainer: Any = None
        self._warnings = Warnings()
        self._measured: dict[str, float] = {}  # at the rung or the end where the attempt ended
        self._until = spec.until
        self._leaving = self._resources.enter_context(preemption_notice())
        self._policy = FaultPolicy(**spec.policy)
        sweep_folder.storage.pull([self._stop_file])
        if self._stop_file.exists():
            self._status = dataclasses.replace(self._status, state="stopped")
            return
        try:
            self._open_run(spec, sweep_folder)
        except LockedError:  # status.json is the other process's
            raise
        except Exception as error:
            self._give_up_or_raise(error)

    def _open_run(self, spec: Spec, sweep_folder: SweepFolder) -> None:
        node, storage = os.uname().nodename, sweep_folder.storage
        if not storage.exists(sweep_folder.sweep_file):
            raise SweepError(f"node {node} does not see {spec.sweep_folder}; choose a --storage that all nodes share.")
        config = corrdream.load_config((), spec.config)
        if corrdream.identity(config) != spec.identity:
            raise SweepError(
                f"corrdream's sources or the prior on node {node} are not those that the sweep was started with;"
                " put those back and resume, or start a new sweep."
            )
        if spec.values:  # `identity` stays that of the trial as it was planned
            config = corrdream.load_config((), {**spec.config, **spec.values})
        torch.set_num_threads(spec.cpus)
        hold = self._resources.enter_context(storage.hold(self._folder / "trial.lock", wait_seconds=LOCK_WAIT_SECONDS))
        self._mirror = self._resources.enter_context(storage.work_on(self._folder, self._stop_file, hold))
        self._warnings = self._resources.enter_context(trial_log(self._folder))
        before = read_status(self._folder, spec.identity)
        lost = before.state == "running" and not before.error  # an attempt that ended by itself says how
        met = ["worker_lost" if before.session == spec.session else "driver_lost"] if lost else []
        self._status = dataclasses.replace(
            before,
            state="running",
            max_steps=config.max_steps,
            attempts=before.attempts + (before.state != "paused"),  # a pause is no interruption
            error="",
            faults=faults.add(before.faults, met),
            session=spec.session,
        )
        self._record()
        device = torch.device("cpu") if config.device == "auto" and not spec.gpus else None
        if self._prior is None or self._prior_config != config.prior:
            self._prior = None  # its memory is free before the next one is loaded
            self._prior, self._prior_config = corrdream.build_prior(config, device), config.prior
        self._trainer, self._run = corrdream.open_run(self._folder, config, prior=self._prior, device=device)
        self._trainer.ray_chunk = self._status.ray_chunk or None
        self._record(faults=faults.add(self._status.faults, self._warnings.faults))
        called, extra = corrdream.WandbRun(**spec.tracking["run"]), spec.tracking["config"]
        self._tracker = corrdream.Tracker(self._run, called, mode=spec.tracking["mode"], config=spec.config | extra)
        self._resources.callback(self._tracker.close)

    def _advance(self) -> None:
        """Some steps, and what follows from where they end."""
        was_trained = self._trainer.finished
        report = self._trainer.fit(self._run, seconds=self._report_seconds, should_stop=self._should_stop)
        self._tracker.update()
        if self._leaving:
            self._trainer.save_to(self._run)  # it may have come after the last look at it
            self._record(step=report.step, faults=faults.add(self._status.faults, ["preempted"]))
            self._go_on_elsewhere(PREEMPTED)
        state: State = "running"
        if report.finished:
            if was_trained:
                self._finish()
                state = "finished"
        elif self._stop_file.exists():
            self._trainer.save_to(self._run)  # it may have come after the last look at it
            state = "stopped"
        elif self._is_at_rung():
            self._measured = self._collect(corrdream.measure(self._trainer), report.seconds)
            write_rung(self._folder, report.step, self._measured)
            state = "paused"
        self._status = dataclasses.replace(self._status, state=state, step=report.step)

    def _finish(self) -> None:
        """Grades, and offers the result to other sweeps."""
        self._measured = self._collect(corrdream.finish_run(self._trainer, self._run), 0.0)
        self._tracker.close(self._measured)
        if not self._spec.values:  # else it is not the run that its identity names
            record_finished(self._sweep_folder, self._spec.trial, self._spec.identity)

    def _should_stop(self) -> bool:
        return bool(self._leaving) or self._is_at_rung() or self._stop_file.exists()

    def _is_at_rung(self) -> bool:
        return bool(0 < self._until <= self._trainer.step)

    def _collect(self, graded: Mapping[str, Any], spent: float) -> dict[str, float]:
        return collect_metrics(self._folder, graded, self._status.seconds + spent)

    def _give_up_or_raise(self, error: Exception) -> None:
        """Fails the trial if another attempt would fail too; else raises again, and Tune makes that attempt."""
        match error:
            case RayActorError():  # ours, which says so
                raise error
            case torch.OutOfMemoryError():
                self._give_up_or_take_fewer_rays(error)
            case _ if faults.is_disk_error(error):
                self._fail_or_raise(error, "disk_full", fail=self._policy.disk_full == "fail")
            case corrdream.TrainingDivergedError():
                self._fail_or_raise(error, "not_finite", fail=True)
            case _:
                self._fail_or_raise(error, None, fail=isinstance(error, HOPELESS))

    def _give_up_or_take_fewer_rays(self, error: torch.OutOfMemoryError) -> None:
        """The first time another attempt gets a quarter of the rays at a time, which rounds differently only."""
        if self._trainer is None:  # the prior alone did not fit
            self._fail_or_raise(error, "out_of_memory", fail=True)
            return
        met = faults.add(self._status.faults, ["out_of_memory"])
        text = corrdream.explain_out_of_memory(self._trainer, self._run)
        if self._status.ray_chunk or self._policy.out_of_memory == "fail":
            self._record(state="failed", error=f"OutOfMemoryError: {text}", faults=met)
            return
        chunk = corrdream.smaller_ray_chunk(self._trainer)
        text = f"{text} Trying again with {chunk} rays at a time."
        self._record(faults=met, ray_chunk=chunk)
        self._go_on_elsewhere(text)

    def _fail_or_raise(self, error: Exception, kind: str | None, *, fail: bool) -> None:
        met = faults.add(self._status.faults, [kind] if kind else [])
        if not fail:
            self._record(error=_line(error), faults=met)
            raise error
        self._record(state="failed", error=_line(error), faults=met)

    def _go_on_elsewhere(self, why: str) -> NoReturn:
        """Tune answers a preemption with another attempt in a new process, however often."""
        self._record(error=why)
        self._let_go()
        raise RayActorError(error_msg=why, preempted=True)

    def _record(self, **changes: Any) -> None:
        """Updates status.json; where even that cannot be written, the driver still hears of it."""
        self._status = dataclasses.replace(self._status, **changes)
        with suppress(OSError):
            write_status(self._folder, self._status)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
