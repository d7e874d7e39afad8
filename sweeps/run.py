"""Runs a sweep: `python sweeps/run.py --grid rescale`. Plans, runs, resumes, reports."""

import argparse
import dataclasses
import os
import shlex
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress

from sweeps.cache import take_finished
from sweeps.faults import describe_faults
from sweeps.folders import (
    DONE,
    PlannedTrial,
    State,
    SweepFolder,
    create_sweep,
    load_sweep,
    read_statuses,
    write_status,
    write_sweep,
)
from sweeps.interrupt import Interruption
from sweeps.jobs import (
    Job,
    Placement,
    extended_job,
    find_sweep,
    new_job,
    place,
    plan_text,
    resumed_job,
    schedule_of,
    wandb_mode_of,
)
from sweeps.locks import NameTakenError
from sweeps.options import parse
from sweeps.progress import Progress
from sweeps.report import write_report
from sweeps.results import best_trial, compare_settings, count_faults, describe_steps, read_results, write_csv
from sweeps.saved import describe_saved, saved_steps
from sweeps.schedule import Assignment
from sweeps.summary import publish_summary, tracking_of
from sweeps.table import format_table, hint_of

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
        if not arguments.resume and not arguments.extend:
            return start(new_job(arguments), arguments)
        folder = find_sweep(arguments)
        with folder.storage.hold(folder.driver_lock):
            job = resumed_job(folder, arguments) if arguments.resume else extended_job(folder, arguments)
            return start(job, arguments)
    except ValueError as error:  # ours, corrdream's and the configuration's: all of one line
        print(f"sweeps: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # the storage, away for longer than it is waited for
        print(f"sweeps: the storage failed: {' '.join(str(error).split())}; what was saved is kept.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted before any trial was started.", file=sys.stderr)
        return INTERRUPTED


def start(job: Job, arguments: argparse.Namespace) -> int:
    """Prints the plan, starts or joins Ray, and runs what is left; a new sweep's folder is made last."""
    has_work = bool(job.unfinished or job.sweep.trials_to_come)
    if has_work and not job.sweep.measured:
        _say("Measuring a step for the plan ...")
    placement = place(job, arguments) if has_work else None
    if placement or job.cached or arguments.dry_run:
        print(plan_text(job, placement, arguments), flush=True)
    if arguments.dry_run:
        return 0
    with ExitStack() as held:
        if placement is None:
            return conclude(settle(job, placement, arguments, held), {}, arguments)
        os.environ.update({key: value for key, value in ENVIRONMENT.items() if key not in os.environ})
        from sweeps.launch import ray_session
        from sweeps.nodes import check_nodes

        machine = placement.machine
        _say(f"Joining Ray at {arguments.address} ..." if arguments.address else "Starting Ray ...")
        resources = held.enter_context(ray_session(arguments.address, num_cpus=machine.cpus, num_gpus=machine.gpus))
        if arguments.address:
            check_nodes(job.folder, job.config())
        return run(settle(job, placement, arguments, held), placement, resources, arguments)


def settle(job: Job, placement: Placement | None, arguments: argparse.Namespace, held: ExitStack) -> Job:
    """Writes what is to be done, and takes results that the storage has; the new sweep's lock is in `held`."""
    if job.origin == "new":
        job = create(job, placement, may_rename=not arguments.name)
        held.enter_context(job.folder.storage.hold(job.folder.driver_lock))
    if job.origin == "extended":
        write_sweep(job.folder, job.sweep)
    gone = take_finished(job.folder, job.sweep.trials, job.cached)
    if gone:
        print(f"{len(gone)} cached trial(s) were deleted meanwhile: run --resume {job.folder.path.name} for them.")
    return job


def create(job: Job, placement: Placement | None, *, may_rename: bool) -> Job:
    """Makes the sweep's folder; under another name if that of the time of day is taken."""
    measured = dataclasses.asdict(placement.measured) if placement and placement.measured else None
    while True:
        try:
            create_sweep(job.folder, dataclasses.replace(job.sweep, measured=measured))
            return job
        except NameTakenError:
            if not may_rename:
                raise
            job = job.renamed()
            print(f"That name was taken; the results go to {job.folder.storage.uri(job.folder.path)}")


def run(job: Job, placement: Placement, resources: Mapping[str, float], arguments: argparse.Namespace) -> int:
    """Trains until all is done or a signal comes, then reports."""
    from sweeps.launch import SchedulingError, run_trials
    from sweeps.trainable import Spec

    session = f"{time.time_ns()}"

    def to_spec(assignment: Assignment) -> Spec:
        trial = assignment.trial
        progress.add(trial)
        return Spec(
            sweep_folder=job.folder.storage.uri(job.folder.path),
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
    interruption = Interruption(job.folder, _say, f"resume with  {resume_command(job, arguments)}")
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
        mark(job.folder, trial, "stopped early")
    if interruption.exit_code is not None:
        for name in progress.running:  # one that was still starting could not say itself that it was told to stop
            mark(job.folder, progress.trial(name), "stopped")
    job = dataclasses.replace(job, sweep=load_sweep(job.folder))  # settings may have been added
    status = conclude(job, progress.errors, arguments, may_wait=interruption.exit_code is None)
    return status if interruption.exit_code is None else interruption.exit_code


def conclude(job: Job, errors: Mapping[str, str], arguments: argparse.Namespace, *, may_wait: bool = True) -> int:
    """Writes results.csv, report.html and W&B's summary from the trials' folders, and prints the table.

    Returns 1 if a trial is missing.
    """
    for trial in job.sweep.trials:
        if trial.name in errors:
            mark(job.folder, trial, "failed", errors[trial.name])
    results, storage = read_results(job.sweep, job.folder), job.folder.storage
    settings = compare_settings(job.sweep, results)
    table = format_table(settings) if any(result.status.state in DONE for result in results) else "No trial finished."
    print(f"\n{table}\n")
    if hint := hint_of(settings):
        print(f"{hint}\n")
    if unfinished := [result.trial for result in results if result.status.state not in (*DONE, "failed")]:
        print(f"saved        {describe_saved(saved_steps(job.folder, unfinished))}")
    if steps := describe_steps(results):
        print(f"steps        {steps}")
    try:
        write_csv(job.folder.results, results)
        write_report(job.folder.report, job.sweep, results)
        storage.push([job.folder.results, job.folder.report])
        if best := best_trial(job.sweep, results, settings):
            print(f"best         {storage.uri(best.folder)}")
        print(f"results      {storage.uri(job.folder.results)}\nreport       {storage.uri(job.folder.report)}")
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
        with suppress(OSError):  # the report is there; the next one sends it again
            storage.push(path for path in (job.folder.path / "wandb").rglob("*") if path.is_file())
    is_complete = all(result.status.state in DONE for result in results)
    if not is_complete:
        print(f"resume with  {resume_command(job, arguments)}", flush=True)
    return 0 if is_complete else 1


def mark(folder: SweepFolder, trial: PlannedTrial, state: State, error: str = "") -> None:
    """Sets the state of a trial that no process works on."""
    with suppress(OSError):  # no room even for that; it is printed
        status = read_statuses(folder, [trial])[trial.name]
        if status.state != state:
            write_status(folder.trial(trial.name), dataclasses.replace(status, state=state, error=error))
            folder.storage.push([folder.trial(trial.name) / "status.json"])


def resume_command(job: Job, arguments: argparse.Namespace) -> str:
    """The line that finishes the sweep."""
    words = ["python", os.path.relpath(__file__), "--resume", job.folder.path.name]
    if arguments.storage != "runs":
        words += ["--storage", arguments.storage]
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
