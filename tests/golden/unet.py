"""unet_tiny.npz: the multi-view UNet and its up-features, from published weights."""

import json
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch

from corrdream.prior.network import MultiviewUNet, NetworkShape, published_unet_weights
from tests.golden.helpers import assert_absolute, assert_relative, group, group_names, tensor

FILE = "unet_tiny.npz"
TOLERANCE = 5e-5


def build(data: Mapping[str, np.ndarray], num_views: int) -> MultiviewUNet:
    config = json.loads(str(data["config_json"]))
    channels = tuple(config["model_channels"] * factor for factor in config["channel_mult"])
    network = MultiviewUNet(
        NetworkShape(
            latent_channels=config["in_channels"],
            latent_size=config["image_size"],
            num_views=num_views,
            channels=channels,
            heads=tuple(width // config["num_head_channels"] for width in channels),
            attention=tuple(2**level in config["attention_resolutions"] for level in range(len(channels))),
            layers_per_block=config["num_res_blocks"],
            text_width=config["context_dim"],
        )
    )
    weights = {name: tensor(array).float() for name, array in group(data, "weights").items()}
    network.load_state_dict(published_unet_weights(network, weights))
    return network.eval()


def compare(data: Mapping[str, np.ndarray], name: str) -> None:
    inputs, expected = group(data, f"{name}/in"), group(data, f"{name}/out")
    network = build(data, int(inputs["num_frames"]))
    latents, timesteps = tensor(inputs["x"]), tensor(inputs["timesteps"])
    text, camera = tensor(inputs["context"]), tensor(inputs["camera"])
    blocks = [int(key.removeprefix("up_")) for key in expected if key.startswith("up_")]
    with torch.no_grad():
        noise, features = network(latents, timesteps, text, camera, blocks)
        assert_absolute(noise, expected["eps"], TOLERANCE, f"{name} eps")
        without_camera, _ = network(latents, timesteps, text, None)
        assert_absolute(without_camera, expected["eps_without_camera"], TOLERANCE, f"{name} eps_without_camera")
        for block, feature in zip(blocks, features, strict=True):
            assert_relative(feature, expected[f"up_{block:02d}"], TOLERANCE, f"{name} up_{block:02d}")
            (alone,) = network.features(latents, timesteps, text, camera, [block])
            assert_relative(alone, expected[f"up_{block:02d}"], TOLERANCE, f"{name} up_{block:02d} alone")


def cases(data: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Callable[[], None]]]:
    for name in group_names(data):
        if name != "weights":
            yield name, lambda name=name: compare(data, name)
