"""Run folders: open, continue and read them."""

import dataclasses
import logging
import platform
import secrets
import shutil
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from corrdream import artifacts
from corrdream.artifacts import RunFolder
from corrdream.checkpoint import Checkpoint, checkpoint_path, checkpoint_paths, load_checkpoint, valid_checkpoints
from corrdream.config import Config, load_config, save_config
from corrdream.engine import build, build_view, identity
from corrdream.interfaces import MultiviewPrior
from corrdream.scene import SceneView
from corrdream.trainer import Trainer

logger = logging.getLogger(__name__)

MIN_FREE_BYTES = 200_000_000
FREE_IN_PLACE = ("max_steps", "device", "output", "weights")  # the weights only mattered to the first step


class RunError(ValueError):
    """A run folder that cannot be used as asked: says which and what to do."""


def open_run(
    path: Path,
    config: Config | None = None,
    *,
    prior: MultiviewPrior | None = None,
    device: torch.device | None = None,
    command: Sequence[str] = (),
    fresh: bool = False,
) -> tuple[Trainer, RunFolder]:
    """The run at `path`, continued from its newest valid checkpoint, or a new one there if `config` is given.

    `fresh` refuses a folder that is in use. RunError says what is wrong with the folder.
    """
    run = RunFolder(path)
    if run.config.exists():
        if fresh:
            raise RunError(f"run folder {path} is in use; continue it with --resume {path}, or choose another.")
        saved = load_config([run.config])
        if config is not None and identity(saved) != identity(config):
            raise RunError(f"run folder {path} holds a run with another configuration; choose another folder.")
        trainer = build(config or saved, prior=prior, device=device)
        restore(trainer, run, next(valid_checkpoints(run.checkpoints), None))
        if not run.provenance.exists():  # lost on the way here: the run goes on under a new name
            artifacts.write_json(run.provenance, _provenance(command, saved))
        return trainer, run
    if config is None:
        raise RunError(f"{path} is not a run folder: it has no config.yaml.")
    check_folder(path)
    try:
        trainer = build(config, prior=prior, device=device)
    except Exception:
        with suppress(OSError):  # not empty, so not ours
            path.rmdir()
        raise
    run.path.mkdir(parents=True, exist_ok=True)
    artifacts.write_json(run.provenance, _provenance(command, config))
    save_config(config, run.config)
    return trainer, run


def load_run(path: Path, checkpoint: Path | None = None) -> tuple[SceneView, RunFolder]:
    """The scene of the run at `path` as its newest checkpoint or `checkpoint` has it; changes nothing in the folder."""
    run = RunFolder(path)
    if not run.config.exists():
        raise RunError(f"{path} is not a run folder: it has no config.yaml.")
    state = load_checkpoint(checkpoint) if checkpoint else next(valid_checkpoints(run.checkpoints), None)
    if state is None:
        raise RunError(f"run folder {path} has no checkpoint yet; train it: python -m corrdream train --resume {path}")
    logger.info("%s at step %d.", path, state.step)
    return build_view(load_config([run.config]), state), run


def restore(trainer: Trainer, run: RunFolder, checkpoint: Checkpoint | None) -> None:
    """Puts the trainer at the checkpoint, and forgets what the folder holds of later steps."""
    if checkpoint is not None:
        trainer.load(checkpoint)
    run.trim_metrics(trainer.step)
    for path in checkpoint_paths(run.checkpoints):
        if path > checkpoint_path(run.checkpoints, trainer.step):
            logger.warning("Continuing from step %d: %s is dropped.", trainer.step, path.name)
            path.unlink()
    logger.info("Continuing %s from step %d.", run.path, trainer.step)


def resume_run(
    source: Path, run_dir: Path | None, overrides: Sequence[str], *, command: Sequence[str]
) -> tuple[Trainer, RunFolder]:
    """Continues a run folder, or from one of its checkpoints, there or in the new folder `run_dir`.

    In place, `overrides` may change what FREE_IN_PLACE names; in a new folder, anything.
    """
    checkpoint: Checkpoint | None
    if source.is_file():
        folder, checkpoint = RunFolder(source.parent.parent), load_checkpoint(source)
    else:
        folder = RunFolder(source)
        checkpoint = next(valid_checkpoints(folder.checkpoints), None)
    if not folder.config.exists():
        raise RunError(f"{source} is not a run folder or one of its checkpoints: {folder.config} does not exist.")
    config = load_config([folder.config], overrides)
    if run_dir is not None and run_dir.resolve() != folder.path.resolve():
        trainer, run = open_run(run_dir, config, command=command, fresh=True)
    else:
        saved = load_config([folder.config])
        if dataclasses.replace(saved, **{name: getattr(config, name) for name in FREE_IN_PLACE}) != config:
            raise RunError(
                f"{' '.join(overrides)} would make {folder.path} another run: in place only {', '.join(FREE_IN_PLACE)} "
                "may change; give a new folder with --run-dir."
            )
        run, trainer = folder, build(config)
        save_config(config, run.config)
    restore(trainer, run, checkpoint)
    return trainer, run


def check_folder(path: Path) -> None:
    """RunError unless a run's files can be written below `path`, with room for them."""
    existing = next(folder for folder in (path, *path.resolve().parents) if folder.exists())
    if not existing.is_dir():
        raise RunError(f"{path} cannot be a run folder: {existing} is a file.")
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe-{time.monotonic_ns()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RunError(f"folder {path} cannot be written: {error.strerror}; choose another.") from error
    free = shutil.disk_usage(path).free
    if free < MIN_FREE_BYTES:
        raise RunError(f"{path} has {free / 1e6:.0f} MB free, a run needs {MIN_FREE_BYTES / 1e6:.0f} MB; make room.")


def _provenance(command: Sequence[str], config: Config) -> dict[str, object]:
    """What is needed to do the run again."""
    versions = {}
    for package in ("corrdream", "torch", "diffusers", "ray", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "id": secrets.token_hex(8),
        "command": list(command),
        "identity": identity(config),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "git": _git_state(),
    }


def _git_state() -> dict[str, object] | None:
    """Commit, and whether the tree differs from it; None outside a checkout."""
    root = Path(__file__).parent.parent
    try:
        commit = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        status = subprocess.run(["git", "-C", root, "status", "--short"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit.stdout.strip(), "modified": bool(status.stdout.strip())}
