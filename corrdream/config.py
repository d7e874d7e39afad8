"""Every configuration field, with its default; YAML files and `key=value` overrides hold differences.

Importing this module costs no torch, so that a bad grid point is refused before a GPU is asked for. The defaults are
the built-in world's (small, CPU); `configs/` holds the released ones. A field that repairs a defect of the released
code names both behaviours; the README's fidelity table explains each.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import OmegaConf

from corrdream.config_reading import ConfigError, Range, changed, nested, parse_override, read_yaml
from corrdream.prompts import prompt_of_library
from corrdream.schedules import Piecewise, Schedule, ScheduleError, Window, value_at

Whole = Annotated[int, Range(low=0)]
Count = Annotated[int, Range(low=1)]
Share = Annotated[float, Range(low=0, high=1)]
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(low=0)]
Weight = Annotated[Schedule, Range(low=0)]
Fraction = Annotated[Schedule, Range(low=0, high=1)]
Color = Annotated[tuple[float, float, float], Range(low=0, high=1)]


class PromptError(ConfigError):
    """A prompt that its library does not have, or has more than once."""


@dataclasses.dataclass(frozen=True)
class PriorConfig:
    """The frozen multi-view diffusion model."""

    kind: Literal["blocks", "mvdream", "mvdream_package"] = "blocks"
    model: Literal["sd-v2.1-base-4view", "sd-v1.5-4view"] = "sd-v2.1-base-4view"  # of MVDream
    checkpoint: str = ""  # weights file; empty takes the built-in prior's, or MVDream's from the Hugging Face cache
    # auto: float16 for MVDream on a GPU, else float32
    precision: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    attention: Literal["auto", "sdpa", "xformers"] = "auto"  # of kind mvdream; auto: sdpa, torch's own
    # full: networks are compiled and replayed as CUDA graphs; graph: replayed only, ready at once; auto: on a GPU full
    # for MVDream and graph for blocks, on a CPU off
    compile: Literal["auto", "full", "graph", "eager"] = "auto"


@dataclasses.dataclass(frozen=True)
class CamerasConfig:
    """Random multi-view cameras and lights; angles in degrees, distances in world units."""

    # views a step, a multiple of the prior's number of views
    batch_size: Annotated[Schedule, Range(low=1, whole=True)] = 4
    resolution: Annotated[Schedule, Range(low=8, whole=True)] = dataclasses.field(
        default_factory=lambda: Piecewise(progress=[0.0, 0.7], values=[32.0, 64.0], interpolate="hold")
    )
    elevation_range: tuple[float, float] = (0.0, 30.0)
    azimuth_range: tuple[float, float] = (-180.0, 180.0)
    fovy_range: Annotated[tuple[float, float], Range(above=0, high=180)] = (15.0, 60.0)
    distance_range: Annotated[tuple[float, float], Range(above=0)] = (0.8, 1.0)
    relative_distance: bool = True  # divide the distance by tan(fovy / 2), so that the object fills the image
    zoom_range: Annotated[tuple[float, float], Range(above=0)] = (
        1.0,
        1.0,
    )  # multiplies fovy after the distance is fixed
    camera_perturb: NotNegative = 0.0
    center_perturb: NotNegative = 0.0
    up_perturb: NotNegative = 0.0
    light_distance_range: tuple[float, float] = (0.8, 1.5)
    light_perturb: NotNegative = 1.0
    # released: half of the draws use a formula that misses the upper part of the elevation range
    elevation_sampling: Literal["released", "area_uniform"] = "area_uniform"
    # released (0): step 0 looks from azimuth 0 at eval_elevation only; -1 never narrows the ranges
    progressive_until: Annotated[int, Range(low=-1)] = -1
    # released (2): batches were drawn that many steps ahead, so that changes of size and range arrive late
    drawn_ahead: Whole = 0
    eval_elevation: float = 15.0
    eval_distance: Positive = 3.0
    eval_fovy: Annotated[float, Range(above=0, high=180)] = 40.0


@dataclasses.dataclass(frozen=True)
class ShadingConfig:
    """Point-light shading of the training renders."""

    ambient_only: Window = dataclasses.field(default_factory=lambda: Window(progress=(0.0, 0.5)))
    soft: bool = True  # draw the ratio of ambient to diffuse light anew for every rendering
    ambient_color: Color = (
        1.0,
        1.0,
        1.0,
    )  # where not soft, and at evaluation
    diffuse_color: Color = (0.0, 0.0, 0.0)
    diffuse_prob: Share = 0.75
    textureless_prob: Share = 0.5


@dataclasses.dataclass(frozen=True)
class HashGridConfig:
    """Multi-resolution hash grid (arXiv:2201.05989)."""

    num_levels: Count = 16
    features_per_level: Count = 2
    log2_table_size: Count = 19
    base_resolution: Count = 16
    growth: Annotated[float, Range(low=1)] = 1.4472692012786865


@dataclasses.dataclass(frozen=True)
class DenseGridConfig:
    """Sum of dense trilinear grids, one a resolution, whose channels are the field's outputs themselves."""

    resolutions: Annotated[tuple[int, ...], Range(low=2)] = (8, 16, 32, 64)
    # albedo logits a unit of a node: the albedo's learning rate relative to the density's
    albedo_gain: NotNegative = 1.0


@dataclasses.dataclass(frozen=True)
class FieldConfig:
    """Density and albedo in the box [-radius, radius]^3."""

    radius: Positive = 1.0
    encoding: Literal["hash_grid", "dense_grid"] = "dense_grid"
    # what computes a hash grid, and spherical harmonics behind it; auto: the fastest that this machine has
    backend: Literal["auto", "torch", "triton", "tinycudann"] = "auto"
    hash_grid: HashGridConfig = dataclasses.field(default_factory=HashGridConfig)
    dense_grid: DenseGridConfig = dataclasses.field(default_factory=DenseGridConfig)
    hidden_width: Count = 64  # of the density and albedo networks behind a hash grid
    num_hidden_layers: Whole = 1
    density_activation: Literal["softplus", "shifted_softplus", "trunc_exp"] = "softplus"
    density_blob: Literal["magic3d", "dreamfusion", "constant"] = "magic3d"
    density_blob_scale: float = 10.0
    density_blob_std: Positive = 0.5
    # grid_difference needs the dense grid, predicted the hash grid; the released finite differences point inwards
    normal: Literal[
        "analytic",
        "finite_difference",
        "finite_difference_released",
        "finite_difference_laplacian",
        "grid_difference",
        "predicted",
        "none",
    ] = "grid_difference"
    finite_difference_eps: Positive = 0.02  # world units; not of grid_difference


@dataclasses.dataclass(frozen=True)
class BackgroundConfig:
    """What is seen where the object is not."""

    kind: Literal["network", "solid"] = "solid"
    color: Color = (1.0, 1.0, 1.0)  # of a solid background, and at evaluation
    random_prob: Share = 1.0  # probability that a rendering gets a uniformly random color instead
    random_shared: bool = True  # one random color for the whole batch, or one a view
    direction_encoding: Literal["frequency", "spherical_harmonics"] = "spherical_harmonics"  # of the network
    num_frequencies: Count = 3
    spherical_harmonics_degree: Count = 3
    hidden_width: Count = 16


@dataclasses.dataclass(frozen=True)
class RenderingConfig:
    """Where rays are sampled."""

    backend: Literal["auto", "torch", "nerfacc"] = "auto"  # auto: the fastest that this machine has
    num_samples_per_ray: Count = 64  # across the diagonal of the box
    stratified: bool = True
    occupancy_resolution: Count = 32
    occupancy_update_every: Count = 16
    occupancy_warmup_steps: Whole = 256
    occupancy_decay: Share = 0.95
    occupancy_threshold: NotNegative = 0.01
    prune: bool = True  # drop samples that cannot be seen, by one evaluation of the density without gradient
    alpha_threshold: Share = 0.01
    early_stop_transmittance: Share = 1e-4


@dataclasses.dataclass(frozen=True)
class GuidanceConfig:
    """Score distillation in its x0 form."""

    guidance_scale: Weight = 7.5
    guidance_rescale: Fraction = 0.5  # phi of arXiv:2305.08891, section 3.4
    # fractions of the diffusion timesteps
    min_timestep: Fraction = dataclasses.field(
        default_factory=lambda: Piecewise(progress=[0.0, 0.8], values=[0.98, 0.02])
    )
    max_timestep: Fraction = dataclasses.field(
        default_factory=lambda: Piecewise(progress=[0.0, 0.8], values=[0.98, 0.5])
    )


@dataclasses.dataclass(frozen=True)
class CorrespondenceConfig:
    """Cross-view correspondences from the prior's features."""

    enabled: bool = True
    window: Window = dataclasses.field(default_factory=lambda: Window(progress=(0.25, 0.6)))
    every: Count = 2  # a correspondence step whenever step % every == 0 inside the window
    shift_range: tuple[float, float] = (
        10.0,
        30.0,
    )  # azimuth of the twin views, degrees
    # what is matched: the prior's activations, or (truth) the true shape's own surface, known for the built-in prompts
    features: Literal["prior", "truth"] = "prior"
    feature_blocks: Annotated[tuple[int, ...], Range(low=0)] = (5, 3)  # up-block outputs in forward order, finest first
    timestep: Whole = 0
    edge_kernel: Count = 3
    opacity_threshold: float = 0.99
    epipolar_threshold: NotNegative = 2.0
    max_matches: Count = 60000
    huber_delta: Positive = 1.0
    # defect 1: the distance along the ray taken for the planar depth
    depth_convention: Literal["ray_length", "z_depth"] = "z_depth"
    # defect 2: accumulated depth as it is, or divided by the opacity
    depth_normalization: Literal["none", "opacity"] = "opacity"
    # defect 3: shading, background and jitter drawn anew for the twin views, or shared
    appearance: Literal["independent", "shared"] = "shared"
    # defect 6: one positive whole-degree shift for the batch, or a real one of either sign for each view group
    shift: Literal["positive_integer", "signed"] = "signed"
    # defect 6: gradients reach the source views only, or both view sets in turn
    direction: Literal["forward", "both"] = "both"
    # defect 7: squared pixels at any size, or pixels of a 32-pixel image that scale with the render's side
    epipolar_threshold_unit: Literal["squared_pixels", "scaled_pixels"] = "scaled_pixels"
    # defect 8: lines through their border points (lost when vertical), or by their normal form
    epipolar_projection: Literal["border_points", "normal_form"] = "normal_form"
    # defect 9: raw similarity as weight (may be negative), or clamped at zero and divided by the image's mean
    confidence: Literal["raw", "normalized"] = "normalized"
    # defect 9: summed over images (scales with the batch), or averaged
    reduction: Literal["sum", "mean"] = "mean"
    # defect 10: where the loss weighs nothing, its steps go without score distillation all the same, or take it
    at_zero_weight: Literal["no_guidance", "guidance"] = "guidance"


@dataclasses.dataclass(frozen=True)
class LossWeightsConfig:
    """Weights of the loss terms; a term whose weight is zero at a step is not computed."""

    sds: Weight = 1.0
    correspondence: Weight = 1000.0
    orientation: Weight = 0.0
    sparsity: Weight = 0.0
    opaque: Weight = 0.0
    z_variance: Weight = 0.0
    total_variation: Weight = 0.0


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a learning rate for each part."""

    encoding_lr: NotNegative = 0.01
    network_lr: NotNegative = 0.001
    background_lr: NotNegative = 0.001
    betas: Annotated[tuple[float, float], Range(low=0, high=1)] = (0.9, 0.99)
    eps: NotNegative = 1e-15
    weight_decay: NotNegative = 0.01


@dataclasses.dataclass(frozen=True)
class OutputConfig:
    """What a run leaves in its folder, and how often."""

    checkpoint_every: Count = 50  # steps
    checkpoint_keep: Count = 2
    preview_every: Whole = 100  # steps; 0 writes none
    preview_size: Count = 64  # pixels
    video: bool = True  # turntable.mp4 at the end
    mesh: bool = True  # mesh.glb at the end, with a color a vertex; `export` writes textured ones
    # TensorBoard is always written; auto: $WANDB_MODE, or online with a key and offline without. Of a sweep: --wandb
    wandb: Literal["disabled", "auto", "offline", "online"] = "disabled"


@dataclasses.dataclass(frozen=True)
class Config:
    """One run."""

    prompt: str = ""  # or lib:WORD_WORD, the prompt of the library that has these words
    prompt_library: str = ""  # file with a prompt a line, read when the configuration is; empty afterwards
    negative_prompt: str = ""
    seed: Whole = 0
    max_steps: Count = 200
    schedule_steps: Whole = 0  # length that `progress` refers to; 0 takes max_steps when the run is created
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["float32", "float16", "bfloat16"] = "float32"  # of autocast
    weights: str = ""  # checkpoint whose scene a new run starts from; its optimizer and step are not taken
    prior: PriorConfig = dataclasses.field(default_factory=PriorConfig)
    cameras: CamerasConfig = dataclasses.field(default_factory=CamerasConfig)
    shading: ShadingConfig = dataclasses.field(default_factory=ShadingConfig)
    field: FieldConfig = dataclasses.field(default_factory=FieldConfig)
    background: BackgroundConfig = dataclasses.field(default_factory=BackgroundConfig)
    rendering: RenderingConfig = dataclasses.field(default_factory=RenderingConfig)
    guidance: GuidanceConfig = dataclasses.field(default_factory=GuidanceConfig)
    correspondence: CorrespondenceConfig = dataclasses.field(default_factory=CorrespondenceConfig)
    loss_weights: LossWeightsConfig = dataclasses.field(default_factory=LossWeightsConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    output: OutputConfig = dataclasses.field(default_factory=OutputConfig)


def load_config(files: Sequence[str | Path] = (), overrides: Sequence[str] | Mapping[str, Any] = ()) -> Config:
    """The defaults, then `files` left to right, then `overrides` (`key=value` strings, or dotted keys to values)."""
    config = Config()
    for path in files:
        plain = read_yaml(path, "configuration file")
        try:
            config = changed(config, plain)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
    config = _overridden(config, overrides)
    try:
        prompt = prompt_of_library(config.prompt, config.prompt_library)
    except ValueError as error:
        raise PromptError(str(error)) from error
    config = dataclasses.replace(config, prompt=prompt, prompt_library="")
    if config.schedule_steps == 0:
        config = dataclasses.replace(config, schedule_steps=config.max_steps)
    check_config(config)
    return config


def check_overrides(overrides: Sequence[str] | Mapping[str, Any]) -> None:
    """ConfigError unless each key exists and takes its value, whatever else a configuration holds."""
    _overridden(Config(), overrides)


def _overridden(config: Config, overrides: Sequence[str] | Mapping[str, Any]) -> Config:
    items = overrides.items() if isinstance(overrides, Mapping) else map(parse_override, overrides)
    for key, value in items:
        config = changed(config, nested(key, value))
    return config


def save_config(config: Config, path: Path) -> None:
    """Writes the whole resolved configuration as YAML; `load_config([path])` gives it back."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(OmegaConf.to_yaml(OmegaConf.create(config_to_dict(config))), encoding="utf-8")
    temporary.replace(path)


def config_to_dict(config: Config) -> dict[str, Any]:
    """The configuration as plain nested dicts, lists, numbers and strings."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))  # tuples become lists
    return plain


def check_config(config: Config) -> None:
    """Cross-field checks that need nothing but the configuration; ConfigError names key, value and what is accepted."""
    if not config.prompt.strip():
        raise ConfigError("prompt must not be empty; give it as prompt='a red cone on a blue cube'.")
    if config.prior.attention == "xformers" and config.prior.kind != "mvdream":
        raise ConfigError(
            f"prior.attention={config.prior.attention} needs prior.kind=mvdream, got {config.prior.kind}, "
            "which chooses for itself."
        )
    if config.correspondence.features == "truth" and config.prior.kind != "blocks":
        raise ConfigError(
            "correspondence.features=truth needs the true shape, so prior.kind=blocks, got "
            f"prior.kind={config.prior.kind}; use correspondence.features=prior."
        )
    if config.prior.compile in ("full", "graph") and config.prior.kind == "mvdream_package":
        raise ConfigError(
            f"prior.compile={config.prior.compile} needs prior.kind=mvdream or blocks, got {config.prior.kind}."
        )
    if config.field.backend in ("triton", "tinycudann") and config.field.encoding != "hash_grid":
        raise ConfigError(
            f"field.backend={config.field.backend} needs field.encoding=hash_grid, got {config.field.encoding}."
        )
    _check_held(config)
    _check_timesteps(config)
    _check_ranges(config)
    correspondence = config.correspondence
    if correspondence.edge_kernel % 2 == 0:
        raise ConfigError(f"correspondence.edge_kernel must be odd, got {correspondence.edge_kernel}.")
    if correspondence.enabled and not correspondence.feature_blocks:
        raise ConfigError("correspondence.feature_blocks must name at least one block, got none.")


def _check_ranges(config: Config) -> None:
    ranges = {
        "cameras.elevation_range": config.cameras.elevation_range,
        "cameras.azimuth_range": config.cameras.azimuth_range,
        "cameras.fovy_range": config.cameras.fovy_range,
        "cameras.distance_range": config.cameras.distance_range,
        "cameras.zoom_range": config.cameras.zoom_range,
        "cameras.light_distance_range": config.cameras.light_distance_range,
        "correspondence.shift_range": config.correspondence.shift_range,
    }
    for key, (low, high) in ranges.items():
        if low > high:
            raise ConfigError(f"{key} must be (low, high) with low <= high, got ({low}, {high}).")


def _check_timesteps(config: Config) -> None:
    """The lower bound of the diffusion timesteps stays below the upper one at every step."""
    low, high, horizon = config.guidance.min_timestep, config.guidance.max_timestep, config.schedule_steps
    knots = [knot for bound in (low, high) if isinstance(bound, Piecewise) for knot in bound.knots(horizon)]
    # Between knots both are straight lines, or held until the step before the next knot.
    steps = {0, *(math.ceil(knot) for knot in knots), *(math.ceil(knot) - 1 for knot in knots)}
    for step in sorted(step for step in steps if 0 <= step < config.max_steps):
        bounds = value_at(low, step, horizon), value_at(high, step, horizon)
        if bounds[0] > bounds[1]:
            raise ConfigError(
                f"guidance.min_timestep must not exceed guidance.max_timestep, got {bounds[0]:g} > {bounds[1]:g} "
                f"at step {step}."
            )


def _check_held(config: Config) -> None:
    """Numbers of views and pixels jump: between two of them there is none."""
    for key, schedule in (
        ("cameras.batch_size", config.cameras.batch_size),
        ("cameras.resolution", config.cameras.resolution),
    ):
        if isinstance(schedule, Piecewise) and schedule.interpolate != "hold":
            raise ConfigError(f"{key} must use interpolate: hold, got {schedule.interpolate}.")


__all__ = [
    "Config",
    "ConfigError",
    "Piecewise",
    "PromptError",
    "Schedule",
    "ScheduleError",
    "Window",
    "check_config",
    "check_overrides",
    "config_to_dict",
    "load_config",
    "save_config",
    "value_at",
]
