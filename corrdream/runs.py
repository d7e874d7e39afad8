"""Run folders: open, continue, finish, grade and show them."""

import logging
import platform
import shutil
import subprocess
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from corrdream import artifacts
from corrdream.artifacts import RunFolder
from corrdream.blocks.grade import Grade, format_grade, grade_field
from corrdream.blocks.grammar import CaptionError, parse_caption
from corrdream.cameras import orbit_cameras
from corrdream.checkpoint import Checkpoint, load_checkpoint, valid_checkpoints
from corrdream.config import Config, load_config, save_config
from corrdream.engine import build, identity
from corrdream.interfaces import MultiviewPrior
from corrdream.structures import RenderOutput
from corrdream.trainer import Trainer

logger = logging.getLogger(__name__)

MIN_FREE_BYTES = 200_000_000


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
        return trainer, run
    if config is None:
        raise RunError(f"{path} is not a run folder: it has no config.yaml.")
    check_folder(path)
    trainer = build(config, prior=prior, device=device)
    run.path.mkdir(parents=True, exist_ok=True)
    artifacts.write_json(run.path / "run.json", _provenance(command, config))
    save_config(config, run.config)
    return trainer, run


def restore(trainer: Trainer, run: RunFolder, checkpoint: Checkpoint | None) -> None:
    """Puts the trainer at the checkpoint, and forgets what the folder logged after it."""
    if checkpoint is not None:
        trainer.load(checkpoint)
    run.trim_metrics(trainer.step)
    logger.info("Continuing %s from step %d.", run.path, trainer.step)


def resume_run(
    source: Path, run_dir: Path | None, overrides: Sequence[str], *, command: Sequence[str]
) -> tuple[Trainer, RunFolder]:
    """Continues a run folder, or one of its checkpoints in a new folder; `overrides` may raise max_steps."""
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


def render_orbit(trainer: Trainer, *, num_views: int, size: int, include_end: bool = False) -> RenderOutput:
    """Evaluation views around the scene as it is, unshaded, on the configured background color."""
    cameras = trainer.config.cameras
    return trainer.render_evaluation(
        orbit_cameras(
            num_views,
            elevation_deg=cameras.eval_elevation,
            distance=cameras.eval_distance,
            fovy_deg=cameras.eval_fovy,
            height=size,
            width=size,
            include_end=include_end,
            device=trainer.device,
        )
    )


def finish_run(trainer: Trainer, run: RunFolder) -> dict[str, float | None]:
    """Turntable and normals as strips of eight views, and the grade where the truth is known."""
    orbit = render_orbit(trainer, num_views=8, size=128)
    views = range(len(orbit.rgb))
    artifacts.write_picture(
        run.path / "turntable.png", artifacts.strip([artifacts.to_picture(orbit.rgb[v]) for v in views])
    )
    artifacts.write_picture(
        run.path / "normals.png", artifacts.strip([artifacts.normal_picture(orbit, v) for v in views])
    )
    graded = _grade_scene(trainer)
    if graded is None:
        return {}
    artifacts.write_json(run.grade, graded.to_dict())
    return graded.to_dict()


def _grade_scene(trainer: Trainer) -> Grade | None:
    """The scene against the shape that the prompt names; None for prompts whose shape is not known."""
    try:
        parse_caption(trainer.config.prompt)
    except CaptionError as error:
        logger.info("Not graded: %s", error)
        return None
    return grade_field(trainer.scene.field, trainer.config.prompt)


def grade(path: Path) -> dict[str, float | None]:
    """The metrics of a run of the built-in world; also written to its grade.json."""
    trainer, run = open_run(path)
    return finish_run(trainer, run)


def grade_table(path: Path) -> str:
    """The grade of a run as lines of text."""
    return format_grade(grade(path))


def test(path: Path, num_views: int) -> Path:
    """Writes RUN/test: a full turn as PNG frames (color, normals, opacity) and as mp4; returns the folder."""
    trainer, run = open_run(path)
    orbit = render_orbit(trainer, num_views=num_views, size=128, include_end=True)
    frames = [artifacts.frame_picture(orbit, view) for view in range(num_views)]
    folder = run.path / "test"
    for number, frame in enumerate(frames):
        artifacts.write_picture(folder / f"{number:03d}.png", frame)
    artifacts.write_video(folder / "turntable.mp4", frames)
    return folder
