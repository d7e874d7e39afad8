"""Copies a trial's metrics.jsonl, which is the truth, to TensorBoard and to Weights & Biases.

Whatever is opened anew (after a kill, on resume) starts with everything that metrics.jsonl holds, so that neither a
lost buffer nor a repeated step shows. A failing tracker is reported once and left alone: it never stops a trial.
"""

import json
import logging
import netrc
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

logger = logging.getLogger(__name__)

WandbMode = Literal["disabled", "offline", "online"]
PROJECT = "corrdream"
WANDB_HOST = "api.wandb.ai"
INIT_TIMEOUT_SECONDS = 30.0  # then the trial goes on without W&B

Row = Mapping[str, float]


class Sink(Protocol):
    """Where rows go."""

    def write(self, rows: Sequence[Row]) -> None:
        """Logs the scalars of each row at its step."""
        ...

    def close(self, summary: Row, pictures: Mapping[str, Path]) -> None:
        """Adds the final metrics and pictures, and flushes."""
        ...


class TensorBoardSink:
    """Event files in TRIAL/tensorboard."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        shutil.rmtree(folder / "tensorboard", ignore_errors=True)  # all of it is written again
        self._writer = SummaryWriter(str(folder / "tensorboard"))
        self._step = 0

    def write(self, rows: Sequence[Row]) -> None:
        """One scalar a key and step."""
        for row in rows:
            self._step = int(row["step"])
            for key, value in row.items():
                if key != "step":
                    self._writer.add_scalar(key, value, self._step)

    def close(self, summary: Row, pictures: Mapping[str, Path]) -> None:
        """Final metrics under `final/`, pictures under their names."""
        import numpy as np
        from PIL import Image

        for key, value in summary.items():
            self._writer.add_scalar(f"final/{key}", value, self._step)
        for key, path in pictures.items():
            pixels = np.asarray(Image.open(path).convert("RGB"))
            self._writer.add_image(key, pixels, self._step, dataformats="HWC")
        self._writer.close()


class WandbSink:
    """One W&B run a trial, grouped by sweep; its id is the trial's, so that every attempt is the same run."""

    def __init__(
        self, folder: Path, *, mode: WandbMode, sweep: str, name: str, run_id: str, config: Mapping[str, Any]
    ) -> None:
        import wandb

        for old in (folder / "wandb").glob("offline-run-*"):
            if not list(old.glob("*.synced")):
                shutil.rmtree(old, ignore_errors=True)  # a killed attempt's; all of it is written again
        self._wandb = wandb
        self._run = wandb.init(
            mode=mode,
            project=PROJECT,
            group=sweep,
            job_type="trial",
            name=name,
            id=run_id,
            resume="allow",
            dir=str(folder),
            config=dict(config),
            settings=wandb.Settings(
                x_disable_stats=True, console="off", silent=True, init_timeout=INIT_TIMEOUT_SECONDS
            ),
        )

    def write(self, rows: Sequence[Row]) -> None:
        """One history row a step."""
        for row in rows:
            self._run.log({key: value for key, value in row.items() if key != "step"}, step=int(row["step"]))

    def close(self, summary: Row, pictures: Mapping[str, Path]) -> None:
        """Final metrics into the summary, pictures into the media."""
        if pictures:
            self._run.log({key: self._wandb.Image(str(path)) for key, path in pictures.items()})
        self._run.summary.update({f"final/{key}": value for key, value in summary.items()})
        self._run.finish()


class Tracker:
    """Follows one trial's metrics.jsonl."""

    def __init__(
        self, folder: Path, *, mode: WandbMode, sweep: str, name: str, run_id: str, config: Mapping[str, Any]
    ) -> None:
        self._metrics = folder / "metrics.jsonl"
        self._offset = 0
        self._sinks: list[Sink] = []
        self._open("TensorBoard", lambda: TensorBoardSink(folder))
        if mode != "disabled":
            self._open(
                "W&B", lambda: WandbSink(folder, mode=mode, sweep=sweep, name=name, run_id=run_id, config=config)
            )

    def update(self) -> None:
        """Passes on the rows that were added since the last time."""
        rows = self._new_rows()
        if rows:
            self._for_each(lambda sink: sink.write(rows))

    def close(self, summary: Row | None = None, pictures: Mapping[str, Path] | None = None) -> None:
        """The last rows, then the final metrics and those pictures that exist."""
        self.update()
        existing = {key: path for key, path in (pictures or {}).items() if path.exists()}
        self._for_each(lambda sink: sink.close(summary or {}, existing))
        self._sinks = []

    def _new_rows(self) -> list[Row]:
        """Whole new lines only."""
        if not self._metrics.exists():
            return []
        with self._metrics.open("rb") as file:
            file.seek(self._offset)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [json.loads(line) for line in whole.splitlines()]

    def _open(self, title: str, make: Callable[[], Sink]) -> None:
        try:
            self._sinks.append(make())
        except Exception as error:  # whatever a tracker raises, the trial is worth more
            logger.warning("%s is off for this trial: %s", title, _line(error))

    def _for_each(self, action: Callable[[Sink], None]) -> None:
        for sink in list(self._sinks):
            try:
                action(sink)
            except Exception as error:  # whatever a tracker raises, the trial is worth more
                logger.warning("%s stopped for this trial: %s", type(sink).__name__, _line(error))
                self._sinks.remove(sink)


def wandb_mode(asked: WandbMode | None) -> WandbMode:
    """What was asked for, or WANDB_MODE, or online with a key and offline without."""
    if asked:
        return asked
    match os.environ.get("WANDB_MODE"):
        case "disabled" | "offline" | "online" as mode:
            return mode
        case "dryrun":
            return "offline"
    return "online" if _has_wandb_key() else "offline"


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators(WANDB_HOST) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
