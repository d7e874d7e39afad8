"""MVDream at full size or tiny, with random weights that are made where they are used; and what its work costs."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from corrdream.config import Config
from corrdream.engine import _prior_dtype, pick_compilation
from corrdream.prior.autoencoder import Autoencoder
from corrdream.prior.mvdream import MvdreamPrior
from corrdream.prior.mvdream_layout import MODELS, TEXT, MvdreamShape, checkpoint_layout
from corrdream.prior.network import MultiviewUNet


def random_weights(shape: MvdreamShape, device: torch.device) -> dict[str, Tensor]:
    """Every weight of the layout, scaled so that signals keep their size; the text tower's on the CPU and mostly zero.

    Nothing that is timed reads the text tower.
    """
    generator = torch.Generator(device).manual_seed(0)
    weights = {}
    for name, size in checkpoint_layout(shape).items():
        is_text = name.startswith(TEXT)
        if name.endswith("position_ids"):
            weights[name] = torch.arange(size[-1])[None]
        elif len(size) <= 1:
            weights[name] = (torch.ones if name.endswith("weight") else torch.zeros)(
                size, device="cpu" if is_text else device
            )
        elif is_text:
            weights[name] = torch.zeros(size)
        else:
            values = torch.randn(size, generator=generator, device=device)
            weights[name] = values * values[0].numel() ** -0.5
    return weights


def random_prior(config: Config, device: torch.device, shape: MvdreamShape | None = None) -> MvdreamPrior:
    """The prior as `config` asks for it."""
    shape = shape or MODELS[config.prior.model]
    return MvdreamPrior(
        random_weights(shape, device),
        shape,
        fingerprint=f"random, {shape.network.text_width}",
        device=device,
        dtype=_prior_dtype(config, device),
        attention=config.prior.attention,
        compilation=pick_compilation(config, device),
    )


def teraflops(shape: MvdreamShape, blocks: tuple[int, ...]) -> dict[str, float]:
    """Products that one image costs at least, counted on the meta device."""
    network, size = shape.network, shape.image_size
    views = network.num_views
    with torch.device("meta"):
        unet, autoencoder = MultiviewUNet(network), Autoencoder(shape.autoencoder)
        latents = torch.empty(views, network.latent_channels, network.latent_size, network.latent_size)
        inputs = (latents, torch.empty(views, dtype=torch.long), torch.empty(views, 77, network.text_width))
        camera = torch.empty(views, 16)
        pixels = torch.empty(views, 3, size, size)
    unet.requires_grad_(False)
    autoencoder.requires_grad_(False)

    def count(function: Callable[[], object]) -> float:
        with FlopCounterMode(display=False) as counter:
            function()
        return counter.get_total_flops() / views / 1e12

    def encode_and_back() -> None:
        variable = pixels.clone().requires_grad_()
        autoencoder.moments(variable)[0].sum().backward()

    with torch.no_grad():
        counts = {
            "noise": count(lambda: unet(*inputs, camera)),
            "features": count(lambda: unet.features(*inputs, camera, blocks)),
            "encode": count(lambda: autoencoder.moments(pixels)),
        }
    return counts | {"encode and back": count(encode_and_back)}
