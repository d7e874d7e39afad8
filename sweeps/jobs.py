"""What the command line asks for, checked and planned before Ray starts; nothing here is written."""

import argparse
import dataclasses
import re
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import corrdream
from sweeps import plan
from sweeps.cache import find_finished
from sweeps.extension import DECIDING, extend, refuse_other_fingerprints, with_defaults
from sweeps.folders import DONE, PlannedTrial, Sweep, SweepFolder, describe_size, load_sweep, read_statuses
from sweeps.grids import CONFIGS, Grid, find_config, load_grid, parse_prompts, parse_seeds
from sweeps.locks import SweepError
from sweeps.narrowing import for_all_trials
from sweeps.parameters import leaf
from sweeps.places import sweep_in
from sweeps.results import measurable_goal
from sweeps.saved import list_continued, saved_steps
from sweeps.schedule import Schedule, describe_search
from sweeps.schedulers import Fifo, parse_scheduler
from sweeps.suggestions import check_optuna, suggester
from sweeps.trials import base_config, default_labels, expand, planned

CONNECT_SECONDS = 10.0
MAX_VALUES = 8  # of a parameter that the plan lists


@dataclass(frozen=True, kw_only=True)
class Job:
    """A sweep and what is left to do of it."""

    sweep: Sweep
    folder: SweepFolder
    unfinished: tuple[PlannedTrial, ...]  # and not to be taken from elsewhere
    cached: dict[str, Path]  # finished trials with the same identity, by the names of those that take their results
    steps_left: dict[str, int]
    origin: Literal["new", "extended", "resumed"]

    def renamed(self) -> "Job":
        """The same sweep in another folder, that does not exist."""
        path, number = self.folder.path, 2
        while self.folder.storage.exists(other := path.with_name(f"{path.name}+{number}")):
            number += 1
        return dataclasses.replace(
            self,
            folder=dataclasses.replace(self.folder, path=other),
            sweep=dataclasses.replace(self.sweep, name=other.name),
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
    grid = _asked_grid(arguments)
    folder = _new_folder(arguments, grid.name)
    return _job(_plan_sweep(folder.path.name, grid, arguments), folder, "new", arguments)


def _asked_grid(arguments: argparse.Namespace) -> Grid:
    """The grid file as the command line changes it."""
    grid = load_grid(
        arguments.grid or "rescale",
        overrides=arguments.overrides,
        search=arguments.search,
        num_samples=arguments.num_samples,
        scheduler=arguments.scheduler,
        budget=arguments.max_steps,
    )
    return _narrowed(grid, arguments)


def _plan_sweep(name: str, grid: Grid, arguments: argparse.Namespace) -> Sweep:
    """Every trial of the grid that is known before the first result."""
    overrides = for_all_trials(grid.parameters, arguments.overrides)
    if arguments.max_steps and grid.scheduler.budget is None:
        overrides.append(f"max_steps={arguments.max_steps}")
    trials = tuple(map(planned, expand(grid, overrides)))
    base = base_config(grid, overrides)
    metric, mode = measurable_goal(grid.metric, grid.mode, has_truth=base.prior.kind == "blocks")
    return Sweep(
        name=name,
        grid=grid.name,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        commands=[arguments.command],
        options=_deciding_options(arguments, trials),
        metric=metric,
        mode=mode,
        default=default_labels(grid, overrides),
        trials=trials,
        base=corrdream.config_to_dict(base),
        versions={package: version(package) for package in ("corrdream", "ray", "torch", "numpy")},
        fingerprints=corrdream.fingerprints(base),
        search=grid.search_to_plain(),
    )


def _deciding_options(arguments: argparse.Namespace, trials: Sequence[PlannedTrial]) -> dict[str, Any]:
    """What was asked for, so that it means the same from another working directory; files that ship go by name."""
    options = {name: getattr(arguments, name) for name in DECIDING} | {"grid": arguments.grid or "rescale"}
    if options["grid"].endswith((".yaml", ".yml")):
        options["grid"] = str(Path(options["grid"]).expanduser().resolve())
    if options["prompts"]:
        options["prompts"] = list(dict.fromkeys(trial.prompt for trial in trials))  # without their library
    if options["config"]:
        config = find_config(options["config"])
        options["config"] = config.name if config.parent == CONFIGS else str(config)
    return options


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
    name = arguments.name or f"{grid_name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if not re.fullmatch(r"[A-Za-z0-9][\w.=-]*", name):
        raise SweepError(f"--name {name!r} must be letters, digits, '.', '_', '-' and '='.")
    folder = sweep_in(arguments.storage, name)
    folder.storage.check(folder.path.parent)
    if arguments.name and folder.storage.exists(folder.path):
        place = folder.storage.uri(folder.path)
        raise SweepError(f"{place} exists; choose another --name, or continue it with --resume {name}.")
    return folder


def find_sweep(arguments: argparse.Namespace) -> SweepFolder:
    """Where the sweep lies that --resume or --extend names; SweepError if it is not there or options do not fit."""
    if arguments.resume:
        fixed = ("name", *DECIDING)
        given = [f"--{name.replace('_', '-')}" for name in fixed if name != "overrides" and getattr(arguments, name)]
        if given := [*given, *arguments.overrides]:
            raise SweepError(
                f"--resume takes the trials from the sweep; leave out {given[0]}, or add trials with --extend."
            )
    elif arguments.name:
        raise SweepError("--extend adds to the sweep that it names; leave out --name.")
    folder = sweep_in(arguments.storage, arguments.resume or arguments.extend)
    folder.storage.check(folder.path.parent)
    load_sweep(folder)
    return folder


def resumed_job(folder: SweepFolder, arguments: argparse.Namespace) -> Job:
    """What an interrupted sweep has left to do; SweepError if its trials would not be the same any more.

    One that is finished has its report made anew, whatever the sources are by now.
    """
    sweep = load_sweep(folder)
    job = _job(sweep, folder, "resumed", arguments)
    if job.unfinished or sweep.trials_to_come:
        refuse_other_fingerprints(sweep, corrdream.fingerprints(corrdream.load_config((), sweep.base)))
    return job


def extended_job(folder: SweepFolder, arguments: argparse.Namespace) -> Job:
    """A sweep with more trials, and what is left to do of it; SweepError if the new ones do not fit the old ones."""
    sweep = load_sweep(folder)
    defaulted = with_defaults(arguments, sweep)
    more = _plan_sweep(sweep.name, _asked_grid(defaulted), defaulted)
    return _job(extend(sweep, more), folder, "extended", arguments)


def _job(
    sweep: Sweep, folder: SweepFolder, origin: Literal["new", "extended", "resumed"], arguments: argparse.Namespace
) -> Job:
    """What is neither finished here nor, unless --no-cache is given, anywhere else in the storage."""
    check_optuna(sweep)
    states = read_statuses(folder, sweep.trials)
    missing = [trial for trial in sweep.trials if states[trial.name].state not in DONE]
    is_plain = isinstance(parse_scheduler(sweep.search.get("scheduler"), "scheduler"), Fifo)  # else trials compete
    cached = find_finished(folder, missing) if is_plain and not arguments.no_cache else {}
    unfinished = tuple(trial for trial in missing if trial.name not in cached)
    steps = {trial.name: int(trial.config["max_steps"]) - states[trial.name].step for trial in unfinished}
    return Job(sweep=sweep, folder=folder, unfinished=unfinished, cached=cached, steps_left=steps, origin=origin)


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
    held = trials if job.folder.storage.is_folder else max(1, machine.cpus // cpus)  # trials whose files lie here
    plan.check_disk(job.folder.path, trials=held, keep=config.output.checkpoint_keep, measured=None)
    if job.sweep.measured:
        measured = plan.Measurement(**job.sweep.measured)
    elif not gpus or machine.gpus:
        measured = plan.measure(config, cpus=cpus, gpus=gpus)
        plan.check_disk(job.folder.path, trials=held, keep=config.output.checkpoint_keep, measured=measured)
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


def _describe_varied(sweep: Sweep) -> str:
    """`guidance_rescale: 0.3, 0.5 (instead of the grid's)`, a line each parameter."""
    given = {text.partition("=")[0] for text in sweep.options["overrides"]}
    lines = []
    for key in dict.fromkeys(key for trial in sweep.trials for key in trial.labels):
        labels = list(dict.fromkeys(trial.labels[key] for trial in sweep.trials if key in trial.labels))
        more = ", ..." if len(labels) > MAX_VALUES or sweep.trials_to_come else ""
        mark = " (instead of the grid's)" if key in given else ""
        lines.append(f"{leaf(key)}: {', '.join(labels[:MAX_VALUES])}{more}{mark}")
    return "\n".join(lines)


def plan_text(job: Job, placement: Placement | None, arguments: argparse.Namespace) -> str:
    """What will be done, where, and how long it will take; no `placement` where nothing is left to run."""
    sweep = job.sweep
    counts = {"finished": len(sweep.trials) - len(job.unfinished) - len(job.cached), "cached": len(job.cached)}
    parts = [f"{count} {name}" for name, count in counts.items() if count]
    trials = describe_size(sweep.trials)
    trials += f", {sweep.trials_to_come} more to be suggested" if sweep.trials_to_come else ""
    trials += f"; {', '.join(parts)}, {len(job.unfinished)} to run" if parts else ""
    lines = {"sweep": f"{sweep.name} (grid {sweep.grid})", "trials": trials}
    lines |= {"varied": varied} if (varied := _describe_varied(sweep)) else {}
    lines |= {"search": describe_search(sweep)}
    if placement is not None:
        steps = schedule_of(job).steps_left()
        concurrent = placement.concurrent or arguments.max_concurrent or len(steps)
        each = f"{arguments.cpus_per_trial} thread(s), {placement.gpus:g} GPU(s) a trial"
        at_once = f"{placement.concurrent} at once" if placement.concurrent else "as many at once as fit"
        here = f"this machine's {placement.machine.cpus} cores"
        continued = list_continued(saved_steps(job.folder, job.unfinished))
        lines |= {"continued": continued} if continued else {}
        lines |= {
            "steps": f"{sum(steps)} in all, up to {max(steps)} a trial",
            "time": plan.describe_time(placement.measured, steps, concurrent),
            "resources": f"{each}, {at_once}, on {f'Ray at {arguments.address}' if arguments.address else here}",
            "tracking": f"TensorBoard, {corrdream.explain_wandb_mode(wandb_mode_of(job, arguments))}",
        }
    return plan.format_plan(lines | {"results": job.folder.storage.uri(job.folder.path)})
