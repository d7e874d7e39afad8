"""The options of `sweeps/run.py`."""

import argparse
import dataclasses
import os
import re
from collections.abc import Sequence

import corrdream
from sweeps.faults import FaultPolicy

DESCRIPTION = """\
Sweep hyperparameters of text-to-3D runs. Without --resume and --extend a new sweep is planned, run and reported."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="sweeps/run.py", description=DESCRIPTION)
    _add_trials(parser.add_argument_group("which trials"))
    _add_sweep(parser.add_argument_group("which sweep"))
    _add_resources(parser.add_argument_group("with what"))
    _add_faults(parser.add_argument_group("what is done about faults"))
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="configuration of every trial; of a parameter that the grid varies: a value, a name or a list of them,"
        " key=[A,B], instead of the grid's",
    )
    arguments = _separate_overrides(parser.parse_intermixed_args(argv))
    if arguments.resume and arguments.extend:
        parser.error("--extend finishes the sweep, too; leave out --resume")
    arguments.command = ["sweeps/run.py", *argv]
    arguments.on_fault = FaultPolicy.parse(arguments.on_fault)
    return arguments


def _add_trials(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--grid", metavar="NAME|FILE", help="a grid of configs/grids, or a YAML file (default: rescale)")
    group.add_argument("--config", metavar="FILE", help="another base configuration than the grid's")
    group.add_argument("--prompts", nargs="+", metavar="TEXT", help="instead of the grid's")
    group.add_argument("--seeds", nargs="+", metavar="N", help="instead of the grid's")
    group.add_argument("--max-steps", type=_positive, metavar="N", help="optimizer steps of each trial")
    group.add_argument(
        "--search", choices=["grid", "random", "optuna"], help="where settings come from (default: as the grid says)"
    )
    group.add_argument("--num-samples", type=_positive, metavar="N", help="settings that a search draws")
    group.add_argument(
        "--scheduler", choices=["fifo", "asha", "pbt"], help="how steps are spent (default: as the grid says)"
    )
    group.add_argument(
        "--no-cache", action="store_true", help="run also what another sweep in the storage has finished"
    )


def _add_sweep(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--name", help="of a new sweep (default: the grid's name and the time)")
    group.add_argument("--resume", metavar="NAME", help="finish a sweep that was interrupted")
    group.add_argument(
        "--extend",
        metavar="NAME",
        help="add the trials that the options above name to a sweep (default: those of its grid file as it is now),"
        " and finish it",
    )
    group.add_argument(
        "--storage",
        default=os.environ.get("CORRDREAM_STORAGE") or "runs",
        metavar="DIR|URI",
        help="where sweeps lie: a folder that all nodes share, s3://bucket/path or gs://bucket/path"
        " (default: $CORRDREAM_STORAGE, or runs)",
    )
    group.add_argument("--dry-run", action="store_true", help="check everything, print the plan, run nothing")
    group.add_argument(
        "--wandb", choices=["disabled", "offline", "online"], help="default: online with an API key, else offline"
    )


def _add_resources(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--max-concurrent", type=_positive, metavar="N", help="trials at once (default: as many as fit)")
    group.add_argument(
        "--cpus-per-trial", type=_positive, default=1, metavar="N", help="threads of a trial (default: 1)"
    )
    group.add_argument(
        "--gpus-per-trial", type=float, metavar="X", help="may be a fraction (default: 1 if there is a GPU)"
    )
    group.add_argument(
        "--address",
        default=os.environ.get("RAY_ADDRESS"),
        help="join this Ray cluster (default: $RAY_ADDRESS, or start an own one)",
    )


def _add_faults(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--on-fault",
        nargs="+",
        default=[],
        metavar="FAULT=POLICY",
        help="lost=N (retries of a lost process, default 2), out_of_memory=smaller_chunk|fail, disk_full=fail|retry",
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _separate_overrides(arguments: argparse.Namespace) -> argparse.Namespace:
    """`--seeds 0 1 max_steps=50`: what looks like key=value is an override, wherever it stands.

    After --on-fault, whose words look the same, it is one where it begins with a key of the configuration.
    """
    for name in ("prompts", "seeds", "on_fault"):
        values = getattr(arguments, name) or []
        moved = [value for value in values if re.match(r"[a-z_.]+=", value) and not _is_policy(name, value)]
        arguments.overrides = [*moved, *arguments.overrides]
        setattr(arguments, name, [value for value in values if value not in moved] or None)
    arguments.on_fault = arguments.on_fault or []
    return arguments


def _is_policy(option: str, word: str) -> bool:
    if option != "on_fault":
        return False
    return re.split(r"[.=]", word)[0] not in {field.name for field in dataclasses.fields(corrdream.Config)}
