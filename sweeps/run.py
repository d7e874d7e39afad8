"""Runs a sweep: `python sweeps/run.py --grid rescale`. Plans, runs, resumes, reports."""

import argparse
import dataclasses
import os
import re
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import corrdream
from sweeps import plan
from sweeps.folders import (
    PlannedTrial,
    Sweep,
    SweepError,
    SweepFolder,
    create_sweep,
    hold_lock,
    load_sweep,
    read_status,
    write_status,
)
from sweeps.grids import Grid, base_config, default_labels, expand, find_config, load_grid, parse_prompts, parse_seeds
from sweeps.interrupt import Interruption
from sweeps.progress import Progress
from sweeps.report import write_report
from sweeps.results import compare_settings, format_table, read_results, write_csv
from sweeps.tracking import wandb_mode

REPORT_SECONDS = 2.5
# Set before Ray is imported, unless the user has set them.
ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",  # left unset, Ray's programs disagree about it
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one prints tables whatever the verbosity
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """A sweep and what is left to do of it."""

    sweep: Sweep
    folder: SweepFolder
    unfinished: tuple[PlannedTrial, ...]
    steps_left: dict[str, int]
    is_new: bool

    def config(self) -> corrdream.Config:
        """The first unfinished trial's."""
        return corrdream.load_config((), self.unfinished[0].config)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where trials run, and what that is expected to take."""

    machine: plan.Machine
    gpus: float
    measured: plan.Measurement | None
    concurrent: int | None  # None: as many as the cluster holds


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 all trials finished, 1 some failed, 2 nothing was started because of a wrong input, 130 Ctrl-C."""
    arguments = parse(sys.argv[1:] if argv is None else argv)
    try:
        job = resumed_job(arguments) if arguments.resume else new_job(arguments)
        if not job.unfinished:
            return conclude(job, {}, arguments)
        placement = place(job, arguments)
        print(plan_text(job, placement, arguments), flush=True)
        if arguments.dry_run:
            return 0
        if job.is_new:
            measured = dataclasses.asdict(placement.measured) if placement.measured else None
            create_sweep(job.folder, dataclasses.replace(job.sweep, measured=measured))
        with hold_lock(job.folder.path / "driver.lock"):
            return run(job, placement, arguments)
    except ValueError as error:  # ours, corrdream's and the configuration's: all of one line
        print(f"sweeps: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted before any trial was started.", file=sys.stderr)
        return 130


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
        "--storage", type=Path, default=Path("runs"), metavar="DIR", help="where sweeps lie (default: runs)"
    )
    parser.add_argument("--name", help="folder below --storage (default: the grid's name and the time)")
    parser.add_argument("--resume", metavar="NAME", help="finish a sweep that was interrupted")
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the plan, run nothing")
    parser.add_argument(
        "--wandb", choices=["disabled", "offline", "online"], help="default: online if a key is set, else offline"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="configuration of every trial")
    return _separate_overrides(parser.parse_intermixed_args(argv))


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _separate_overrides(arguments: argparse.Namespace) -> argparse.Namespace:
    """`--seeds 0 1 max_steps=50`: what looks like key=value is an override, wherever it stands."""
    for name in ("prompts", "seeds"):
        values = getattr(arguments, name) or []
        moved = [value for value in values if re.match(r"[a-z_.]+=", value)]
        arguments.overrides = [*moved, *arguments.overrides]
        setattr(arguments, name, [value for value in values if value not in moved] or None)
    return arguments


def new_job(arguments: argparse.Namespace) -> Job:
    """A sweep that does not exist yet, every trial checked; writes nothing."""
    grid = _narrowed(load_grid(arguments.grid or "rescale"), arguments)
    overrides = [*arguments.overrides, *([f"max_steps={arguments.max_steps}"] if arguments.max_steps else [])]
    folder = _new_folder(arguments, grid.name)
    trials = tuple(
        PlannedTrial(**{**vars(trial), "labels": dict(trial.labels), "config": corrdream.config_to_dict(trial.config)})
        for trial in expand(grid, overrides)
    )
    sweep = Sweep(
        name=folder.path.name,
        grid=grid.name,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        command=list(sys.argv),
        metric=grid.metric,
        mode=grid.mode,
        default=default_labels(grid, overrides),
        trials=trials,
        base=corrdream.config_to_dict(base_config(grid, overrides)),
        versions={package: version(package) for package in ("corrdream", "ray", "torch", "numpy")},
    )
    steps = {trial.name: int(trial.config["max_steps"]) for trial in trials}
    return Job(sweep=sweep, folder=folder, unfinished=trials, steps_left=steps, is_new=True)


def _narrowed(grid: Grid, arguments: argparse.Namespace) -> Grid:
    """The grid with what the command line replaces of it."""
    if arguments.config:
        grid = dataclasses.replace(grid, config=find_config(arguments.config))
    if arguments.prompts:
        grid = dataclasses.replace(grid, prompts=parse_prompts(arguments.prompts, "--prompts"))
    if arguments.seeds:
        seeds = [int(text) if text.isdecimal() else text for text in arguments.seeds]
        grid = dataclasses.replace(grid, seeds=parse_seeds(seeds, "--seeds"))
    return grid


def _new_folder(arguments: argparse.Namespace, grid_name: str) -> SweepFolder:
    """A folder that does not exist and can be made."""
    storage = arguments.storage.expanduser().resolve()
    name = arguments.name or f"{grid_name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if not re.fullmatch(r"[A-Za-z0-9][\w.=-]*", name):
        raise SweepError(f"--name {name!r} must be letters, digits, '.', '_', '-' and '='.")
    number = 1
    while (storage / name).exists() and not arguments.name:
        number += 1
        name = f"{name.rpartition('+')[0] or name}+{number}"
    if (storage / name).exists():
        raise SweepError(f"{storage / name} exists; choose another --name, or continue it with --resume {name}.")
    existing = next(path for path in (storage, *storage.parents) if path.exists())
    if not existing.is_dir():
        raise SweepError(f"cannot write to {storage}: {existing} is a file; choose another place with --storage.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise SweepError(f"cannot write to {existing}; choose another place with --storage.")
    return SweepFolder(storage / name)


def resumed_job(arguments: argparse.Namespace) -> Job:
    """What an interrupted sweep has left to do; SweepError if its trials would not be the same any more."""
    decided = {"--grid": arguments.grid, "--config": arguments.config, "--prompts": arguments.prompts}
    decided |= {"--seeds": arguments.seeds, "--max-steps": arguments.max_steps, "--name": arguments.name}
    given = [option for option, value in decided.items() if value] + arguments.overrides
    if given:
        raise SweepError(f"--resume takes the trials from the sweep; leave out {given[0]}, or start a new sweep.")
    folder = SweepFolder(arguments.storage.expanduser().resolve() / arguments.resume)
    sweep = load_sweep(folder)
    first = sweep.trials[0]
    if corrdream.identity(corrdream.load_config((), first.config)) != first.identity:
        raise SweepError(
            f"{folder.path} was computed with other sources of corrdream or another prior;"
            " go back to those, or start a new sweep."
        )
    states = {trial.name: read_status(folder.trial(trial.name), trial.identity) for trial in sweep.trials}
    unfinished = tuple(trial for trial in sweep.trials if states[trial.name].state != "finished")
    steps = {trial.name: int(trial.config["max_steps"]) - states[trial.name].step for trial in unfinished}
    return Job(sweep=sweep, folder=folder, unfinished=unfinished, steps_left=steps, is_new=False)


def place(job: Job, arguments: argparse.Namespace) -> Placement:
    """Measures a step, and fits trials into what there is; SweepError if they cannot fit."""
    machine, config = plan.this_machine(), job.config()
    gpus = arguments.gpus_per_trial
    if gpus is None:
        gpus = 1.0 if machine.gpus and config.device != "cpu" and not arguments.address else 0.0
    if gpus < 0:
        raise SweepError(f"--gpus-per-trial must not be negative, got {gpus:g}.")
    trials, cpus = len(job.unfinished), arguments.cpus_per_trial
    measured = concurrent = None
    if not arguments.address:
        plan.concurrency(machine, trials=trials, cpus=cpus, gpus=gpus, limit=None, measured=None)
    plan.check_disk(job.folder.path, trials=trials, keep=config.output.checkpoint_keep, measured=None)
    if job.sweep.measured:
        measured = plan.Measurement(**job.sweep.measured)
    elif not gpus or machine.gpus:
        measured = plan.measure(config, cpus=cpus, gpus=gpus)
        plan.check_disk(job.folder.path, trials=trials, keep=config.output.checkpoint_keep, measured=measured)
    if not arguments.address:
        limit = arguments.max_concurrent
        concurrent = plan.concurrency(machine, trials=trials, cpus=cpus, gpus=gpus, limit=limit, measured=measured)
    return Placement(machine=machine, gpus=gpus, measured=measured, concurrent=concurrent)


def plan_text(job: Job, placement: Placement, arguments: argparse.Namespace) -> str:
    """What will be done, where, and how long it will take."""
    sweep, done = job.sweep, len(job.sweep.trials) - len(job.unfinished)
    settings = len({tuple(trial.labels.items()) for trial in sweep.trials})
    prompts = len({trial.prompt for trial in sweep.trials})
    pairs = len({(trial.prompt, trial.seed) for trial in sweep.trials})
    steps = list(job.steps_left.values())
    concurrent = placement.concurrent or arguments.max_concurrent or len(steps)
    trials = f"{len(sweep.trials)} = {settings} settings x {prompts} prompts x {pairs // prompts} seeds"
    each = f"{arguments.cpus_per_trial} thread(s), {placement.gpus:g} GPU(s) a trial"
    place = f"Ray at {arguments.address}" if arguments.address else f"this machine's {placement.machine.cpus} cores"
    at_once = f"{placement.concurrent} at once" if placement.concurrent else "as many at once as fit"
    return plan.format_plan(
        {
            "sweep": f"{sweep.name} (grid {sweep.grid})",
            "trials": trials + (f"; {done} finished, {len(steps)} to run" if done else ""),
            "steps": f"{sum(steps)} in all, up to {max(steps)} a trial",
            "time": plan.describe_time(placement.measured, steps, concurrent),
            "resources": f"{each}, {at_once}, on {place}",
            "tracking": f"TensorBoard, W&B {wandb_mode(arguments.wandb)}",
            "results": str(job.folder.path),
        }
    )


def run(job: Job, placement: Placement, arguments: argparse.Namespace) -> int:
    """Trains under Ray until all is done or a signal comes, then reports."""
    os.environ.update({key: value for key, value in ENVIRONMENT.items() if key not in os.environ})
    from sweeps.launch import ray_session, run_trials
    from sweeps.trainable import Spec

    specs = [
        Spec(
            sweep_folder=str(job.folder.path),
            trial=trial.name,
            identity=trial.identity,
            config=trial.config,
            cpus=arguments.cpus_per_trial,
            gpus=placement.gpus,
            report_seconds=REPORT_SECONDS,
            wandb_mode=wandb_mode(arguments.wandb),
        )
        for trial in job.unfinished
    ]
    interruption = Interruption(job.folder.stop_file, _say, f"Resume with: {resume_command(job, arguments)}")
    interruption.install()
    with ray_session(arguments.address, num_cpus=placement.machine.cpus, num_gpus=placement.machine.gpus) as resources:
        interruption.take_over()
        concurrent = placement.concurrent or max(1, int(resources.get("CPU", 1)) // arguments.cpus_per_trial)
        progress = Progress(
            job.sweep,
            job.folder,
            steps=job.steps_left,
            seconds_per_step=placement.measured.seconds_per_step if placement.measured else None,
            concurrent=min(concurrent, arguments.max_concurrent or concurrent),
            write=_say,
        )
        run_trials(
            specs,
            job.folder,
            progress,
            cpus=arguments.cpus_per_trial,
            gpus=placement.gpus,
            max_concurrent=placement.concurrent or arguments.max_concurrent,
        )
    status = conclude(job, progress.errors, arguments)
    if interruption.exit_code is not None:
        _say(f"Resume with: {resume_command(job, arguments)}")
        return interruption.exit_code
    return status


def conclude(job: Job, errors: dict[str, str], arguments: argparse.Namespace) -> int:
    """Writes results.csv and report.html from the trials' folders, and prints the table; 1 if a trial is missing."""
    for trial in job.sweep.trials:
        if trial.name in errors:
            _mark_failed(job.folder.trial(trial.name), trial.identity, errors[trial.name])
    results = read_results(job.sweep, job.folder)
    write_csv(job.folder.results, results)
    write_report(job.folder.report, job.sweep, results)
    rows = compare_settings(job.sweep, results)
    print(f"\n{format_table(rows)}\n")
    failed = [result for result in results if result.status.state == "failed"]
    for result in failed:
        print(f"failed: {result.trial.name}: {result.status.error}")
    if failed:
        print(f"Try those again with: {resume_command(job, arguments)}")
    print(f"results  {job.folder.results}\nreport   {job.folder.report}", flush=True)
    return 1 if any(result.status.state != "finished" for result in results) else 0


def _mark_failed(folder: Path, trial_identity: str, error: str) -> None:
    """For a trial whose process could not say so itself."""
    status = read_status(folder, trial_identity)
    if status.state != "failed":
        write_status(folder, dataclasses.replace(status, state="failed", error=error))


def resume_command(job: Job, arguments: argparse.Namespace) -> str:
    """The line that finishes the sweep."""
    words = ["python", os.path.relpath(__file__), "--resume", job.folder.path.name]
    if arguments.storage != Path("runs"):
        words += ["--storage", str(arguments.storage)]
    for option in ("max_concurrent", "gpus_per_trial", "address", "wandb"):
        value = getattr(arguments, option)
        if value is not None:
            words += [f"--{option.replace('_', '-')}", str(value)]
    if arguments.cpus_per_trial != 1:
        words += ["--cpus-per-trial", str(arguments.cpus_per_trial)]
    return shlex.join(words)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
