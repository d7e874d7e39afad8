"""Copies a run's metrics.jsonl and pictures, which are the truth, to TensorBoard and to Weights & Biases.

Whatever is opened anew (after a kill, on resume) starts with everything that the run's folder holds, so that neither a
lost buffer nor a repeated step shows. A failing tracker is reported once and left alone: it never stops a run.
"""

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from operator import methodcaller
from pathlib import Path
from typing import Any, Protocol

from corrdream.artifacts import RunFolder
from corrdream.config import Config, config_to_dict
from corrdream.wandb_runs import WandbMode, WandbRun, WandbSink, explain_wandb_mode, wandb_mode

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 10  # after which TensorBoard sees a row
FINAL_MEDIA = {
    "turntable": "turntable.png",
    "normals": "normals.png",
    "turntable_video": "turntable.mp4",
    "mesh": "mesh.glb",
}


class Sink(Protocol):
    """Where rows and pictures go."""

    def log(self, step: int, scalars: Mapping[str, float], media: Mapping[str, Path]) -> None:
        """One step's figures, and the pictures that were made at it."""
        ...

    def close(self, summary: Mapping[str, float], media: Mapping[str, Path]) -> None:
        """Adds the final metrics and media, and flushes."""
        ...


class TensorBoardSink:
    """Event files in RUN/tensorboard."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        shutil.rmtree(folder / "tensorboard", ignore_errors=True)  # all of it is written again
        self._writer = SummaryWriter(str(folder / "tensorboard"), flush_secs=FLUSH_SECONDS)
        self._step = 0

    def log(self, step: int, scalars: Mapping[str, float], media: Mapping[str, Path]) -> None:
        """One scalar a key, one image a picture."""
        self._step = step
        for key, value in scalars.items():
            self._writer.add_scalar(key, value, step)
        self._add_pictures(media)

    def close(self, summary: Mapping[str, float], media: Mapping[str, Path]) -> None:
        """Final metrics under `final/`, pictures under their names; no video or mesh, which it would not show."""
        for key, value in summary.items():
            self._writer.add_scalar(f"final/{key}", value, self._step)
        self._add_pictures(media)
        self._writer.close()

    def _add_pictures(self, media: Mapping[str, Path]) -> None:
        import numpy as np
        from PIL import Image

        for key, path in media.items():
            if path.suffix == ".png":
                pixels = np.asarray(Image.open(path).convert("RGB"))
                self._writer.add_image(key, pixels, self._step, dataformats="HWC")


class Tracker:
    """Follows one run's folder."""

    def __init__(self, run: RunFolder, wandb_run: WandbRun, *, mode: WandbMode, config: Mapping[str, Any]) -> None:
        self._run = run
        self._offset = 0
        self._sinks: dict[str, Sink] = {}
        self._open("TensorBoard", lambda: TensorBoardSink(run.path))
        if mode != "disabled":
            self._open("W&B", lambda: WandbSink(run.path, wandb_run, mode=mode, config=config))

    def update(self) -> None:
        """Passes on the rows that were added since the last time, with the pictures of their steps."""
        pictures = self._run.pictures()
        for row in self._new_rows():
            step = int(row.pop("step"))
            self._for_each(methodcaller("log", step, row, pictures.get(step, {})))

    def close(self, summary: Mapping[str, float] | None = None) -> None:
        """The last rows; after the end of the run its final metrics, pictures, video and mesh."""
        self.update()
        media = {key: self._run.path / name for key, name in FINAL_MEDIA.items()} if summary is not None else {}
        existing = {key: path for key, path in media.items() if path.exists()}
        self._for_each(lambda sink: sink.close(summary or {}, existing))
        self._sinks = {}

    def _new_rows(self) -> Iterator[dict[str, float]]:
        """Whole new lines only."""
        if not self._run.metrics.exists():
            return
        with self._run.metrics.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                yield json.loads(line)

    def _open(self, title: str, make: Callable[[], Sink]) -> None:
        try:
            self._sinks[title] = make()
        except Exception as error:  # whatever a tracker raises, the run is worth more
            logger.warning("%s is off for this run: %s", title, _line(error))

    def _for_each(self, action: Callable[[Sink], None]) -> None:
        for title, sink in list(self._sinks.items()):
            try:
                action(sink)
            except Exception as error:  # whatever a tracker raises, the run is worth more
                logger.warning("%s stopped for this run: %s", title, _line(error))
                del self._sinks[title]


def open_tracker(run: RunFolder, config: Config) -> Tracker:
    """The tracker of a run that stands alone, with W&B as `output.wandb` says."""
    asked = config.output.wandb
    mode = asked if asked == "disabled" else wandb_mode(asked)
    if mode != "disabled":
        logger.info("Tracking: TensorBoard, %s.", explain_wandb_mode(mode))
    called = WandbRun(run_id=_run_id(run), name=run.path.resolve().name, tags=(config.prompt, f"seed {config.seed}"))
    return Tracker(run, called, mode=mode, config=config_to_dict(config))


def _run_id(run: RunFolder) -> str:
    """The run's own, so that every attempt continues the same W&B run."""
    provenance = json.loads(run.provenance.read_text(encoding="utf-8"))
    return str(provenance.get("id", provenance["identity"]))  # runs of earlier versions have no id


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
