"""Composition root: builds every part from the configuration, opens run folders. The only reader of `kind` fields."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, assert_never

import torch
from safetensors import SafetensorError
from torch import nn

from corrdream.checkpoint import Checkpoint, file_fingerprint, fingerprint, load_checkpoint, sources_fingerprint
from corrdream.config import Config, ConfigError, config_to_dict
from corrdream.correspondence import StreamedMatching
from corrdream.field import (
    DenseGrid,
    FrequencyEncoding,
    HashGrid,
    NetworkBackground,
    RadianceField,
    SolidBackground,
    SphericalHarmonics,
)
from corrdream.interfaces import Encoding, Marching, MultiviewPrior
from corrdream.prior.blocks import WEIGHTS, BlocksPrior, blocks_fingerprint, check_words, read_metadata
from corrdream.prior.mvdream import MvdreamPrior
from corrdream.prior.mvdream_checkpoint import checkpoint_fingerprint, locate_checkpoint
from corrdream.prior.mvdream_package import MvdreamPackagePrior
from corrdream.rendering import OccupancyGrid, TorchMarching, sampling_step
from corrdream.scene import Scene, SceneView, load_scene
from corrdream.trainer import Trainer

Result = TypeVar("Result")


def pick_device(config: Config) -> torch.device:
    """The device that `device` names; auto takes a GPU when there is one."""
    match config.device:
        case "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        case "cuda":
            if not torch.cuda.is_available():
                raise ConfigError("device=cuda, but torch sees no CUDA device; use device=auto or device=cpu.")
            return torch.device("cuda")
        case "cpu":
            return torch.device("cpu")
        case _:
            assert_never(config.device)


def build_prior(config: Config, device: torch.device | None = None) -> MultiviewPrior:
    """The frozen prior, on its device."""
    device = device or pick_device(config)
    match config.prior.kind:
        case "blocks":
            return BlocksPrior.load(device, path=_weights(config), dtype=_prior_dtype(config, device))
        case "mvdream":
            return _named_as_config(
                lambda: MvdreamPrior.load(
                    config.prior.model,
                    checkpoint=config.prior.checkpoint,
                    device=device,
                    dtype=_prior_dtype(config, device),
                    attention=config.prior.attention,
                )
            )
        case "mvdream_package":
            return _named_as_config(
                lambda: MvdreamPackagePrior.load(
                    config.prior.model,
                    checkpoint=config.prior.checkpoint,
                    device=device,
                    dtype=_prior_dtype(config, device),
                )
            )
        case _:
            assert_never(config.prior.kind)


def _prior_dtype(config: Config, device: torch.device) -> torch.dtype:
    """What the prior's networks compute in."""
    match config.prior.precision:
        case "auto":
            return torch.float16 if device.type == "cuda" and config.prior.kind != "blocks" else torch.float32
        case "float32":
            return torch.float32
        case "float16":
            return torch.float16
        case "bfloat16":
            return torch.bfloat16
        case _:
            assert_never(config.prior.precision)


def _named_as_config(action: Callable[[], Result]) -> Result:
    """What `action` returns; what it finds wrong with a file that the configuration names is a ConfigError."""
    try:
        return action()
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _weights(config: Config) -> Path:
    """The built-in prior's weights file."""
    path = Path(config.prior.checkpoint) if config.prior.checkpoint else WEIGHTS
    if not path.is_file():
        raise ConfigError(f"prior.checkpoint={path} does not exist; leave it empty for the weights that ship.")
    try:
        read_metadata(path)
    except (ValueError, SafetensorError) as error:
        raise ConfigError(f"prior.checkpoint={path} is not a weights file of the built-in prior: {error}") from error
    return path


def check_prompt(config: Config) -> None:
    """ConfigError unless the prior can express the prompt."""
    match config.prior.kind:
        case "blocks":
            for key, prompt in (("prompt", config.prompt), ("negative_prompt", config.negative_prompt)):
                try:
                    check_words(prompt, _weights(config))
                except ValueError as error:
                    raise ConfigError(f"{key}={prompt!r}: {error}") from error
        case "mvdream" | "mvdream_package":
            pass  # they read any text
        case _:
            assert_never(config.prior.kind)


def identity(config: Config) -> str:
    """Identifies a run's result: its resolved configuration, corrdream's sources and the prior's weights."""
    plain = config_to_dict(config)
    del plain["output"]
    start = file_fingerprint(_start_weights(config)) if config.weights else ""
    return fingerprint([plain, sources_fingerprint(), _prior_fingerprint(config), start])


def _prior_fingerprint(config: Config) -> str:
    match config.prior.kind:
        case "blocks":
            return blocks_fingerprint(_weights(config))
        case "mvdream" | "mvdream_package":
            prior = config.prior
            return _named_as_config(lambda: checkpoint_fingerprint(locate_checkpoint(prior.model, prior.checkpoint)))
        case _:
            assert_never(config.prior.kind)


def _start_weights(config: Config) -> Path:
    """The checkpoint that a new run starts from."""
    path = Path(config.weights)
    if not path.is_file():
        raise ConfigError(
            f"weights={path} does not exist; give a run's checkpoint, or weights='' (a run that is resumed needs none)."
        )
    return path


def sampling_style(config: Config) -> tuple[str, float]:
    """What MVDream's own sampler adds to a prompt, and a guidance scale, for images straight from the prior."""
    match config.prior.kind:
        case "blocks":
            return "", 7.5
        case "mvdream" | "mvdream_package":
            return ", 3d asset", 10.0
        case _:
            assert_never(config.prior.kind)


def build(config: Config, *, prior: MultiviewPrior | None = None, device: torch.device | None = None) -> Trainer:
    """A trainer at step 0; give `prior` to share one that is loaded."""
    device = device or pick_device(config)
    check_prompt(config)
    prior = prior or build_prior(config, device)
    _check_against_prior(config, prior)
    generator = torch.Generator().manual_seed(config.seed)
    scene = build_scene(config, generator).to(device)
    if config.weights:
        load_scene(scene, load_checkpoint(_start_weights(config)))
    return Trainer(
        config=config,
        prior=prior,
        scene=scene,
        marching=build_marching(config, scene),
        matching=StreamedMatching(),
        optimizer=build_optimizer(config, scene),
        device=device,
    )


def build_view(config: Config, checkpoint: Checkpoint) -> SceneView:
    """The scene of a checkpoint, to be looked at; the prior is not loaded."""
    device = pick_device(config)
    scene = build_scene(config, torch.Generator()).to(device)
    load_scene(scene, checkpoint)
    marching = build_marching(config, scene)
    return SceneView(config=config, scene=scene, marching=marching, device=device, step=checkpoint.step)


def _check_against_prior(config: Config, prior: MultiviewPrior) -> None:
    """What only the loaded prior knows."""
    sizes = config.cameras.batch_size
    for size in sizes.values if not isinstance(sizes, int | float) else [sizes]:
        if size % prior.num_views:
            raise ConfigError(
                f"cameras.batch_size must be a multiple of the prior's {prior.num_views} views, got {size}."
            )


def build_marching(config: Config, scene: Scene) -> Marching:
    """Where rays are sampled."""
    return TorchMarching(
        occupancy=scene.occupancy,
        prune=config.rendering.prune,
        alpha_threshold=config.rendering.alpha_threshold,
        early_stop_transmittance=config.rendering.early_stop_transmittance,
    )


def build_scene(config: Config, generator: torch.Generator) -> Scene:
    """Field, background and occupancy at their initial values."""
    return Scene(
        field=build_field(config, generator),
        background=build_background(config, generator),
        occupancy=OccupancyGrid(
            radius=config.field.radius,
            resolution=config.rendering.occupancy_resolution,
            step_size=sampling_step(config.field.radius, config.rendering.num_samples_per_ray),
            update_every=config.rendering.occupancy_update_every,
            warmup_steps=config.rendering.occupancy_warmup_steps,
            decay=config.rendering.occupancy_decay,
            threshold=config.rendering.occupancy_threshold,
        ),
    )


def build_field(config: Config, generator: torch.Generator) -> RadianceField:
    """Density and albedo, blob-shaped at first."""
    encoding: Encoding
    match config.field.encoding:
        case "hash_grid":
            grid = config.field.hash_grid
            encoding = HashGrid(
                num_levels=grid.num_levels,
                features_per_level=grid.features_per_level,
                log2_table_size=grid.log2_table_size,
                base_resolution=grid.base_resolution,
                growth=grid.growth,
                generator=generator,
            )
        case "dense_grid":
            encoding = DenseGrid(resolutions=config.field.dense_grid.resolutions, num_channels=4)
        case _:
            assert_never(config.field.encoding)
    return RadianceField(
        encoding=encoding,
        radius=config.field.radius,
        hidden_width=config.field.hidden_width,
        num_hidden_layers=config.field.num_hidden_layers,
        density_activation=config.field.density_activation,
        density_blob=config.field.density_blob,
        density_blob_scale=config.field.density_blob_scale,
        density_blob_std=config.field.density_blob_std,
        normal=config.field.normal,
        finite_difference_eps=config.field.finite_difference_eps,
        albedo_gain=config.field.dense_grid.albedo_gain,
        generator=generator,
    )


def build_background(config: Config, generator: torch.Generator) -> nn.Module:
    """What is behind the object."""
    match config.background.kind:
        case "network":
            return NetworkBackground(
                encoding=build_direction_encoding(config),
                hidden_width=config.background.hidden_width,
                generator=generator,
            )
        case "solid":
            return SolidBackground(color=config.background.color)
        case _:
            assert_never(config.background.kind)


def build_direction_encoding(config: Config) -> Encoding:
    """What the background network sees of a direction."""
    match config.background.direction_encoding:
        case "frequency":
            return FrequencyEncoding(num_frequencies=config.background.num_frequencies)
        case "spherical_harmonics":
            return SphericalHarmonics(degree=config.background.spherical_harmonics_degree)
        case _:
            assert_never(config.background.direction_encoding)


def build_optimizer(config: Config, scene: Scene) -> torch.optim.Optimizer:
    """AdamW with the learning rates of the field's encoding, its networks, and the background."""
    groups = [
        {"params": list(scene.field.encoding_parameters()), "lr": config.optimizer.encoding_lr},
        {"params": list(scene.field.network_parameters()), "lr": config.optimizer.network_lr},
        {"params": list(scene.background.parameters()), "lr": config.optimizer.background_lr},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        betas=config.optimizer.betas,
        eps=config.optimizer.eps,
        weight_decay=config.optimizer.weight_decay,
    )
