"""Runs on Weights & Biases: one a training run, whatever becomes of the process that writes it.

Offline, a run is written anew by whoever opens it: a killed process leaves a file without rows, and metrics.jsonl has
them all. Online, the same id continues the run, and steps that the server has are not sent again.
"""

import logging
import netrc
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

logger = logging.getLogger(__name__)

WandbMode = Literal["disabled", "offline", "online"]
PROJECT = "corrdream"  # unless WANDB_PROJECT names another
WANDB_HOST = "api.wandb.ai"
INIT_TIMEOUT_SECONDS = 30.0  # then the run goes on without W&B
FINISH_TIMEOUT_SECONDS = 60.0  # for what is still to be sent
MAX_TAG = 64  # characters that W&B takes


@dataclass(frozen=True, kw_only=True)
class WandbRun:
    """What a run is called, and how it is found."""

    run_id: str
    name: str
    group: str | None = None
    job_type: str = "run"
    tags: Sequence[str] = ()


class WandbSink:
    """One run; logs rows and media at their steps."""

    def __init__(self, folder: Path, run: WandbRun, *, mode: WandbMode, config: Mapping[str, Any]) -> None:
        self._run = open_wandb_run(folder, run, mode=mode, config=config)
        import wandb

        self._wandb = wandb
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        self._first_step = int(self._run.starting_step)  # of what the server has not
        self._step = 0

    def log(self, step: int, scalars: Mapping[str, float], media: Mapping[str, Path]) -> None:
        """One history row; what the server has of an earlier attempt is not sent again."""
        self._step = step
        if step >= self._first_step:
            shown = {key: self._as_media(path) for key, path in media.items()}
            self._run.log({"step": step, **scalars, **shown}, step=step)

    def close(self, summary: Mapping[str, float], media: Mapping[str, Path]) -> None:
        """Final metrics into the summary, pictures, video and mesh into the media."""
        if media:
            self._run.log({"step": self._step, **{key: self._as_media(path) for key, path in media.items()}})
        self._run.summary.update({f"final/{key}": value for key, value in summary.items()})
        self._run.finish()

    def _as_media(self, path: Path) -> Any:
        match path.suffix:
            case ".mp4":
                return self._wandb.Video(str(path), format="mp4")
            case ".glb":
                return self._wandb.Object3D(str(path))
            case _:
                return self._wandb.Image(str(path))


def open_wandb_run(folder: Path, run: WandbRun, *, mode: WandbMode, config: Mapping[str, Any]) -> Any:
    """The run, with FOLDER/wandb as its place; what killed attempts left there unsent is dropped."""
    with _temporary_files_in(folder / "wandb"):
        import wandb

    for old in (folder / "wandb").glob("offline-run-*"):
        if not list(old.glob("*.synced")):
            shutil.rmtree(old, ignore_errors=True)  # all of it is written again
    return wandb.init(
        mode=mode,
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        group=run.group,
        job_type=run.job_type,
        name=run.name,
        id=run.run_id,
        tags=[tag[:MAX_TAG] for tag in run.tags if tag],
        resume="allow",
        dir=str(folder),
        config=dict(config),
        settings=wandb.Settings(
            console="off",
            silent=True,
            init_timeout=INIT_TIMEOUT_SECONDS,
            finish_timeout=FINISH_TIMEOUT_SECONDS,
            finish_timeout_raises=True,
        ),
    )


@contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """W&B makes folders for media when it is imported; they outlive a process that is killed."""
    folder.mkdir(parents=True, exist_ok=True)
    before, tempfile.tempdir = tempfile.tempdir, str(folder.resolve())
    try:
        yield
    finally:
        tempfile.tempdir = before


def end_wandb() -> None:
    """Ends W&B's own process, if this one has started it: killed with this one, it leaves a folder in /tmp."""
    if wandb := sys.modules.get("wandb"):
        wandb.teardown()


def wandb_mode(asked: str | None) -> WandbMode:
    """What was asked for; without that (None, auto) WANDB_MODE, or online with a key and offline without."""
    for choice in (asked, os.environ.get("WANDB_MODE")):
        match choice:
            case "disabled" | "offline" | "online" as mode:
                return mode
            case "dryrun":
                return "offline"
    return "online" if has_wandb_key() else "offline"


def explain_wandb_mode(mode: WandbMode) -> str:
    """`W&B offline`, with the reason where there is no key, and what to do with the files."""
    if mode != "offline":
        return f"W&B {mode}"
    reason = "" if has_wandb_key() else "no API key is set; "
    return f"W&B offline ({reason}send it later: wandb sync FOLDER/wandb/offline-run-*)"


def has_wandb_key() -> bool:
    """Whether W&B would let us in: WANDB_API_KEY, or an entry of ~/.netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators(WANDB_HOST) is not None
    except (OSError, netrc.NetrcParseError):
        return False
