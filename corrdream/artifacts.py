"""What a run leaves behind: metrics.jsonl, previews and turntables. The only writer of pictures.

RUN/config.yaml  metrics.jsonl  checkpoints/  previews/step-000100.png  grade.json  quality.json
    clip.npz  turntable.png  normals.png  turntable.mp4  mesh.glb  tensorboard/  wandb/ (when asked)
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from corrdream.structures import Matches, RenderOutput

Picture = UInt8[np.ndarray, "H W 3"]

MATCH_ZOOM = 4  # screen pixels a pixel of the view
MATCHES_SHOWN = 24  # a pair of views
LARGE_ERROR = 4.0  # pixels; drawn red, an error of zero green


@dataclass(frozen=True)
class RunFolder:
    """Where the parts of a run lie; every write is atomic or an append."""

    path: Path

    @property
    def config(self) -> Path:
        """The whole resolved configuration."""
        return self.path / "config.yaml"

    @property
    def provenance(self) -> Path:
        """The command, versions and the run's name for W&B."""
        return self.path / "run.json"

    @property
    def checkpoints(self) -> Path:
        """Directory of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One JSON object a line and optimizer step."""
        return self.path / "metrics.jsonl"

    @property
    def grade(self) -> Path:
        """Metrics against the true shape."""
        return self.path / "grade.json"

    @property
    def quality(self) -> Path:
        """Metrics that need no true shape."""
        return self.path / "quality.json"

    @property
    def embeddings(self) -> Path:
        """CLIP's of the prompt and of the views, of which a sweep makes R-precision."""
        return self.path / "clip.npz"

    def preview(self, step: int) -> Path:
        """Sheet of the training views at a step."""
        return self.path / "previews" / f"step-{step:06d}.png"

    def matches(self, step: int) -> Path:
        """Matches of the last correspondence step before a preview."""
        return self.path / "previews" / f"matches-{step:06d}.png"

    def pictures(self) -> dict[int, dict[str, Path]]:
        """Those made during the training, by step and then by `preview` and `matches`."""
        found: dict[int, dict[str, Path]] = {}
        for kind, key in (("step", "preview"), ("matches", "matches")):
            for path in (self.path / "previews").glob(f"{kind}-*.png"):
                found.setdefault(int(path.stem.rpartition("-")[2]), {})[key] = path
        return found

    def append_metrics(self, row: Mapping[str, float]) -> None:
        """Adds one line."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(row)) + "\n")

    def read_metrics(self) -> list[dict[str, float]]:
        """All rows; a last line that was cut short is left out."""
        if not self.metrics.exists():
            return []
        rows = []
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:  # the process died while it wrote this line
                break
        return rows

    def trim_metrics(self, step: int) -> None:
        """Forgets what was logged after `step`, which will be done again."""
        if self.metrics.exists():
            kept = [row for row in self.read_metrics() if row["step"] <= step]
            write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in kept))


def write_text(path: Path, text: str) -> None:
    """Writes the whole file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes NPZ, atomically."""
    temporary = path.with_name(f".{os.getpid()}.{path.name}")  # savez wants the suffix
    np.savez_compressed(temporary, allow_pickle=False, **arrays)
    temporary.replace(path)


def write_json(path: Path, plain: Any) -> None:
    """Writes indented JSON, atomically."""
    write_text(path, json.dumps(plain, indent=2) + "\n")


def write_picture(path: Path, picture: Picture) -> None:
    """Writes a PNG, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    Image.fromarray(picture).save(temporary)
    temporary.replace(path)


def write_video(path: Path, frames: Sequence[Picture], frames_per_second: int = 30) -> None:
    """Writes an H.264 mp4 whose sides are even."""
    even = [frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2] for frame in frames]
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    imageio.imwrite(temporary, np.stack(even), fps=frames_per_second, codec="libx264", macro_block_size=2)
    temporary.replace(path)


def to_picture(values: Float[Tensor, "H W 3"]) -> Picture:
    """Colors in [0, 1] as 8-bit pixels."""
    return (values.detach().float().clamp(0, 1) * 255 + 0.5).byte().cpu().numpy()


def color_pictures(render: RenderOutput) -> list[Picture]:
    """The color of each view."""
    return [to_picture(view) for view in render.rgb]


def normal_pictures(render: RenderOutput) -> list[Picture]:
    """World normals of each view as colors, (n + 1) / 2 over white; opacity where the field has none."""
    normal, opacity = render.normal(), render.opacity[..., None]
    if normal is None:
        return opacity_pictures(render)
    return [to_picture(view) for view in (normal + opacity) / 2 + (1 - opacity)]


def opacity_pictures(render: RenderOutput) -> list[Picture]:
    """The opacity of each view as gray."""
    return [to_picture(view) for view in render.opacity[..., None].expand(-1, -1, -1, 3)]


def frame_pictures(render: RenderOutput) -> list[Picture]:
    """Color, normals and opacity of each view, side by side."""
    parts = color_pictures(render), normal_pictures(render), opacity_pictures(render)
    return [np.concatenate(frame, axis=1) for frame in zip(*parts, strict=True)]


def preview_sheet(render: RenderOutput) -> Picture:
    """One row a view: color, normals, opacity."""
    return stack(frame_pictures(render))


def match_sheet(
    source: Float[Tensor, "B H W 3"], target: Float[Tensor, "B H W 3"], matches: Matches, errors: Float[Tensor, " M"]
) -> UInt8[np.ndarray, "_ _ 3"]:
    """One row a view: the view and its shifted twin, a line for some of the matches, green to red by their error."""
    rows = [
        strip([_zoomed(to_picture(source[view])), _zoomed(to_picture(target[view]))]) for view in range(len(source))
    ]
    image = Image.fromarray(stack(rows))
    draw = ImageDraw.Draw(image)
    height, width = (MATCH_ZOOM * side for side in source.shape[1:3])
    for view in range(len(source)):
        mine = (matches.view == view).nonzero()[:, 0]
        for index in mine[:: max(1, -(-len(mine) // MATCHES_SHOWN))].tolist():
            (x, y), (twin_x, twin_y) = matches.source_xy[index].tolist(), matches.target_xy[index].tolist()
            start = (MATCH_ZOOM * (x + 0.5), MATCH_ZOOM * (y + 0.5) + view * height)
            end = (MATCH_ZOOM * twin_x + width, MATCH_ZOOM * twin_y + view * height)
            draw.line([start, end], fill=error_color(float(errors[index])), width=1)
    return np.asarray(image)


def error_color(error: float) -> tuple[int, int, int]:
    """Green without error, through yellow to red for LARGE_ERROR pixels and more."""
    bad = min(error / LARGE_ERROR, 1.0)
    return round(255 * min(2 * bad, 1.0)), round(200 * min(2 - 2 * bad, 1.0)), 0


def _zoomed(picture: Picture) -> UInt8[np.ndarray, "_ _ 3"]:
    return picture.repeat(MATCH_ZOOM, axis=0).repeat(MATCH_ZOOM, axis=1)


def strip(pictures: Sequence[Picture]) -> UInt8[np.ndarray, "H _ 3"]:
    """Pictures of one height, side by side."""
    return np.concatenate(list(pictures), axis=1)


def stack(pictures: Sequence[Picture]) -> UInt8[np.ndarray, "_ W 3"]:
    """Pictures of one width, one below the other."""
    return np.concatenate(list(pictures), axis=0)
