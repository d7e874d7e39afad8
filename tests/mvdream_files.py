"""A checkpoint in the exact layout of the published ones, at a tiny size: 64 px images, random weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from corrdream.prior.autoencoder import AutoencoderShape
from corrdream.prior.mvdream_checkpoint import SHAPE_KEY
from corrdream.prior.mvdream_layout import MvdreamShape, checkpoint_layout
from corrdream.prior.network import NetworkShape
from corrdream.prior.text_clip import Family, TextShape


def tiny_shape(family: Family = "open_clip") -> MvdreamShape:
    width = 64
    return MvdreamShape(
        network=NetworkShape(
            latent_channels=4,
            latent_size=8,
            num_views=4,
            channels=(32, 64, 64),
            heads=(1, 2, 2) if family == "open_clip" else (2, 2, 2),
            attention=(True, True, False),
            layers_per_block=1,
            text_width=width,
            linear_projection=family == "open_clip",
        ),
        autoencoder=AutoencoderShape(channels=(32, 32, 64, 64), layers_per_block=1),
        text=TextShape(family=family, width=width, heads=2, num_layers=3),
    )


def random_weights(shape: MvdreamShape, seed: int = 0) -> dict[str, Tensor]:
    """Every weight of the layout, scaled so that signals keep their size."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, size in checkpoint_layout(shape).items():
        if name.endswith("position_ids"):
            weights[name] = torch.arange(size[-1])[None]
            continue
        values = torch.randn(size, generator=generator)
        fan_in = max(1, values[0].numel() if len(size) > 1 else 1)
        is_norm = len(size) == 1 and name.endswith("weight")
        weights[name] = 1 + 0.1 * values if is_norm else values * (fan_in**-0.5 if len(size) > 1 else 0.1)
    return weights


def write_checkpoint(path: Path, shape: MvdreamShape) -> Path:
    """As a pickle, like the published files, or as safetensors that record their sizes."""
    if path.suffix == ".safetensors":
        save_file(random_weights(shape), path, metadata={SHAPE_KEY: shape.to_text()})
    else:
        torch.save(random_weights(shape), path)
    return path


def small_blocks_shape() -> MvdreamShape:
    """Tiny, with the published number of blocks, so that the released feature blocks 8 and 5 are there."""
    shape = tiny_shape()
    network = replace(
        shape.network, channels=(32, 32, 32, 32), heads=(1,) * 4, attention=(True,) * 3 + (False,), layers_per_block=2
    )
    return replace(shape, network=network)


def released_overrides(checkpoint: Path) -> dict[str, Any]:
    """What a released configuration needs to take two steps on a CPU, one of each kind."""
    return {
        "prior.checkpoint": str(checkpoint),
        "device": "cpu",
        "precision": "float32",
        "max_steps": 2,
        "cameras.batch_size": 4,
        "cameras.resolution": 12,
        "rendering.num_samples_per_ray": 16,
        "rendering.occupancy_resolution": 8,
        "field.hash_grid.num_levels": 2,
        "field.hash_grid.log2_table_size": 8,
        "output.preview_every": 0,
    }
