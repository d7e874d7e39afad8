"""vae_tiny.npz: the autoencoder from published weights, its posterior's clamping, and the gradient to the images."""

import json
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from corrdream.prior.autoencoder import SCALE, Autoencoder, AutoencoderShape, draw, published_autoencoder_weights
from tests.golden.helpers import assert_absolute, assert_relative, group, group_names, tensor

FILE = "vae_tiny.npz"
TOLERANCE = 5e-5
GRADIENT_TOLERANCE = 2e-5


def build(data: Mapping[str, np.ndarray]) -> Autoencoder:
    config = json.loads(str(data["config_json"]))["ddconfig"]
    autoencoder = Autoencoder(
        AutoencoderShape(
            channels=tuple(config["ch"] * factor for factor in config["ch_mult"]),
            layers_per_block=config["num_res_blocks"],
        )
    )
    weights = {name: tensor(array).float() for name, array in group(data, "weights").items()}
    autoencoder.load_state_dict(published_autoencoder_weights(autoencoder, weights))
    return autoencoder.eval().requires_grad_(False)


def compare(data: Mapping[str, np.ndarray], name: str) -> None:
    inputs, expected = group(data, f"{name}/in"), group(data, f"{name}/out")
    assert float(data["scale_factor"]) == SCALE
    autoencoder = build(data)
    pixels, noise, latents = (tensor(inputs[key]) for key in ("images", "noise", "latents"))
    posterior = autoencoder.posterior(pixels)
    encoded = _encode(autoencoder, _images(pixels), noise)
    actual = {
        "moments": posterior.parameters,
        "mean": posterior.mean,
        "mode": draw(posterior, None),
        "logvar": posterior.logvar,
        "std": posterior.std,
        "sample": draw(posterior, noise),
        "encoded_latents": encoded,
        "decoded": autoencoder.pixels(latents),
        "decoded_encoded_latents": autoencoder.pixels(encoded),
    }
    for key, value in actual.items():
        assert_absolute(value, expected[key], TOLERANCE, f"{name} {key}")
    assert_absolute(
        autoencoder.decode(latents),
        _images(tensor(expected["decoded"])).clamp(0, 1).cpu().numpy(),
        TOLERANCE,
        f"{name} decoded images",
    )
    images = _images(pixels).requires_grad_()
    encoded = _encode(autoencoder, images, noise)
    (gradient,) = torch.autograd.grad((encoded * tensor(inputs["cotangent_latents"])).sum(), images)
    # Ours are images in [0, 1], whose gradient is twice that of pixels in [-1, 1].
    assert_relative(gradient.permute(0, 3, 1, 2) / 2, expected["grad_images"], GRADIENT_TOLERANCE, f"{name} gradient")


def compare_clamp(data: Mapping[str, np.ndarray], name: str) -> None:
    arrays = group(data, name)
    posterior = DiagonalGaussianDistribution(tensor(arrays["in_moments"]))
    assert_absolute(posterior.logvar, arrays["logvar"], TOLERANCE, f"{name} logvar")
    assert_relative(posterior.std, arrays["std"], TOLERANCE, f"{name} std")
    assert_relative(posterior.kl(), arrays["kl"], TOLERANCE, f"{name} kl")
    noise = torch.ones_like(posterior.mean)
    assert_relative(draw(posterior, noise) - posterior.mean, arrays["std"], TOLERANCE, f"{name} draw")


def _encode(autoencoder: Autoencoder, images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """As training encodes; its images are square, and others go the same way without being resized."""
    height, width = images.shape[1:3]
    if height == width:
        return autoencoder.encode(images, width, noise)
    return SCALE * draw(autoencoder.posterior(2 * images.permute(0, 3, 1, 2) - 1), noise)


def _images(pixels: torch.Tensor) -> torch.Tensor:
    return (pixels / 2 + 0.5).permute(0, 2, 3, 1)


def cases(data: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Callable[[], None]]]:
    for name in group_names(data):
        if f"{name}/in_moments" in data:
            yield name, lambda name=name: compare_clamp(data, name)
        elif name != "weights":
            yield name, lambda name=name: compare(data, name)
