"""What the command line asks for, checked and planned before Ray starts; nothing here is written."""

import argparse
import dataclasses
import os
import re
import socket
import time
from dataclasses import dataclass
from importlib.metadata import version

import corrdream
from sweeps import plan
from sweeps.folders import DONE, PlannedTrial, Sweep, SweepError, SweepFolder, load_sweep, read_status
from sweeps.grids import Grid, find_config, load_grid, parse_prompts, parse_seeds
from sweeps.results import measurable_goal
from sweeps.schedule import Schedule, describe_search
from sweeps.suggestions import check_optuna, suggester
from sweeps.trials import base_config, default_labels, expand, planned

CONNECT_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """A sweep and what is left to do of it."""

    sweep: Sweep
    folder: SweepFolder
    unfinished: tuple[PlannedTrial, ...]
    steps_left: dict[str, int]
    is_new: bool

    def renamed(self) -> "Job":
        """The same sweep in another folder, that does not exist."""
        path, number = self.folder.path, 2
        while (other := path.with_name(f"{path.name}+{number}")).exists():
            number += 1
        return dataclasses.replace(
            self, folder=SweepFolder(other), sweep=dataclasses.replace(self.sweep, name=other.name)
        )

    def config(self) -> corrdream.Config:
        """The first unfinished trial's."""
        return corrdream.load_config((), [*self.unfinished, *self.sweep.trials][0].config)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where trials run, and what that is expected to take."""

    machine: plan.Machine
    gpus: float
    measured: plan.Measurement | None
    concurrent: int | None  # None: as many as the cluster holds


def new_job(arguments: argparse.Namespace) -> Job:
    """A sweep that does not exist yet, every trial checked; writes nothing."""
    grid = _narrowed(
        load_grid(
            arguments.grid or "rescale",
            search=arguments.search,
            num_samples=arguments.num_samples,
            scheduler=arguments.scheduler,
            budget=arguments.max_steps,
        ),
        arguments,
    )
    overrides = [*arguments.overrides]
    if arguments.max_steps and grid.scheduler.budget is None:
        overrides.append(f"max_steps={arguments.max_steps}")
    folder = _new_folder(arguments, grid.name)
    trials = tuple(map(planned, expand(grid, overrides)))
    base = base_config(grid, overrides)
    metric, mode = measurable_goal(grid.metric, grid.mode, has_truth=base.prior.kind == "blocks")
    sweep = Sweep(
        name=folder.path.name,
        grid=grid.name,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        command=arguments.command,
        metric=metric,
        mode=mode,
        default=default_labels(grid, overrides),
        trials=trials,
        base=corrdream.config_to_dict(base),
        versions={package: version(package) for package in ("corrdream", "ray", "torch", "numpy")},
        search=grid.search_to_plain(),
    )
    check_optuna(sweep)
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
    if arguments.name and (storage / name).exists():
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
    decided |= {
        "--search": arguments.search,
        "--scheduler": arguments.scheduler,
        "--num-samples": arguments.num_samples,
    }
    given = [option for option, value in decided.items() if value] + arguments.overrides
    if given:
        raise SweepError(f"--resume takes the trials from the sweep; leave out {given[0]}, or start a new sweep.")
    folder = SweepFolder(arguments.storage.expanduser().resolve() / arguments.resume)
    sweep = load_sweep(folder)
    check_optuna(sweep)
    first = sweep.trials[0]
    if corrdream.identity(corrdream.load_config((), first.config)) != first.identity:
        raise SweepError(
            f"{folder.path} was computed with other sources of corrdream or another prior;"
            " go back to those, or start a new sweep."
        )
    states = {trial.name: read_status(folder.trial(trial.name), trial.identity) for trial in sweep.trials}
    unfinished = tuple(trial for trial in sweep.trials if states[trial.name].state not in DONE)
    steps = {trial.name: int(trial.config["max_steps"]) - states[trial.name].step for trial in unfinished}
    return Job(sweep=sweep, folder=folder, unfinished=unfinished, steps_left=steps, is_new=False)


def place(job: Job, arguments: argparse.Namespace) -> Placement:
    """Measures a step, and fits trials into what there is; SweepError if they cannot fit."""
    _check_address(arguments.address)
    machine, config = plan.this_machine(), job.config()
    gpus = arguments.gpus_per_trial
    if gpus is None:
        gpus = 1.0 if machine.gpus and config.device != "cpu" and not arguments.address else 0.0
    if gpus < 0:
        raise SweepError(f"--gpus-per-trial must not be negative, got {gpus:g}.")
    trials, cpus = len(job.unfinished) + job.sweep.trials_to_come, arguments.cpus_per_trial
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


def _check_address(address: str | None) -> None:
    """SweepError if nothing listens there; Ray itself would try for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return  # none, or `auto`
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise SweepError(
            f"no Ray at {address} ({error}); start it there with `ray start --head`, or leave out --address."
        ) from error


def schedule_of(job: Job) -> Schedule:
    """What hands out the trials that are left."""
    names = [trial.name for trial in job.unfinished]
    return Schedule(job.sweep, job.folder, names=names, suggest=suggester(job.sweep, job.folder))


def wandb_mode_of(job: Job, arguments: argparse.Namespace) -> corrdream.WandbMode:
    """--wandb, or output.wandb where the configuration asks for it, or what WANDB_MODE and the key say."""
    configured = str(job.sweep.base["output"].get("wandb", "disabled"))
    return corrdream.wandb_mode(arguments.wandb or (configured if configured != "disabled" else None))


def plan_text(job: Job, placement: Placement, arguments: argparse.Namespace) -> str:
    """What will be done, where, and how long it will take."""
    sweep, done = job.sweep, len(job.sweep.trials) - len(job.unfinished)
    settings = len({tuple(trial.labels.items()) for trial in sweep.trials})
    prompts = len({trial.prompt for trial in sweep.trials})
    pairs = len({(trial.prompt, trial.seed) for trial in sweep.trials})
    steps = schedule_of(job).steps_left()
    concurrent = placement.concurrent or arguments.max_concurrent or len(steps)
    trials = f"{len(sweep.trials)} = {settings} settings x {prompts} prompts x {pairs // prompts} seeds"
    trials += f", {sweep.trials_to_come} more to be suggested" if sweep.trials_to_come else ""
    trials += f"; {done} finished, {len(steps)} to run" if done else ""
    each = f"{arguments.cpus_per_trial} thread(s), {placement.gpus:g} GPU(s) a trial"
    place = f"Ray at {arguments.address}" if arguments.address else f"this machine's {placement.machine.cpus} cores"
    at_once = f"{placement.concurrent} at once" if placement.concurrent else "as many at once as fit"
    return plan.format_plan(
        {
            "sweep": f"{sweep.name} (grid {sweep.grid})",
            "trials": trials,
            "search": describe_search(sweep),
            "steps": f"{sum(steps)} in all, up to {max(steps)} a trial",
            "time": plan.describe_time(placement.measured, steps, concurrent),
            "resources": f"{each}, {at_once}, on {place}",
            "tracking": f"TensorBoard, {corrdream.explain_wandb_mode(wandb_mode_of(job, arguments))}",
            "results": str(job.folder.path),
        }
    )
