"""What is made of a run or a prompt: turntables, grades, validation sheets, meshes, previews of the prior."""

import logging
from collections.abc import Iterator
from pathlib import Path

import torch

from corrdream import artifacts
from corrdream.artifacts import Picture, RunFolder
from corrdream.blocks.grade import Grade, format_grade, grade_field
from corrdream.blocks.grammar import CaptionError, parse_caption
from corrdream.cameras import orbit_cameras
from corrdream.config import Config, ConfigError
from corrdream.engine import build_prior, check_prompt, sampling_style
from corrdream.export import (
    TEXTURE_SIZE,
    ExportError,
    MeshFormat,
    albedo_function,
    automatic_threshold,
    density_grid,
    extract_mesh,
    write_mesh,
)
from corrdream.interfaces import MultiviewPrior
from corrdream.learned_metrics import measure_learned
from corrdream.prior.sampling import sample_views
from corrdream.quality import measure_quality
from corrdream.rendering import sampling_step
from corrdream.runs import load_run
from corrdream.scene import SceneView
from corrdream.structures import CameraBatch, RenderOutput
from corrdream.trainer import Trainer

logger = logging.getLogger(__name__)

PICTURE_SIZE = 128  # pixels
VIEWS_AT_ONCE = 4
VIDEO_VIEWS, VIDEO_RATE = 32, 16  # of a full turn, a second
DDIM_STEPS = 50
RESOLUTION = {"cpu": 128, "cuda": 256}  # nodes along a side of the grid that a mesh is taken from


def render_parts(scene: SceneView, cameras: CameraBatch) -> Iterator[RenderOutput]:
    """The scene as it is, unshaded, on the configured background color, a few views at a time."""
    for start in range(0, len(cameras.c2w), VIEWS_AT_ONCE):
        yield scene.render(cameras.select(slice(start, start + VIEWS_AT_ONCE)))


def finish_run(trainer: Trainer, run: RunFolder) -> dict[str, float | None]:
    """Turntable as strip and video, normals, mesh, the grade where the truth is known, and what needs no truth."""
    scene, output = trainer.show(), trainer.config.output
    if output.video:
        parts = render_parts(scene, scene.orbit(VIDEO_VIEWS, size=PICTURE_SIZE))
        frames = [artifacts.to_picture(rgb) for part in parts for rgb in part.rgb]
        artifacts.write_video(run.path / "turntable.mp4", frames, VIDEO_RATE)
    if output.mesh:
        try:
            _write_surface(scene, run.path, kind="glb", threshold=None, resolution=None, texture_size=0)
        except ExportError as error:
            logger.warning("No mesh.glb: %s", error)
    return summarize_run(scene, run, trainer.prior)


def measure(trainer: Trainer) -> dict[str, float | None]:
    """The grade of a run as it is, or what needs no truth where that is not known; writes nothing."""
    graded = _grade_scene(trainer.show())
    return graded.to_dict() if graded else measure_quality(trainer.show(), trainer.prior, ()).to_dict()


def summarize_run(scene: SceneView, run: RunFolder, prior: MultiviewPrior) -> dict[str, float | None]:
    """The same of a scene that is not trained any more."""
    logger.info("Turntable and measures: about a minute on a CPU.")
    colors: list[Picture] = []
    normals: list[Picture] = []
    for part in render_parts(scene, scene.orbit(8, size=PICTURE_SIZE)):
        colors += artifacts.color_pictures(part)
        normals += artifacts.normal_pictures(part)
    artifacts.write_picture(run.path / "turntable.png", artifacts.strip(colors))
    artifacts.write_picture(run.path / "normals.png", artifacts.strip(normals))
    found: dict[str, float | None] = {}
    graded = _grade_scene(scene)
    if graded is not None:
        found |= graded.to_dict()
        artifacts.write_json(run.grade, graded.to_dict())
    quality = measure_quality(scene, prior, run.read_metrics()).to_dict()
    learned = measure_learned(scene, prior.image_size)
    artifacts.write_json(run.quality, quality | learned.values | {"skipped": learned.skipped})
    if learned.embeddings:
        artifacts.write_arrays(run.embeddings, {name: rows.half().numpy() for name, rows in learned.embeddings.items()})
    return found | quality | learned.values


def _grade_scene(scene: SceneView) -> Grade | None:
    """The scene against the shape that the prompt names; None for prompts whose shape is not known."""
    try:
        parse_caption(scene.config.prompt)
    except CaptionError as error:
        logger.info("Not graded: %s", error)
        return None
    return grade_field(scene.scene.field, scene.config.prompt)


def grade(path: Path, checkpoint: Path | None = None) -> dict[str, float | None]:
    """The metrics of a run, also written to its grade.json (if the truth is known) and quality.json."""
    scene, run = load_run(path, checkpoint)
    return summarize_run(scene, run, build_prior(scene.config))


def grade_table(path: Path, checkpoint: Path | None = None) -> str:
    """The grade of a run as lines of text."""
    return format_grade(grade(path, checkpoint))


def test(path: Path, checkpoint: Path | None, *, num_views: int, size: int) -> Path:
    """Writes RUN/test: a full turn as PNG frames (color, normals, opacity) and as mp4; returns the folder."""
    scene, run = load_run(path, checkpoint)
    folder = run.path / "test"
    frames: list[Picture] = []
    for part in render_parts(scene, scene.orbit(num_views, size=size, include_end=True)):
        for frame in artifacts.frame_pictures(part):
            artifacts.write_picture(folder / f"{len(frames):03d}.png", frame)
            frames.append(frame)
    artifacts.write_video(folder / "turntable.mp4", frames)
    return folder


def validate(path: Path, checkpoint: Path | None, *, size: int) -> Path:
    """Writes RUN/validation/step-000050.png: four evaluation views, a row each (color, normals, opacity)."""
    scene, run = load_run(path, checkpoint)
    (part,) = render_parts(scene, scene.orbit(4, size=size))
    sheet = run.path / "validation" / f"step-{scene.step:06d}.png"
    artifacts.write_picture(sheet, artifacts.preview_sheet(part))
    return sheet


def export(
    path: Path, checkpoint: Path | None, *, kind: MeshFormat, threshold: float | None, resolution: int | None
) -> Path:
    """Writes RUN/export/mesh.KIND and returns its path; no threshold separates the seen from the unseen."""
    scene, run = load_run(path, checkpoint)
    return _write_surface(
        scene, run.path / "export", kind=kind, threshold=threshold, resolution=resolution, texture_size=TEXTURE_SIZE
    )


def _write_surface(
    scene: SceneView,
    folder: Path,
    *,
    kind: MeshFormat,
    threshold: float | None,
    resolution: int | None,
    texture_size: int,
) -> Path:
    config, field, device = scene.config, scene.scene.field, scene.device
    radius = config.field.radius
    density = density_grid(field, radius=radius, resolution=resolution or RESOLUTION[device.type], device=device)
    if threshold is None:
        threshold = automatic_threshold(density, sampling_step(radius, config.rendering.num_samples_per_ray))
    mesh = extract_mesh(density, radius=radius, threshold=threshold)
    logger.info("Surface at density %.4g: %d triangles; coloring it.", threshold, len(mesh.triangles))
    return write_mesh(mesh, folder, kind=kind, albedo=albedo_function(field, device), texture_size=texture_size)


def preview(config: Config, out: Path, *, num_rows: int) -> Path:
    """Writes what the prior alone draws of the prompt, without any 3D: a row a draw, a column a view."""
    if out.suffix.lower() != ".png":
        raise ConfigError(f"--out must name a .png file, got {out}.")
    check_prompt(config)
    prior = build_prior(config)
    cameras = orbit_cameras(
        prior.num_views,
        elevation_deg=config.cameras.eval_elevation,
        distance=config.cameras.eval_distance,
        fovy_deg=config.cameras.eval_fovy,
        height=prior.image_size,
        width=prior.image_size,
        device=prior.device,
    )
    suffix, guidance_scale = sampling_style(config)
    generator = torch.Generator().manual_seed(config.seed)
    rows = []
    for row in range(num_rows):
        logger.info("Row %d of %d: %d steps of DDIM.", row + 1, num_rows, DDIM_STEPS)
        (views,) = sample_views(
            prior,
            [config.prompt + suffix],
            cameras.c2w,
            guidance_scale=guidance_scale,
            num_steps=DDIM_STEPS,
            generator=generator,
        )
        rows.append(artifacts.strip([artifacts.to_picture(view) for view in views]))
    artifacts.write_picture(out, artifacts.stack(rows))
    return out
