"""What is trained, what renders it and what optimizes it, as the configuration has them."""

from typing import assert_never

import torch
from torch import nn

from corrdream.acceleration import Backends
from corrdream.config import Config
from corrdream.field import (
    DenseGrid,
    FrequencyEncoding,
    HashGrid,
    NetworkBackground,
    RadianceField,
    SolidBackground,
    SphericalHarmonics,
)
from corrdream.field.encodings_tcnn import TcnnHashGrid, TcnnSphericalHarmonics
from corrdream.field.networks import Heads, TorchHeads
from corrdream.interfaces import Encoding, Marching
from corrdream.rendering import OccupancyGrid, TorchMarching, sampling_step
from corrdream.rendering.marching_nerfacc import NerfaccMarching
from corrdream.scene import Scene


def build_marching(config: Config, scene: Scene, backends: Backends) -> Marching:
    """Where rays are sampled."""
    match backends.marching:
        case "torch":
            marching: type[TorchMarching] | type[NerfaccMarching] = TorchMarching
        case "nerfacc":
            marching = NerfaccMarching
        case _:
            assert_never(backends.marching)
    return marching(
        occupancy=scene.occupancy,
        prune=config.rendering.prune,
        alpha_threshold=config.rendering.alpha_threshold,
        early_stop_transmittance=config.rendering.early_stop_transmittance,
    )


def build_scene(config: Config, generator: torch.Generator, backends: Backends) -> Scene:
    """Field, background and occupancy at their initial values."""
    return Scene(
        field=build_field(config, generator, backends),
        background=build_background(config, generator, backends),
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


def build_encoding(config: Config, generator: torch.Generator, backends: Backends) -> Encoding:
    """What the field sees of a point."""
    match config.field.encoding:
        case "hash_grid":
            match backends.encoding:
                case "torch" | "triton":
                    hash_grid: type[HashGrid] | type[TcnnHashGrid] = HashGrid
                case "tinycudann":
                    hash_grid = TcnnHashGrid
                case _:
                    assert_never(backends.encoding)
            grid = config.field.hash_grid
            encoding = hash_grid(
                num_levels=grid.num_levels,
                features_per_level=grid.features_per_level,
                log2_table_size=grid.log2_table_size,
                base_resolution=grid.base_resolution,
                growth=grid.growth,
                generator=generator,
            )
            return _on_triton(encoding) if backends.encoding == "triton" else encoding
        case "dense_grid":
            return DenseGrid(resolutions=config.field.dense_grid.resolutions, num_channels=4)
        case _:
            assert_never(config.field.encoding)


def _on_triton(encoding: Encoding) -> Encoding:
    from corrdream.field.encodings_triton import TritonHashGrid  # triton is not everywhere

    assert isinstance(encoding, HashGrid), "chosen above"
    return TritonHashGrid(encoding)


def build_heads(config: Config, backends: Backends) -> Heads:
    """What evaluates the networks behind the encoding; the kernels know one hidden layer."""
    if backends.encoding != "triton" or config.field.num_hidden_layers != 1:
        return TorchHeads()
    from corrdream.field.networks_triton import TritonHeads

    return TritonHeads()


def build_field(config: Config, generator: torch.Generator, backends: Backends) -> RadianceField:
    """Density and albedo, blob-shaped at first."""
    return RadianceField(
        encoding=build_encoding(config, generator, backends),
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
        heads=build_heads(config, backends),
        generator=generator,
    )


def build_background(config: Config, generator: torch.Generator, backends: Backends) -> nn.Module:
    """What is behind the object."""
    match config.background.kind:
        case "network":
            return NetworkBackground(
                encoding=build_direction_encoding(config, backends),
                hidden_width=config.background.hidden_width,
                generator=generator,
            )
        case "solid":
            return SolidBackground(color=config.background.color)
        case _:
            assert_never(config.background.kind)


def build_direction_encoding(config: Config, backends: Backends) -> Encoding:
    """What the background network sees of a direction."""
    match config.background.direction_encoding:
        case "frequency":
            return FrequencyEncoding(num_frequencies=config.background.num_frequencies)
        case "spherical_harmonics":
            harmonics = TcnnSphericalHarmonics if backends.encoding == "tinycudann" else SphericalHarmonics
            return harmonics(degree=config.background.spherical_harmonics_degree)
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
        fused=True,
        betas=config.optimizer.betas,
        eps=config.optimizer.eps,
        weight_decay=config.optimizer.weight_decay,
    )
