"""checkpoint_keys.json: names and shapes of everything in the official checkpoints, and what the full UNet gives."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from corrdream.prior.mvdream_layout import MODELS, UNET, MvdreamShape, check_layout, checkpoint_layout
from corrdream.prior.network import MultiviewUNet

FILE = "checkpoint_keys.json"


def cases(data: Any) -> Iterator[tuple[str, Callable[[], None]]]:
    for name, recorded in data.items():
        yield f"{name}-layout", partial(compare_layout, recorded, MODELS[name])
        if "up_feature_shapes_for_8x4x32x32_input" in recorded:
            yield f"{name}-features", partial(compare_features, recorded, MODELS[name])


def compare_layout(recorded: dict[str, Any], shape: MvdreamShape) -> None:
    expected = {name: tuple(size) for name, (size, _) in recorded["state_dict"].items()}
    assert checkpoint_layout(shape) == expected
    check_layout(expected, shape, FILE)  # what loading a checkpoint asks of it


def compare_features(recorded: dict[str, Any], shape: MvdreamShape) -> None:
    expected = [tuple(size) for size in recorded["up_feature_shapes_for_8x4x32x32_input"]]
    batch, network = expected[0][0], shape.network
    with torch.device("meta"):  # shapes without arithmetic
        unet = MultiviewUNet(network)
        latents = torch.empty(batch, network.latent_channels, network.latent_size, network.latent_size)
        text, camera = torch.empty(batch, shape.text.max_tokens, network.text_width), torch.empty(batch, 16)
        _, features = unet(latents, torch.zeros(batch, dtype=torch.long), text, camera, range(len(expected)))
    assert [tuple(feature.shape) for feature in features] == expected
    parameters = sum(parameter.numel() for parameter in unet.parameters())
    assert parameters == recorded["groups"][UNET]["numel"]
