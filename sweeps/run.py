"""Runs a sweep: `python sweeps/run.py --grid rescale`. Plans, runs, resumes, reports."""

import argparse
import dataclasses
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from sweeps.faults import POLICY_KEYS, FaultPolicy, describe_faults
from sweeps.folders import DONE, NameTakenError, State, create_sweep, hold_lock, load_sweep, read_status, write_status
from sweeps.interrupt import Interruption
from sweeps.jobs import Job, Placement, new_job, place, plan_text, resumed_job, schedule_of, wandb_mode_of
from sweeps.progress import Progress
from sweeps.report import write_report
from sweeps.results import (
    compare_settings,
    count_faults,
    describe_steps,
    format_table,
    read_results,
    sort_key,
    write_csv,
)
from sweeps.schedule import Assignment
from sweeps.summary import publish_summary, tracking_of

INTERRUPTED = 128 + signal.SIGINT
REPORT_SECONDS = 2.5
# Set before Ray is imported, unless the user has set them.
ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",  # left unset, Ray's programs disagree about it
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "A worker died or was killed",  # said in our own words
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one prints tables whatever the verbosity
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 all trials done, 1 some failed, 2 nothing was started because of a wrong input, 130 Ctrl-C."""
    try:
        arguments = parse(sys.argv[1:] if argv is None else argv)
        if not arguments.resume:
            return start(new_job(arguments), arguments)
        job = resumed_job(arguments)
        with hold_lock(job.folder.driver_lock):
            if not job.unfinished and not job.sweep.trials_to_come:
                return conclude(job, {}, arguments)
            return start(job, arguments)
    except ValueError as error:  # ours, corrdream's and the configuration's: all of one line
        print(f"sweeps: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted before any trial was started.", file=sys.stderr)
        return INTERRUPTED


def start(job: Job, arguments: argparse.Namespace) -> int:
    """Prints the plan, starts or joins Ray, and runs what is left; a new sweep's folder is made last."""
    placement = place(job, arguments)
    print(plan_text(job, placement, arguments), flush=True)
    if arguments.dry_run:
        return 0
    os.environ.update({key: value for key, value in ENVIRONMENT.items() if key not in os.environ})
    from sweeps.launch import ray_session
    from sweeps.nodes import check_nodes

    machine = placement.machine
    with (
        ray_session(arguments.address, num_cpus=machine.cpus, num_gpus=machine.gpus) as resources,
        ExitStack() as locks,
    ):
        if arguments.address:
            check_nodes(job.folder.path.parent, job.config())
        if job.is_new:
            job = create(job, placement, may_rename=not arguments.name)
            locks.enter_context(hold_lock(job.folder.driver_lock))
        return run(job, placement, resources, arguments)


def create(job: Job, placement: Placement, *, may_rename: bool) -> Job:
    """Makes the sweep's folder; under another name if that of the time of day is taken."""
    measured = dataclasses.asdict(placement.measured) if placement.measured else None
    while True:
        try:
            create_sweep(job.folder, dataclasses.replace(job.sweep, measured=measured))
            return job
        except NameTakenError:
            if not may_rename:
                raise
            job = job.renamed()
            print(f"That name was taken; the results go to {job.folder.path}")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="sweeps/run.py", description="Sweep hyperparameters of text-to-3D runs.")
    parser.add_argument(
        "--grid", metavar="NAME|FILE", help="a grid of configs/grids, or a YAML file (default: rescale)"
    )
    parser.add_argument("--config", metavar="FILE", help="another base configuration than the grid's")
    parser.add_argument("--prompts", nargs="+", metavar="TEXT", help="instead of the grid's")
    parser.add_argument("--seeds", nargs="+", metavar="N", help="instead of the grid's")
    parser.add_argument("--max-steps", type=_positive, metavar="N", help="optimizer steps of each trial")
    parser.add_argument(
        "--search", choices=["grid", "random", "optuna"], help="where settings come from (default: as the grid says)"
    )
    parser.add_argument("--num-samples", type=_positive, metavar="N", help="settings that a search draws")
    parser.add_argument(
        "--scheduler", choices=["fifo", "asha", "pbt"], help="how steps are spent (default: as the grid says)"
    )
    parser.add_argument(
        "--max-concurrent", type=_positive, metavar="N", help="trials at once (default: as many as fit)"
    )
    parser.add_argument(
        "--cpus-per-trial", type=_positive, default=1, metavar="N", help="threads of a trial (default: 1)"
    )
    parser.add_argument(
        "--gpus-per-trial", type=float, metavar="X", help="may be a fraction (default: 1 if there is a GPU)"
    )
    parser.add_argument(
        "--address",
        default=os.environ.get("RAY_ADDRESS"),
        help="join this Ray cluster (default: $RAY_ADDRESS, or start an own one)",
    )
    parser.add_argument(
        "--storage",
        type=_folder,
        default=os.environ.get("CORRDREAM_STORAGE") or "runs",
        metavar="DIR",
        help="where sweeps lie (default: $CORRDREAM_STORAGE, or runs)",
    )
    parser.add_argument("--name", help="folder below --storage (default: the grid's name and the time)")
    parser.add_argument("--resume", metavar="NAME", help="finish a sweep that was interrupted")
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the plan, run nothing")
    parser.add_argument(
        "--wandb", choices=["disabled", "offline", "online"], help="default: online with an API key, else offline"
    )
    parser.add_argument(
        "--on-fault",
        nargs="+",
        default=[],
        metavar="FAULT=POLICY",
        help="lost=N (retries of a lost process, default 2), out_of_memory=smaller_chunk|fail, disk_full=fail|retry",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="configuration of every trial")
    arguments = _separate_overrides(parser.parse_intermixed_args(argv))
    arguments.command = ["sweeps/run.py", *argv]
    arguments.on_fault = FaultPolicy.parse(arguments.on_fault)
    return arguments


def _folder(text: str) -> Path:
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is no folder; mount it, and give the path")
    return Path(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _separate_overrides(arguments: argparse.Namespace) -> argparse.Namespace:
    """`--seeds 0 1 max_steps=50`: what looks like key=value is an override, wherever it stands."""
    for name in ("prompts", "seeds", "on_fault"):
        values = getattr(arguments, name) or []
        moved = [value for value in values if re.match(r"[a-z_.]+=", value) and not _is_policy(name, value)]
        arguments.overrides = [*moved, *arguments.overrides]
        setattr(arguments, name, [value for value in values if value not in moved] or None)
    arguments.on_fault = arguments.on_fault or []
    return arguments


def _is_policy(option: str, word: str) -> bool:
    return option == "on_fault" and word.partition("=")[0] in POLICY_KEYS


def run(job: Job, placement: Placement, resources: Mapping[str, float], arguments: argparse.Namespace) -> int:
    """Trains until all is done or a signal comes, then reports."""
    from sweeps.launch import SchedulingError, run_trials
    from sweeps.trainable import Spec

    session = f"{time.time_ns()}"

    def to_spec(assignment: Assignment) -> Spec:
        trial = assignment.trial
        progress.add(trial)
        return Spec(
            sweep_folder=str(job.folder.path),
            trial=trial.name,
            identity=trial.identity,
            config=trial.config,
            cpus=arguments.cpus_per_trial,
            gpus=placement.gpus,
            report_seconds=REPORT_SECONDS,
            tracking=tracking_of(job.sweep, trial, wandb_mode_of(job, arguments)),
            until=assignment.until,
            values=dict(assignment.values),
            session=session,
            policy=dataclasses.asdict(arguments.on_fault),
        )

    schedule = schedule_of(job)
    interruption = Interruption(job.folder.stop_file, _say, f"resume with  {resume_command(job, arguments)}")
    interruption.install()
    if resources.get("CPU", 0) < arguments.cpus_per_trial or resources.get("GPU", 0) < placement.gpus:
        _say("The cluster cannot hold a trial now; waiting until it grows.")
    if arguments.address and arguments.gpus_per_trial is None and resources.get("GPU"):
        _say(f"The cluster's {resources['GPU']:g} GPU(s) stay idle: --gpus-per-trial 1 gives each trial one.")
    concurrent = placement.concurrent or max(1, int(resources.get("CPU", 1)) // arguments.cpus_per_trial)
    progress = Progress(
        job.sweep,
        job.folder,
        steps=job.steps_left,
        seconds_per_step=placement.measured.seconds_per_step if placement.measured else None,
        concurrent=min(concurrent, arguments.max_concurrent or concurrent),
        write=_say,
        steps_left=schedule.steps_left,
    )
    try:
        run_trials(
            schedule,
            to_spec,
            job.folder,
            progress,
            cpus=arguments.cpus_per_trial,
            gpus=placement.gpus,
            max_concurrent=placement.concurrent or arguments.max_concurrent,
            max_failures=arguments.on_fault.lost,
        )
    except SchedulingError as error:
        _say(f"Ray stopped: {error}")
    for trial in schedule.stopped_early():
        mark(job.folder.trial(trial.name), trial.identity, "stopped early")
    job = dataclasses.replace(job, sweep=load_sweep(job.folder))  # settings may have been added
    status = conclude(job, progress.errors, arguments, may_wait=interruption.exit_code is None)
    return status if interruption.exit_code is None else interruption.exit_code


def conclude(job: Job, errors: Mapping[str, str], arguments: argparse.Namespace, *, may_wait: bool = True) -> int:
    """Writes results.csv, report.html and W&B's summary from the trials' folders, and prints the table.

    Returns 1 if a trial is missing.
    """
    for name, error in errors.items():
        identity = next(trial.identity for trial in job.sweep.trials if trial.name == name)
        mark(job.folder.trial(name), identity, "failed", error)
    results = read_results(job.sweep, job.folder)
    print(f"\n{format_table(compare_settings(job.sweep, results))}\n")
    if steps := describe_steps(results):
        print(f"steps        {steps}")
    try:
        write_csv(job.folder.results, results)
        write_report(job.folder.report, job.sweep, results)
        best = min(results, key=lambda result: sort_key(result, job.sweep.metric, job.sweep.mode))
        if job.sweep.metric in best.metrics:
            print(f"best         {best.folder}")
        print(f"results      {job.folder.results}\nreport       {job.folder.report}")
    except OSError as error:
        print(f"cannot write the report: {error}", file=sys.stderr)
    for result in results:
        reason = result.status.error if result.status.state == "failed" else errors.get(result.trial.name)
        if reason:
            print(f"failed       {result.trial.name}: {reason}")
    if counts := count_faults(results):
        print(f"faults       {describe_faults(counts)}")
    mode = wandb_mode_of(job, arguments)
    if may_wait and mode != "disabled":
        publish_summary(job.folder.path, job.sweep, results, mode)
    is_complete = all(result.status.state in DONE for result in results)
    if not is_complete:
        print(f"resume with  {resume_command(job, arguments)}", flush=True)
    return 0 if is_complete else 1


def mark(trial_folder: Path, identity: str, state: State, error: str = "") -> None:
    """Sets the state of a trial that no process works on."""
    status = read_status(trial_folder, identity)
    if status.state != state:
        with suppress(OSError):  # no room even for that; it is printed
            write_status(trial_folder, dataclasses.replace(status, state=state, error=error))


def resume_command(job: Job, arguments: argparse.Namespace) -> str:
    """The line that finishes the sweep."""
    words = ["python", os.path.relpath(__file__), "--resume", job.folder.path.name]
    if arguments.storage != Path("runs"):
        words += ["--storage", str(arguments.storage)]
    for option in ("max_concurrent", "gpus_per_trial", "address", "wandb"):
        value = getattr(arguments, option)
        if value is not None:
            words += [f"--{option.replace('_', '-')}", str(value)]
    if arguments.on_fault.words():
        words += ["--on-fault", *arguments.on_fault.words()]
    if arguments.cpus_per_trial != 1:
        words += ["--cpus-per-trial", str(arguments.cpus_per_trial)]
    return shlex.join(words)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    if status == INTERRUPTED:
        os._exit(status)  # Ray's exit handlers crash when it was interrupted while it started
    sys.exit(status)
